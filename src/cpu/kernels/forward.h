// Attention forward: Out = softmax(score(Q K^T)) V and its log-sum-exp. Nothing of size rows x keys reaches memory.
// Tile     panels of NV * W rows, one in each lane, x 96 keys; a task is up to 16 panels of one kv head (tiles.h).
// Who      one worker a task. S^T = K Q^T and O^T = V^T P^T, so K and V are read as scalars in their own row order, softmax runs along
//          registers, and a mask is a comparison of lanes.
// Memory   K and V are widened once a worker and head into tiles of an odd pitch (strided rows miss the TLB and collide in the caches:
//          15 - 20 % of the time) and reused by all tasks of the head that the worker runs. Scratch is bounded by FORWARD_PACKED_BYTES.
// Speed    76 - 87 % of the FMA peak (docs/performance.md). Softmax is fused into the score block: one fma, exp2, a sum and a
//          store an element. What the fma subtracts is no running maximum but any value within 2^16 of it (P <= 2^16 costs no
//          precision), so O is practically never rescaled. (Accumulators that start at minus this reference, with the scale in Q, save
//          the fma, 0.5 - 1 %, but every product is then rounded at the reference's size: up to 8 times the error.)
// Features enter through semantics/ only, at the stations named in DESIGN.md.
#pragma once
#include "cpu/kernels/panel.h"

