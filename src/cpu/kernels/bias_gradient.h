// Gradient of attn_bias: dS of every element, summed over the axes along which the bias was broadcast.
// Tile     up to 8 panels of rows of one query head x 48 keys, as in backward.h; a task is BIAS_KEYS keys (all keys when the bias has
//          one entry for all of them) of one (batch, head) of the bias: Task::sequence and Task::head index the bias's own axes.
// Who      one worker a task; it recomputes P and dS of every (sequence, head) that shares these entries, in order, so the sums are the
//          same for any number of workers and nothing of size rows x keys exists beside the result.
// Memory   the float32 sums of a row block x BIAS_KEYS; Q, dO, K and V of one tile. Speed: two of the backward's five products again.
#pragma once
#include "cpu/kernels/gradient.h"

namespace fa::cpu {
namespace {

template <class S>
struct BiasScratch {
  RowBlock<S> rows;
  float *k, *v;
  Gradients<S> gradients;
  float* sums;  // [key][lane of the block]; one key when those are summed, one panel when rows are
  long k_pitch, v_pitch, sums_pitch;
  size_t bytes;
};
template <class S>
static BiasScratch<S> bias_scratch(const Job& job, void* base) {
  constexpr int LANES = Panel<S>::LANES;
  const Params& p = job.params;
  BiasScratch<S> r;
  Scratch memory{static_cast<char*>(base)};
  r.rows = take_row_block<S>(job, memory, false);
  r.k_pitch = tile_pitch<S>(p.dim);
  r.v_pitch = tile_pitch<S>(p.value_dim);
  r.sums_pitch = p.dbias.row == 0 ? LANES : r.rows.rows();
  r.k = memory.take<float>(BACKWARD_KEYS * r.k_pitch);
  r.v = memory.take<float>(BACKWARD_KEYS * r.v_pitch);
  r.gradients.p = memory.take<float>(BACKWARD_KEYS * LANES);
  r.gradients.ds = r.gradients.ds_keys = memory.take<float>(BACKWARD_KEYS * LANES);
  r.sums = memory.take<float>((p.dbias.key == 0 ? S::W : BIAS_KEYS) * r.sums_pitch);
  r.bytes = memory.used;
  return r;
}

// Adds dS of one row block of one query head to the sums, for keys [first, end).
template <class S, class T>
static void add_gradients(const Job& job, const Sequence& s, int head, int row, int n, int first, int end, const BiasScratch<S>& w) {
  constexpr int LANES = Panel<S>::LANES;
  const Params& p = job.params;
  const int kv_head = kv_head_of(head, p.group);
  const Interval<int> any = any_visible(s.mask, row, row + n - 1), seen = any_visible(s.mask, 0, s.mask.rows - 1);
  const KeyRows<T> k = key_rows<T>(job, s, Role::k, p.k, kv_head), v = key_rows<T>(job, s, Role::v, p.v, kv_head);
  if (min(end, any.end) <= max(first, any.first)) return;
  load_rows<S, T>(job, s, head, 1, row, n, w.rows);
  for (int key = first; key < min(end, any.end); key += BACKWARD_KEYS) {
    const int keys = min(BACKWARD_KEYS, min(end, any.end) - key);
    if (key + keys <= any.first) continue;
    pack_keys<S, T>(k, p.dim, key, round_up(keys, S::MR), seen, w.k, w.k_pitch, nullptr, 0);
    pack_keys<S, T>(v, p.value_dim, key, round_up(keys, S::MR), seen, w.v, w.v_pitch, nullptr, 0);
    for (int i = 0; i * LANES < n; i++) {
      int from, to;
      if (!gradient_of_panel<S>(job, s, w.rows, i, w.k, w.k_pitch, w.v, w.v_pitch, key, keys, w.gradients, false, from, to)) continue;
      for (int a = from; a < min(to, keys); a++) {
        float* sums = w.sums + (p.dbias.key == 0 ? 0 : key - first + a) * w.sums_pitch + (p.dbias.row == 0 ? 0 : i * LANES);
        for (int l = 0; l < LANES; l += S::W) S::store(sums + l, S::load(sums + l) + S::load(w.gradients.ds + a * LANES + l));
      }
    }
  }
}
// The sums of n rows and `keys` keys into the gradient, whose row `row` and key 0 of the task lie at `to`.
template <class S, class B>
static void store_sums(const Params& p, int n, int keys, B* to, const BiasScratch<S>& w) {
  using V = typename S::F;
  constexpr int LANES = Panel<S>::LANES, W = S::W;
  const int entries = p.dbias.key == 0 ? 1 : keys;
  for (int i = 0; i < entries; i += W) {
    const float* sums = w.sums + i * w.sums_pitch;
    if (p.dbias.row == 0) {
      V x[W];
      UNROLL
      for (int a = 0; a < W; a++) {
        x[a] = S::load(sums + a * w.sums_pitch);
        for (int l = W; l < LANES; l += W) x[a] = x[a] + S::load(sums + a * w.sums_pitch + l);
      }
      narrow_lanes<S>(to, i, entries, S::lane_sums(x));
      continue;
    }
    for (int l = 0; l < n; l += W) {
      V x[W];
      UNROLL
      for (int a = 0; a < W; a++) x[a] = S::load(sums + a * w.sums_pitch + l);
      S::transpose(x);
      for (int a = 0; a < W && l + a < n; a++) narrow_lanes<S>(to + (l + a) * p.dbias.row, i, entries, x[a]);
    }
  }
}

template <class S, class T>
static void bias_gradient(const Job& job, const Task& task, void* memory) {
  const BiasScratch<S> w = bias_scratch<S>(job, memory);
  const Params& p = job.params;
  const BiasStrides stride = p.dbias;
  const int block = w.rows.rows(), keys = task.end - task.first;
  const int sequence_end = stride.batch == 0 ? job.sequence_count : task.sequence + 1;
  const int head_end = stride.head == 0 ? p.heads : task.head + 1;
  const size_t sums_bytes = sizeof(float) * static_cast<size_t>((stride.key == 0 ? S::W : round_up(keys, S::W)) * w.sums_pitch);
  __builtin_memset(w.sums, 0, sums_bytes);
  for (int row = 0; row < p.mask.rows; row += block) {
    const int n = min(block, p.mask.rows - row);
    for (int b = task.sequence; b < sequence_end; b++) {
      const Sequence& s = job.sequences[b];
      for (int h = task.head; h < head_end && row < s.mask.rows && !stopped(job); h++) {
        add_gradients<S, T>(job, s, h, row, min(n, s.mask.rows - row), task.first, task.end, w);
      }
    }
    if (stride.row == 0 && row + block < p.mask.rows) continue;
    const Int64 at = task.sequence * stride.batch + task.head * stride.head + row * stride.row + task.first * stride.key;
    switch (job.bias_dtype) {
      case DType::f16: store_sums<S>(p, n, keys, array_of<Half>(job, Role::dbias) + at, w); break;
      case DType::bf16: store_sums<S>(p, n, keys, array_of<Bf16>(job, Role::dbias) + at, w); break;
      default: store_sums<S>(p, n, keys, array_of<float>(job, Role::dbias) + at, w); break;
    }
    __builtin_memset(w.sums, 0, sums_bytes);
  }
}

template <class S>
static size_t bias_scratch_bytes(const Job& job) {
  return bias_scratch<S>(job, nullptr).bytes;
}
static int bias_task_keys(const Job& job, int) { return job.params.dbias.key == 0 ? max(job.params.mask.keys, 1) : BIAS_KEYS; }
}  // namespace
}  // namespace fa::cpu
