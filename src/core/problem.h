// A call, checked and turned into plain numbers: everything planning and kernels need to know, and nothing that must be checked again.
#pragma once
#include "flash_attn/flash_attn.h"
#include "semantics/params.h"

namespace fa {

// What a kernel must be able to do besides the element's meaning (Feature bits): where rows live and what is asked of it.
enum Need : unsigned {
  VARLEN = 1u,     // rows packed, cu_rows / cu_keys say where sequences start
  CACHED = 2u,     // lengths, cache_rows or leftpad place the keys
  PAGED = 4u,      // keys through a page table
  VALUE_DIM = 8u,  // value_dim != dim
  OFFSETS = 16u,   // own diagonal (q_offset, k_offset)
  USED = 32u,      // used_rows or used_keys shorten sequences
  CHUNK = 64u,     // attention_chunk
  WINDOW = 128u,   // a left or right limit other than causal's
  DETERMINISTIC = 256u,
  OUT_FLOAT = 512u,  // out_dtype float32 for 16-bit inputs
  LSE = 1024u,       // forward: somebody reads the log-sum-exp
};

struct Problem {
  const char* function;
  Pass pass;
  DType dtype, out_dtype;  // out_dtype: of out (forward, merge)
  Place place;
  unsigned features, needs;    // Feature bits, Need bits
  uint64_t given;              // bits of Roles that the call brought
  uint64_t wants;              // bits of Roles to be written
  int64_t max_rows, max_keys;  // of the longest sequence
  int64_t total_rows;          // of all sequences: batch * rows, or the packed length
  int64_t total_keys;
  int64_t bias_shape[4];  // of attn_bias, 1 along broadcast axes
  int new_rows;           // append: rows of new_k
  int64_t cos_positions;
  DType seed_dtype, bias_dtype, sink_dtype;
  int splits;  // the caller's hint, 0: none
  ParamsT<double> params;
  bool wanted(Role role) const { return (wants & bit(role)) != 0; }
  bool has(Role role) const { return (given & bit(role)) != 0; }
};

// Shapes, strides, dtypes and options; reads no array, so it works on fake and traced ones. Throws Error.
Problem describe(const Call& call);
// Memory, and values inside lengths, cumulative lengths and page tables, which must be readable here; before anything is written. Throws
// Error.
void check_values(const Call& call, const Problem& problem);
// The part of it that reads only addresses: arrays have memory, aligned to their elements.
void check_memory(const Call& call, const Problem& problem);
// What the call writes, from the Problem.
std::vector<Output> outputs_of(const Problem& problem, const Call& call);

// The same numbers as float32, as kernels get them.
Params narrow(const ParamsT<double>& wide);
}  // namespace fa