namespace fa::cpu {
namespace {

// Rows of a task while it runs: the panel and the state of its softmax, in log2 units.
template <class S>
struct ForwardPanel : Panel<S> {
  alignas(64) float minus_reference[Panel<S>::LANES];
  alignas(64) float sum[Panel<S>::LANES];  // of P; 0 until the lane sees its first key
  bool waiting;                            // some lane has not seen a key yet
};

// One panel against one tile of keys, rows [from, to) of the tile of which [clear_from, clear_to) are seen by every lane.
template <class S>
struct ForwardTile {
  const typename S::Lane* k;
  const typename S::Lane* q;
  const float* bias;
  typename S::Lane* p;  // P^T, [tile row / STEP][lane]
  float* out;           // O^T, [element][lane]
  long k_pitch;
  int depth, value_dim;  // lanes of a row of K, rows of O^T
  int key;               // of row 0 of the tile
  int from, to, clear_from, clear_to;
  int begin;  // the first row whose P is not yet part of O
  ScoreT<float> score;
};

// Moves the reference of each lane up by `by` >= 0: what has been summed shrinks. Rare.
template <class S, int N>
__attribute__((noinline)) static void raise_reference(ForwardPanel<S>& panel, const typename S::F (&by)[N], const ForwardTile<S>& t,
                                                      int p_rows) {
  constexpr int LANES = Panel<S>::LANES;
  for (int j = 0; j < N; j++) {
    const int lane = (S::NV - N + j) * S::W;
    const typename S::F factor = rescale(typename S::F(0.0f), by[j]);
    float* sum = panel.sum + lane;
    S::store(sum, factor * S::load(sum));
    for (int i = 0; i < t.value_dim; i++) S::store(t.out + i * LANES + lane, factor * S::load(t.out + i * LANES + lane));
    for (int i = t.begin / S::STEP; i < p_rows / S::STEP; i++) S::scale_p(t.p + i * LANES + lane, factor);
  }
}

// MR keys x the last N vectors of a panel: scores, mask, exponentials, row sums; P^T is written.
template <class S, unsigned F, int N>
FA_FN void score_block(ForwardPanel<S>& panel, const ForwardTile<S>& t, int i0) {
  using V = typename S::F;
  constexpr int MR = S::MR, W = S::W, LANES = Panel<S>::LANES, L0 = LANES - N * W;
  V c[MR][N];
  products<S>(c, t.k + i0 * t.k_pitch, t.k_pitch, t.q + L0, LANES, t.depth);
  const V unit(score_unit<F>(t.score));
  UNROLL
  for (int j = 0; j < N; j++) {
    const V reference = S::load(panel.minus_reference + L0 + j * W), slope = S::load(panel.slope + L0 + j * W);
    const typename S::I diagonal = S::load(panel.diagonal + L0 + j * W);
    UNROLL
    for (int i = 0; i < MR; i++) {
      const V distance = (F & ALIBI) != 0 ? to_float(abs(diagonal - typename S::I(t.key + i0 + i))) : V(0.0f);
      const V bias = (F & BIAS) != 0 ? S::load(t.bias + (i0 + i) * LANES + L0 + j * W) : V(0.0f);
      c[i][j] = fma(score<F>(c[i][j], t.score, slope, distance, bias), unit, reference);
    }
  }
  if (i0 < t.clear_from || i0 + MR > t.clear_to) hide<S, MR>(c, panel, t.key + i0);

  V top[N];
  UNROLL
  for (int j = 0; j < N; j++) {
    top[j] = c[0][j];
    UNROLL
    for (int i = 1; i < MR; i++) top[j] = max(top[j], c[i][j]);
  }
  V highest = top[0];
  UNROLL
  for (int j = 1; j < N; j++) highest = max(highest, top[j]);
  if (__builtin_expect(panel.waiting || any(highest > V(16.0f)), 0)) {
    // A lane that sees its first keys takes their maximum as reference; others only ever move up.
    V by[N];
    Flags<W> still = {}, moved = {};
    UNROLL
    for (int j = 0; j < N; j++) {
      const Flags<W> fresh = S::load(panel.sum + L0 + j * W) == V(0.0f), seen = top[j] > V(no_maximum());
      const V move = select(fresh, select(seen, top[j], V(0.0f)), max(V(0.0f), top[j]));
      const V before = S::load(panel.minus_reference + L0 + j * W), after = before - move;
      const V moved_by = before - after;  // as it was rounded
      S::store(panel.minus_reference + L0 + j * W, after);
      UNROLL
      for (int i = 0; i < MR; i++) c[i][j] = c[i][j] - moved_by;
      by[j] = select(fresh, V(0.0f), moved_by);
      moved = moved | (by[j] > V(0.0f));
      still = still | and_not(fresh, seen);
    }
    if (any(moved)) raise_reference(panel, by, t, i0);
    panel.waiting = any(still);
  }

  V sum[N];
  UNROLL
  for (int i = 0; i < MR; i += 2) {  // two keys at a time: enough vectors in flight to hide the latency of exp2
    V e[2 * N];
    UNROLL
    for (int j = 0; j < N; j++) {
      e[2 * j] = c[i][j];
      e[2 * j + 1] = c[i + 1][j];
    }
    exp2_of(e);
    UNROLL
    for (int j = 0; j < N; j++) {
      const V both = e[2 * j] + e[2 * j + 1];
      sum[j] = i == 0 ? both : sum[j] + both;
      typename S::Lane* p = t.p + (i0 + i) / S::STEP * LANES + L0 + j * W;
      S::store_p(p, e[2 * j], e[2 * j + 1]);
      if constexpr (S::STEP == 1) S::store_p(p + LANES, e[2 * j + 1], e[2 * j + 1]);
    }
  }
  UNROLL
  for (int j = 0; j < N; j++) S::store(panel.sum + L0 + j * W, S::load(panel.sum + L0 + j * W) + sum[j]);
}
template <class S, unsigned F, int N>
static void score_part(ForwardPanel<S>& panel, const ForwardTile<S>& t) {
  for (int i = t.from; i < t.to; i += S::MR) score_block<S, F, N>(panel, t, i);
}
template <class S, int N>
static void score_part_of(unsigned features, ForwardPanel<S>& panel, const ForwardTile<S>& t) {
  switch (features & VARIANTS) {
    case 0: return score_part<S, 0, N>(panel, t);
    case 1: return score_part<S, 1, N>(panel, t);
    case 2: return score_part<S, 2, N>(panel, t);
    case 3: return score_part<S, 3, N>(panel, t);
    case 4: return score_part<S, 4, N>(panel, t);
    case 5: return score_part<S, 5, N>(panel, t);
    case 6: return score_part<S, 6, N>(panel, t);
    default: return score_part<S, 7, N>(panel, t);
  }
}
// Vectors of the smallest part. Where a panel has two, one alone has too few sums to fill the pipes (nothing gained on AVX2).
template <class S>
constexpr int LEAST_PART = S::NV > 2 ? 1 : S::NV;
// On the diagonal a tile falls into parts: the last rows are seen by the last N vectors of a panel alone, since a later row of queries
// never sees less. The sums of the others stay as they are, which is what adding zeros would do.
template <class S, int N>
FA_FN int part_end(const ForwardPanel<S>& panel, const ForwardTile<S>& t) {
  const int seen = panel.end[Panel<S>::LANES - (N - 1) * S::W - 1] - t.key;  // by the first of the N vectors
  return N == LEAST_PART<S> || seen >= t.to ? t.to : max(t.from, round_up(max(seen, 0), S::MR));
}
template <class S, int N>
static void score_tile(unsigned features, ForwardPanel<S>& panel, ForwardTile<S> t) {
  const int end = t.to;
  t.to = part_end<S, N>(panel, t);
  if (t.to > t.from) score_part_of<S, N>(features, panel, t);
  if constexpr (N > LEAST_PART<S>) {
    t.from = t.to;
    t.to = end;
    if (t.from < end) score_tile<S, N - 1>(features, panel, t);
  }
}
template <class S, int N>
static void output_tile(const ForwardPanel<S>& panel, ForwardTile<S> t, const typename S::Lane* v, long v_pitch) {
  constexpr int LANES = Panel<S>::LANES, L0 = LANES - N * S::W;
  const int end = t.to, row = t.from / S::STEP;
  t.to = part_end<S, N>(panel, t);
  if (t.to > t.from) {
    update_rows<S, N>(t.value_dim, t.out + L0, LANES, v + row * v_pitch, v_pitch, t.p + row * LANES + L0, LANES, (t.to - t.from) / S::STEP);
  }
  if constexpr (N > LEAST_PART<S>) {
    t.from = t.to;
    t.to = end;
    if (t.from < end) output_tile<S, N - 1>(panel, t, v, v_pitch);
  }
}
// Dropped probabilities become 0; what is kept is scaled at the end, with 1 / sum.
template <class S>
__attribute__((noinline)) static void drop_tile(const ForwardPanel<S>& panel, const Job& job, const ForwardTile<S>& t) {
  constexpr int LANES = Panel<S>::LANES;
  decide<S>(panel, job, t.key, t.from, t.to,
            [&](int i, int j, Flags<S::W> keep) { S::keep_p(t.p + i / S::STEP * LANES + j * S::W, i % S::STEP, keep); });
}

// The packed tiles of a worker, a window over the keys of one kv head, and everything else a task needs.
template <class S>
struct ForwardScratch {
  using Lane = typename S::Lane;
  struct Owner {
    int sequence, head;  // one more than the sequence: the memory begins as zeros
  };
  Owner* owner;
  int* held;  // which tile a slot holds, -1: none
  Lane *k, *v, *q, *p;
  float *out, *bias;
  ForwardPanel<S>* panels;
  int slots;
  long k_pitch, v_pitch, q_rows, out_rows;
  size_t bytes;
};
template <class S>
FA_FN int forward_panels(const Params& p) {
  return max(2, min(FORWARD_ELEMENTS / max(p.dim, p.value_dim) / Panel<S>::LANES, FORWARD_PANELS));
}
template <class S>
static ForwardScratch<S> forward_scratch(const Job& job, void* base) {
  using Lane = typename S::Lane;
  constexpr int LANES = Panel<S>::LANES;
  const Params& p = job.params;
  const int depth = divide_up(p.dim, S::STEP), panels = forward_panels<S>(p);
  ForwardScratch<S> r;
  r.k_pitch = tile_pitch<S>(depth);
  r.v_pitch = tile_pitch<S>(p.value_dim);
  r.q_rows = round_up(depth, S::W);
  r.out_rows = round_up(p.value_dim, S::W);
  const Int64 k_tile = FORWARD_KEYS * r.k_pitch, v_tile = FORWARD_KEYS / S::STEP * r.v_pitch;
  const Int64 fit = FORWARD_PACKED_BYTES / (static_cast<Int64>(sizeof(Lane)) * (k_tile + v_tile));
  r.slots = max(1, min(divide_up(p.mask.keys, FORWARD_KEYS), static_cast<int>(fit)));
  Scratch memory{static_cast<char*>(base)};
  r.owner = memory.take<typename ForwardScratch<S>::Owner>(1);
  r.held = memory.take<int>(r.slots);
  r.panels = memory.take<ForwardPanel<S>>(panels);
  r.q = memory.take<Lane>(panels * r.q_rows * LANES);
  r.out = memory.take<float>(panels * r.out_rows * LANES);
  r.p = memory.take<Lane>(FORWARD_KEYS / S::STEP * LANES);
  r.bias = memory.take<float>((job.features & BIAS) != 0 ? FORWARD_KEYS * LANES : 0);
  r.k = memory.take<Lane>(r.slots * k_tile);
  r.v = memory.take<Lane>(r.slots * v_tile);
  r.bytes = memory.used;
  return r;
}

// Keys [first, first + n) as rows of tiles, V in STEP rows a lane; zeros for keys outside `seen`, which no query of the sequence sees
// and which may hold anything.
template <class S, class T>
static void pack_tile(const KeyRows<T>& k, const KeyRows<T>& v, const Params& p, int first, int n, Interval<int> seen,
                      typename S::Lane* k_tile, long k_pitch, typename S::Lane* v_tile, long v_pitch) {
  using V = typename S::F;
  for (int i = 0; i < n; i += S::STEP) {
    const T* value[S::STEP];
    for (int a = 0; a < S::STEP; a++) {
      const int key = first + i + a;
      const bool in = key >= seen.first && key < seen.end;
      value[a] = in ? v.at(key) : nullptr;
      const T* row = in ? k.at(key) : nullptr;
      typename S::Lane* to = k_tile + (i + a) * k_pitch;
      for (int t = 0; t * S::STEP < p.dim; t += S::W) S::store_lanes(to + t, in ? row_lanes<S>(row, t * S::STEP, p.dim) : V(0.0f));
    }
    const T *x = value[0], *y = value[S::STEP - 1];
    typename S::Lane* to = v_tile + i / S::STEP * v_pitch;
    for (int t = 0; t < p.value_dim; t += S::W) {
      S::store_p(to + t, x != nullptr ? widen_lanes<S>(x, t, p.value_dim) : V(0.0f),
                 y != nullptr ? widen_lanes<S>(y, t, p.value_dim) : V(0.0f));
    }
  }
}
// Q^T of a panel, [depth][lane]; lanes past n repeat the last row.
template <class S, class T>
static void load_queries(const Job& job, const Sequence& s, int kv_head, int row, int n, typename S::Lane* q) {
  constexpr int LANES = Panel<S>::LANES, W = S::W;
  const Params& p = job.params;
  for (int l = 0; l < LANES; l += W) {
    const T* from[W];
    for (int a = 0; a < W; a++) {
      const int r = row + min(l + a, n - 1);
      from[a] = array_of<const T>(job, Role::q) + row_offset(p.q, s, r / p.group, kv_head * p.group + r % p.group);
    }
    for (int t = 0; t * S::STEP < p.dim; t += W) {
      typename S::F x[W];
      UNROLL
      for (int a = 0; a < W; a++) {
        x[a] = row_lanes<S>(from[a], t * S::STEP, p.dim);
      }
      S::transpose(x);
      UNROLL
      for (int a = 0; a < W; a++) S::store_lanes(q + (t + a) * LANES + l, x[a]);
    }
  }
}
// O = O^T / sum and the log-sum-exp of n rows of a panel.
template <class S, class Out>
static void finish(const Job& job, const Sequence& s, int kv_head, int row, int n, const ForwardPanel<S>& panel, const float* out) {
  using V = typename S::F;
  constexpr int LANES = Panel<S>::LANES, W = S::W;
  const Params& p = job.params;
  float* lse = array_of<float>(job, Role::lse);
  const void* sinks = (job.features & SINK) != 0 ? array_of<const void>(job, Role::sink) : nullptr;
  for (int l = 0; l < n; l += W) {
    const int m = min(W, n - l);
    const V sum = S::load(panel.sum + l);
    Softmax<V> state{select(sum == V(0.0f), V(no_maximum()), V(0.0f) - S::load(panel.minus_reference + l)), sum};
    V factor((job.features & DROPOUT) != 0 ? p.keep_scale : 1.0f);
    if (sinks != nullptr) {
      V sink(0.0f);
      for (int a = 0; a < W; a++) sink.x[a] = element<S>(sinks, job.sink_dtype, kv_head * p.group + (row + l + a) % p.group);
      const Softmax<V> before = state;
      state = add_sink(before, sink);
      factor = factor * rescale(before.max, state.max);
    }
    factor = factor * inverse_sum(state);
    const V natural = log_sum_exp(state);
    Out* to[W];
    for (int a = 0; a < m; a++) {
      const int position = (row + l + a) / p.group, head = kv_head * p.group + (row + l + a) % p.group;
      to[a] = array_of<Out>(job, Role::out) + row_offset(p.out, s, position, head);
      if (lse != nullptr) lse[s.lse_base + head * p.lse_head + position] = natural.x[a];
    }
    for (int t = 0; t < p.value_dim; t += W) {
      V x[W];
      UNROLL
      for (int a = 0; a < W; a++) x[a] = S::load(out + (t + a) * LANES + l) * factor;
      S::transpose(x);
      for (int a = 0; a < m; a++) narrow_lanes<S>(to[a], t, p.value_dim, x[a]);
    }
  }
}

template <class S, class T>
static void forward(const Job& job, const Task& task, void* memory) {
  constexpr int LANES = Panel<S>::LANES;
  const Params& p = job.params;
  const Sequence& s = job.sequences[task.sequence];
  const ForwardScratch<S> w = forward_scratch<S>(job, memory);
  const int n = task.end - task.first, panels = divide_up(n, LANES);
  if (w.owner->sequence != task.sequence + 1 || w.owner->head != task.head) {
    *w.owner = {task.sequence + 1, task.head};
    for (int i = 0; i < w.slots; i++) w.held[i] = -1;
  }

  for (int i = 0; i < panels; i++) {
    ForwardPanel<S>& panel = w.panels[i];
    const int row = task.first + i * LANES, count = min(LANES, n - i * LANES);
    for (int l = 0; l < LANES; l++) panel.minus_reference[l] = panel.sum[l] = 0.0f;
    panel.waiting = true;
    set_rows<S>(panel, job, s, task.head * p.group, p.group, row, count);
    load_queries<S, T>(job, s, task.head, row, count, w.q + i * w.q_rows * LANES);
  }
  __builtin_memset(w.out, 0, sizeof(float) * static_cast<size_t>(panels * w.out_rows * LANES));

  const Interval<int> keys = any_visible(s.mask, task.first / p.group, (task.end - 1) / p.group);
  const Interval<int> seen = any_visible(s.mask, 0, s.mask.rows - 1);
  const KeyRows<T> k = key_rows<T>(job, s, Role::k, p.k, task.head), v = key_rows<T>(job, s, Role::v, p.v, task.head);
  // Tiles begin at multiples of their size: the order of every sum is then the same for all ways to cut rows into tasks.
  for (int first = keys.first / FORWARD_KEYS * FORWARD_KEYS; first < keys.end && !stopped(job); first += FORWARD_KEYS) {
    const int tile = first / FORWARD_KEYS, slot = tile % w.slots;
    typename S::Lane* k_tile = w.k + slot * FORWARD_KEYS * w.k_pitch;
    typename S::Lane* v_tile = w.v + slot * (FORWARD_KEYS / S::STEP) * w.v_pitch;
    if (w.held[slot] != tile) {
      w.held[slot] = tile;
      pack_tile<S, T>(k, v, p, first, round_up(min(FORWARD_KEYS, seen.end - first), S::MR), seen, k_tile, w.k_pitch, v_tile, w.v_pitch);
    }
    for (int i = 0; i < panels; i++) {
      ForwardPanel<S>& panel = w.panels[i];
      ForwardTile<S> t;
      const int low = max(panel.some.first - first, 0), high = min(panel.some.end - first, FORWARD_KEYS);
      if (high <= low) continue;
      t.k = k_tile;
      t.q = w.q + i * w.q_rows * LANES;
      t.bias = w.bias;
      t.p = w.p;
      t.out = w.out + i * w.out_rows * LANES;
      t.k_pitch = w.k_pitch;
      t.depth = divide_up(p.dim, S::STEP);
      t.value_dim = p.value_dim;
      t.key = first;
      t.from = t.begin = low / S::MR * S::MR;
      t.to = round_up(high, S::MR);
      t.clear_from = panel.all.first - first;
      t.clear_to = panel.all.end - first;
      t.score = p.score;
      if ((job.features & BIAS) != 0) load_bias<S>(panel, job, first, min(FORWARD_KEYS, s.mask.keys - first), w.bias);
      score_tile<S, S::NV>(job.features, panel, t);
      if ((job.features & DROPOUT) != 0) drop_tile<S>(panel, job, t);
      output_tile<S, S::NV>(panel, t, v_tile, w.v_pitch);
    }
  }

  for (int i = 0; i < panels; i++) {
    const int row = task.first + i * LANES, count = min(LANES, n - i * LANES);
    const float* out = w.out + i * w.out_rows * LANES;
    if (job.out_dtype == job.dtype) {
      finish<S, T>(job, s, task.head, row, count, w.panels[i], out);
    } else {
      finish<S, float>(job, s, task.head, row, count, w.panels[i], out);
    }
  }
}

template <class S>
static size_t forward_scratch_bytes(const Job& job) {
  return forward_scratch<S>(job, nullptr).bytes;
}
// Tall tasks reuse a packed tile more often, but every worker should get several.
template <class S>
static int forward_task_rows(const Job& job, int workers) {
  constexpr int LANES = Panel<S>::LANES;
  const Params& p = job.params;
  const Int64 heads = static_cast<Int64>(job.sequence_count) * p.kv_heads;
  int panels = forward_panels<S>(p);
  while (workers > 1 && panels * LANES > FORWARD_ROWS_MIN &&
         heads * divide_up(p.mask.rows * p.group, panels * LANES) < FORWARD_TASKS_PER_WORKER * workers) {
    panels /= 2;
  }
  return max(panels, 1) * LANES;
}
}  // namespace
}  // namespace fa::cpu
