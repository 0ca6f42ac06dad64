// Attention backward: dQ, dK and dV by five products, all in accumulate().
// Tile     up to 8 panels of rows x 48 keys (tiles.h); a task is a chunk of keys of one kv head and goes over all rows that see it, of
//          all heads of the group, so that GQA sums itself.
// Who      one worker a task; it owns dK and dV of its keys. dQ is written at once where one task sees all keys; otherwise each task
//          writes a float32 partial (Role::part_out), and a later launch adds them in order. Chunks are a function of shapes only:
//          the order of every sum, and so every bit, is the same for any number of workers.
// Memory   K, V, dK, dV of at most BACKWARD_SPAN keys, and a row block of Q and dO twice: transposed for P, dS (gradient.h) and
//          dQ^T += K^T dS^T (lanes are rows), by columns for dV += P dO and dK += dS Q (lanes are head elements; P and dS are then
//          read as scalars along their lanes). Lanes of pairs: K and dS twice as well, because dQ sums over keys what others do not.
// Speed    81 - 85 % of the FMA peak on AVX2, one kernel for all dtypes; 73 - 83 % of the peak of bfloat16 dot products
//          (docs/performance.md).
#pragma once
#include "cpu/kernels/gradient.h"

namespace fa::cpu {
namespace {

template <class S>
struct BackwardScratch {
  RowBlock<S> rows;
  typename S::Lane *k, *v;   // [key][element / STEP]
  typename S::Lane* k_keys;  // [key / STEP][element]; the same as k where STEP is 1
  float *dk, *dv;            // [key][element]
  Gradients<S> gradients;    // of all panels: [panel][...]
  float* dq;                 // transposed, [panel][element][lane]
  long k_pitch, v_pitch;     // of k and v
  long dk_pitch, dv_pitch;   // of k_keys, dk and dv
  size_t bytes;
};
FA_FN int backward_chunk_of(const Job& job) {
  return backward_chunk(job.params.mask.keys, static_cast<Int64>(job.params.batch) * job.params.kv_heads);
}
template <class S>
static BackwardScratch<S> backward_scratch(const Job& job, void* base) {
  using Lane = typename S::Lane;
  constexpr int STEP = S::STEP;
  const Params& p = job.params;
  const int keys = min(BACKWARD_SPAN, backward_chunk_of(job));
  static_assert(BACKWARD_KEYS % S::MR == 0 && BACKWARD_SPAN % BACKWARD_KEYS == 0);
  BackwardScratch<S> r;
  Scratch memory{static_cast<char*>(base)};
  r.rows = take_row_block<S>(job, memory, true);
  r.k_pitch = tile_pitch<S>(divide_up(p.dim, STEP));
  r.v_pitch = tile_pitch<S>(divide_up(p.value_dim, STEP));
  r.dk_pitch = tile_pitch<S>(p.dim);
  r.dv_pitch = tile_pitch<S>(p.value_dim);
  const Int64 pairs = static_cast<Int64>(BACKWARD_KEYS) * r.rows.rows();
  r.gradients.p = memory.take<Lane>(pairs / STEP);
  r.gradients.ds = memory.take<Lane>(pairs / STEP);
  r.gradients.ds_keys = STEP == 1 ? r.gradients.ds : memory.take<Lane>(pairs / STEP);
  r.dq = memory.take<float>(r.rows.rows() * r.rows.dim);
  r.k = memory.take<Lane>(keys * r.k_pitch);
  r.k_keys = STEP == 1 ? r.k : memory.take<Lane>(keys / STEP * r.dk_pitch);
  r.v = memory.take<Lane>(keys * r.v_pitch);
  r.dk = memory.take<float>(keys * r.dk_pitch);
  r.dv = memory.take<float>(keys * r.dv_pitch);
  r.bytes = memory.used;
  return r;
}

// MR keys x N vectors of head elements += sum over the rows of panels [first, end), STEP of them in a lane. a: [panel][tile row]
// [row / STEP], b: [row / STEP][element].
template <class S, int N>
FA_FN void key_gradient(float* c, long pitch, const typename S::Lane* a, const typename S::Lane* b, int first, int end) {
  using V = typename S::F;
  constexpr int MR = S::MR, W = S::W, LANES = Panel<S>::LANES, ROWS = LANES / S::STEP;
  V x[MR][N];
  UNROLL
  for (int i = 0; i < MR; i++) {
    UNROLL
    for (int j = 0; j < N; j++) x[i][j] = S::load(c + i * pitch + j * W);
  }
  for (int p = first; p < end; p++) {
    accumulate<S, MR, N>(x, a + p * BACKWARD_KEYS * ROWS, ROWS, 1, b + p * ROWS * LANES, LANES, ROWS);
  }
  UNROLL
  for (int i = 0; i < MR; i++) {
    UNROLL
    for (int j = 0; j < N; j++) S::store(c + i * pitch + j * W, x[i][j]);
  }
}
// All head elements of a tile's keys: dV from P and dO, dK from dS and Q. sees[i]: the panels that see the i-th MR keys.
template <class S>
__attribute__((noinline)) static void key_gradients(float* c, long pitch, int dim, const typename S::Lane* a,
                                                    const typename S::Lane* columns, int block_rows, const Interval<int>* sees,
                                                    int key_blocks) {
  constexpr int MR = S::MR, LANES = Panel<S>::LANES;
  static_assert(S::NV <= 4);
  for (int t = 0; t < dim; t += LANES) {
    const typename S::Lane* b = columns + static_cast<long>(t) * block_rows / S::STEP;
    const int vectors = min(S::NV, divide_up(dim - t, S::W));
    for (int i = 0; i < key_blocks; i++) {
      float* to = c + i * MR * pitch + t;
      const typename S::Lane* from = a + i * MR * LANES / S::STEP;
      if (sees[i].end <= sees[i].first) continue;
      if (vectors == S::NV) {
        key_gradient<S, S::NV>(to, pitch, from, b, sees[i].first, sees[i].end);
      } else if (vectors == 1) {
        key_gradient<S, 1>(to, pitch, from, b, sees[i].first, sees[i].end);
      } else if (vectors == 2) {
        key_gradient<S, 2>(to, pitch, from, b, sees[i].first, sees[i].end);
      } else {
        key_gradient<S, 3>(to, pitch, from, b, sees[i].first, sees[i].end);
      }
    }
  }
}

// Where dQ goes, and whether it is added to what lies there.
struct RowGradient {
  const Job* job;
  const Sequence* s;
  int kv_head, part, parts;
  bool add;
};
template <class D>
FA_FN D* row_gradient_at(const RowGradient& g, int row) {
  const Params& p = g.job->params;
  const int position = row / p.group, head = g.kv_head * p.group + row % p.group;
  float* partials = array_of<float>(*g.job, Role::part_out);
  if (partials == nullptr) return array_of<D>(*g.job, Role::dq) + row_offset(p.dq, *g.s, position, head);
  return reinterpret_cast<D*>(partials + partial_offset(packed_row(*g.job, *g.s, position), g.part, g.parts, head, p.heads, p.dim));
}
template <class S, class D>
static void store_row_gradients(const RowGradient& g, int row, int n, const float* dq, long dim) {
  using V = typename S::F;
  constexpr int LANES = Panel<S>::LANES, W = S::W;
  const Params& p = g.job->params;
  for (int l = 0; l < n; l += W) {
    D* to[W];
    for (int a = 0; a < W; a++) to[a] = row_gradient_at<D>(g, row + min(l + a, n - 1));
    for (int t = 0; t < p.dim; t += W) {
      V x[W];
      UNROLL
      for (int a = 0; a < W; a++) {
        x[a] = V(p.score.scale) * S::load(dq + (static_cast<long>(l / LANES) * dim + t + a) * LANES + l % LANES);
      }
      S::transpose(x);
      for (int a = 0; a < W && l + a < n; a++) narrow_lanes<S>(to[a], t, p.dim, g.add ? widen_lanes<S>(to[a], t, p.dim) + x[a] : x[a]);
    }
  }
}
template <class D>
static void zero_row_gradients(const RowGradient& g, int first, int end) {
  for (int r = first; r < end; r++) __builtin_memset(row_gradient_at<D>(g, r), 0, sizeof(D) * static_cast<size_t>(g.job->params.dim));
}

// One row block against keys [first, end), which are packed from key `origin` on.
template <class S>
static void backward_rows(const Job& job, const Sequence& s, const BackwardScratch<S>& w, int n, int origin, int first, int end) {
  constexpr int MR = S::MR, LANES = Panel<S>::LANES, BLOCKS = BACKWARD_KEYS / MR, STEP = S::STEP, PAIRS = BACKWARD_KEYS * LANES / STEP;
  const Params& p = job.params;
  const RowBlock<S>& b = w.rows;
  const int panels = divide_up(n, LANES);
  for (int key = origin + (first - origin) / BACKWARD_KEYS * BACKWARD_KEYS; key < end; key += BACKWARD_KEYS) {
    const int keys = min(BACKWARD_KEYS, end - key);
    const typename S::Lane *k = w.k + (key - origin) * w.k_pitch, *v = w.v + (key - origin) * w.v_pitch;
    const typename S::Lane* k_keys = w.k_keys + (key - origin) / STEP * w.dk_pitch;
    Interval<int> sees[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) sees[i] = {panels, 0};
    for (int i = 0; i < panels; i++) {
      const Gradients<S> out{w.gradients.p + i * PAIRS, w.gradients.ds + i * PAIRS, w.gradients.ds_keys + i * PAIRS};
      int from, to;
      if (!gradient_of_panel<S>(job, s, b, i, k, w.k_pitch, v, w.v_pitch, key, keys, out, true, from, to)) continue;
      for (int j = from / MR; j < to / MR; j++) sees[j] = {min(sees[j].first, i), i + 1};
      update_rows<S>(p.dim, w.dq + i * b.dim * LANES, LANES, k_keys + from / STEP * w.dk_pitch, w.dk_pitch,
                     out.ds_keys + from / STEP * LANES, LANES, (to - from) / STEP);
    }
    const int blocks = divide_up(keys, MR);
    key_gradients<S>(w.dv + (key - origin) * w.dv_pitch, w.dv_pitch, p.value_dim, w.gradients.p, b.dout_rows, b.rows(), sees, blocks);
    key_gradients<S>(w.dk + (key - origin) * w.dk_pitch, w.dk_pitch, p.dim, w.gradients.ds, b.q_rows, b.rows(), sees, blocks);
  }
}

// D: what dQ is stored as, T or the float of a partial.
template <class S, class T, class D>
static void backward_task(const Job& job, const Task& task, const BackwardScratch<S>& w) {
  using V = typename S::F;
  constexpr int LANES = Panel<S>::LANES;
  const Params& p = job.params;
  const Sequence& s = job.sequences[task.sequence];
  const int head0 = task.head * p.group;
  const Interval<int> seen = s.mask.rows > 0 ? any_visible(s.mask, 0, s.mask.rows - 1) : Interval<int>{0, 0};
  const KeyRows<T> k = key_rows<T>(job, s, Role::k, p.k, task.head), v = key_rows<T>(job, s, Role::v, p.v, task.head);
  RowGradient dq{&job, &s, task.head, task.part, backward_parts(p.mask.keys, backward_chunk_of(job)), false};
  int first = task.first;
  do {
    const int end = min(task.end, first + BACKWARD_SPAN), keys = max(end - first, 0);
    Interval<int> rows{0, 0};
    if (keys > 0) {
      const int padded = round_up(keys, S::MR);
      pack_keys<S, T>(k, p.dim, first, padded, seen, w.k, w.k_pitch, S::STEP == 1 ? nullptr : w.k_keys, w.dk_pitch);
      pack_keys<S, T>(v, p.value_dim, first, padded, seen, w.v, w.v_pitch, nullptr, 0);
      __builtin_memset(w.dk, 0, sizeof(float) * static_cast<size_t>(padded * w.dk_pitch));
      __builtin_memset(w.dv, 0, sizeof(float) * static_cast<size_t>(padded * w.dv_pitch));
      rows = {visible_rows(s.mask, first).first * p.group, visible_rows(s.mask, end - 1).end * p.group};
      if (rows.end <= rows.first) rows = {0, 0};
    }
    if (!dq.add) {
      zero_row_gradients<D>(dq, 0, rows.first);
      zero_row_gradients<D>(dq, rows.end, s.mask.rows * p.group);
    }
    for (int row = rows.first; row < rows.end && !stopped(job); row += w.rows.rows()) {
      const int n = min(w.rows.rows(), rows.end - row);
      const Interval<int> any = any_visible(s.mask, row / p.group, (row + n - 1) / p.group);
      load_rows<S, T>(job, s, head0, p.group, row, n, w.rows);
      __builtin_memset(w.dq, 0, sizeof(float) * static_cast<size_t>(round_up(n, LANES) * w.rows.dim));
      backward_rows<S>(job, s, w, n, first, max(first, any.first), min(end, any.end));
      store_row_gradients<S, D>(dq, row, n, w.dq, w.rows.dim);
    }
    for (int i = 0; i < keys; i++) {
      T* dk = array_of<T>(job, Role::dk) + offset_of(p.dk, s.key_batch, s.key_base + first + i, task.head);
      T* dv = array_of<T>(job, Role::dv) + offset_of(p.dv, s.key_batch, s.key_base + first + i, task.head);
      for (int t = 0; t < p.dim; t += S::W) narrow_lanes<S>(dk, t, p.dim, V(p.score.scale) * S::load(w.dk + i * w.dk_pitch + t));
      for (int t = 0; t < p.value_dim; t += S::W) narrow_lanes<S>(dv, t, p.value_dim, S::load(w.dv + i * w.dv_pitch + t));
    }
    dq.add = true;
    first += BACKWARD_SPAN;
  } while (first < task.end);
}
template <class S, class T>
static void backward(const Job& job, const Task& task, void* memory) {
  const BackwardScratch<S> w = backward_scratch<S>(job, memory);
  if (array_of<float>(job, Role::part_out) != nullptr) {
    backward_task<S, T, float>(job, task, w);
  } else {
    backward_task<S, T, T>(job, task, w);
  }
}

template <class S>
static size_t backward_scratch_bytes(const Job& job) {
  return backward_scratch<S>(job, nullptr).bytes;
}
static int backward_task_keys(const Job& job, int) { return backward_chunk_of(job); }
}  // namespace
}  // namespace fa::cpu
