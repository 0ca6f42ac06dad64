// What a CPU kernel is given: one launch's numbers and arrays, the sequences as the host read them, and the task it shall do. Plain
// data, because it crosses from common code into translation units built for one instruction set (which may use no std:: symbol).
#pragma once
#include "flash_attn/flash_attn.h"
#include "semantics/params.h"

namespace fa::cpu {

// One sequence of the batch, with its place in every array: kernels never look at cu_rows, lengths or cache_rows.
struct Sequence {
  int index;         // in the batch: for slopes, bias and dropout
  Mask mask;         // rows, keys and the diagonal of this sequence
  Int64 row_base;    // packed row of its row 0 (varlen), else 0
  Int64 batch;       // batch index of q, out, lse, dq, ... (0 when varlen)
  Int64 key_base;    // row of k, v of its key 0: packed row, or leftpad of a cache
  Int64 key_batch;   // batch index of k, v (0 when varlen; cache_rows of a cache)
  const int* pages;  // page numbers of this sequence, or null
  Int64 lse_base;    // lse[lse_base + head * lse_head + row], dlse and delta too
};

// Rows [first, end) of one head: query rows or (position, head of the group) rows or keys, as the kernel defines.
struct Task {
  int sequence, head, first, end;
  int part;  // split or key chunk this task belongs to
};

template <class Real>
struct JobT {
  ParamsT<Real> params;
  unsigned features;
  DType dtype;       // of q, k, v, dout, gradients, new_k, new_v, cos, sin
  DType out_dtype;   // of out
  DType part_dtype;  // of part_out
  DType bias_dtype, sink_dtype;
  Int64 part_rows;  // rows of all sequences times heads: how far apart the parts of part_out (times its row length) and part_lse are
  Seed seed;
  const Sequence* sequences;
  int sequence_count;
  bool (*stopped)(void* stop);  // or null; see stopped()
  void* stop;
  void* arrays[ROLES];  // by role, null where absent; lse, delta, dlse are Real
  bool has(Role r) const { return arrays[static_cast<int>(r)] != nullptr; }
  template <class T>
  T* get(Role r) const {
    return static_cast<T*>(arrays[static_cast<int>(r)]);
  }
};
using Job = JobT<float>;

// True when the call is to end (Ctrl-C, an error in another task): to be asked every few milliseconds inside a task, which then returns.
template <class Real>
FA_FN bool stopped(const JobT<Real>& job) {
  return job.stopped != nullptr && job.stopped(job.stop);
}

// Offset of a query row (q, out, dout, dq, ...) and of a key (k, v, dk, dv: through the page table where there is one).
//
// Partial results of decode: part `task.part` lies at part_out + part * part_rows * value_dim, with the strides of `out`, which the plan
// has set to those of the temporary, and at part_lse + part * part_rows, indexed as lse. Those of backward: see partial_offset in tiles.h.
FA_FN Int64 row_offset(Strides s, const Sequence& sequence, int row, int head) {
  return offset_of(s, sequence.batch, sequence.row_base + row, head);
}
FA_FN Int64 key_offset(Strides s, const Sequence& sequence, int page_size, int key, int head) {
  if (sequence.pages) {
    const int position = static_cast<int>(sequence.key_base) + key;
    return offset_of(s, sequence.pages[page_of(position, page_size)], slot_of(position, page_size), head);
  }
  return offset_of(s, sequence.key_batch, sequence.key_base + key, head);
}
}  // namespace fa::cpu
