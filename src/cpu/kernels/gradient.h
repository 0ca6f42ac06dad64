// What the two gradient kernels share: a block of rows with its Q and dO, and P and dS of one panel against one tile of keys.
//   P^T  = exp2(score(K Q^T) - lse)         one subtraction and exp2 where no feature changes the score
//   dS^T = P^T (kept (V dO^T) - delta)      accumulators start at -delta where nothing is dropped, delta = rowsum(dO * O) - dlse
// Layout as in forward.h: rows in the lanes, keys along the tile. Where a lane holds STEP values (words.h), they are neighbours along
// what a product sums: elements for the two above, rows for dV and dK, keys for dQ. P and dS are rounded when they become lanes.
#pragma once
#include "cpu/kernels/panel.h"

namespace fa::cpu {
namespace {

template <class S>
struct GradientPanel : Panel<S> {
  alignas(64) float minus_lse[Panel<S>::LANES];        // log2 units; a huge negative number where P shall be 0
  alignas(64) float minus_remainder[Panel<S>::LANES];  // of minus_lse, after rounding
  alignas(64) float minus_delta[Panel<S>::LANES];
};

// P and dS as the products after them read them.
template <class S>
struct Gradients {
  typename S::Lane *p, *ds;   // [tile row][row / STEP]
  typename S::Lane* ds_keys;  // [tile row / STEP][row]; the same as ds where STEP is 1
};

// One panel against one tile, rows [from, to) of the tile of which [clear_from, clear_to) are seen by every lane.
template <class S>
struct GradientTile {
  const typename S::Lane *k, *v;     // [tile row][element / STEP]
  const typename S::Lane *q, *dout;  // transposed, [element / STEP][lane]
  const float* bias;                 // [tile row][lane]
  const float* kept;                 // 0 or 1 / (1 - p), [tile row][lane]; null without dropout
  Gradients<S> out;
  bool slopes;  // dS shall be that of scale * (Q K): include the slope of softcap
  long k_pitch, v_pitch;
  int depth, value_depth;  // lanes of a row of K and of V
  int key;                 // of row 0
  int from, to, clear_from, clear_to;
  ScoreT<float> score;
};

// Where MR keys of a tile are kept as floats until dS is known: in the tile itself if its lanes are floats.
FA_FN float* floats_of(float* tile, float*) { return tile; }
FA_FN float* floats_of(unsigned*, float* block) { return block; }

// P of MR keys and, with softcap, its slopes: [key][lane].
template <class S, unsigned F>
FA_FN void probabilities(const GradientPanel<S>& panel, const GradientTile<S>& t, int i0, float* p, float* slopes) {
  using V = typename S::F;
  constexpr int MR = S::MR, NV = S::NV, W = S::W, LANES = Panel<S>::LANES;
  V c[MR][NV];
  // the same sums in the same order as in the forward pass: their rounding errors are those that lse contains
  products<S>(c, t.k + i0 * t.k_pitch, t.k_pitch, t.q, LANES, t.depth);
  const V unit(score_unit<F>(t.score));
  UNROLL
  for (int j = 0; j < NV; j++) {
    const V lse = S::load(panel.minus_lse + j * W), remainder = S::load(panel.minus_remainder + j * W);
    const V slope = S::load(panel.slope + j * W);
    const typename S::I diagonal = S::load(panel.diagonal + j * W);
    UNROLL
    for (int i = 0; i < MR; i++) {
      const V distance = (F & ALIBI) != 0 ? to_float(abs(diagonal - typename S::I(t.key + i0 + i))) : V(0.0f);
      const V bias = (F & BIAS) != 0 ? S::load(t.bias + (i0 + i) * LANES + j * W) : V(0.0f);
      if constexpr ((F & SOFTCAP) != 0) S::store(slopes + i * LANES + j * W, score_slope<F>(c[i][j], t.score));
      c[i][j] = fma(score<F>(c[i][j], t.score, slope, distance, bias), unit, lse) + remainder;
    }
  }
  if (i0 < t.clear_from || i0 + MR > t.clear_to) hide<S, MR>(c, panel, t.key + i0);
  UNROLL
  for (int i = 0; i < MR; i += 2) {
    V e[2 * NV];
    UNROLL
    for (int j = 0; j < NV; j++) {
      e[2 * j] = c[i][j];
      e[2 * j + 1] = c[i + 1][j];
    }
    exp2_of(e);
    UNROLL
    for (int j = 0; j < NV; j++) {
      S::store(p + i * LANES + j * W, e[2 * j]);
      S::store(p + (i + 1) * LANES + j * W, e[2 * j + 1]);
    }
  }
}
// dS of MR keys, from their P and slopes; with dropout, P becomes what multiplied V.
template <class S, bool DROPS, bool SLOPES>
FA_FN void score_gradients(const GradientPanel<S>& panel, const GradientTile<S>& t, int i0, const float* probability, const float* slopes) {
  using V = typename S::F;
  constexpr int MR = S::MR, NV = S::NV, W = S::W, LANES = Panel<S>::LANES, STEP = S::STEP;
  static_assert(MR % STEP == 0 && NV % STEP == 0);
  V c[MR][NV];
  UNROLL
  for (int j = 0; j < NV; j++) {
    const V start = DROPS ? V(0.0f) : S::load(panel.minus_delta + j * W);
    UNROLL
    for (int i = 0; i < MR; i++) c[i][j] = start;
  }
  accumulate<S, MR, NV>(c, t.v + i0 * t.v_pitch, t.v_pitch, 1, t.dout, LANES, t.value_depth);
  UNROLL
  for (int i = 0; i < MR; i++) {
    UNROLL
    for (int j = 0; j < NV; j++) {
      const long at = i * LANES + j * W, to = ((i0 + i) * LANES + j * W) / STEP;
      V p = S::load(probability + at), ds = p * c[i][j];
      if constexpr (DROPS) {
        const V kept = S::load(t.kept + (i0 + i) * LANES + j * W);
        ds = score_gradient(p, kept, c[i][j], V(0.0f) - S::load(panel.minus_delta + j * W));
        p = p * kept;
      }
      if constexpr (SLOPES) ds = ds * S::load(slopes + at);
      if constexpr (DROPS || STEP > 1) S::store_along(t.out.p + to, p);
      S::store_along(t.out.ds + to, ds);
      c[i][j] = ds;
    }
  }
  if constexpr (STEP > 1) {
    UNROLL
    for (int i = 0; i < MR; i += STEP) {
      UNROLL
      for (int j = 0; j < NV; j++) S::store_p(t.out.ds_keys + (i0 + i) / STEP * LANES + j * W, c[i][j], c[i + STEP - 1][j]);
    }
  }
}
template <class S, unsigned F>
static void gradient_tile(const GradientPanel<S>& panel, const GradientTile<S>& t) {
  constexpr int LANES = Panel<S>::LANES;
  alignas(64) float p_block[S::MR * LANES], slope_block[S::MR * LANES];
  for (int i = t.from; i < t.to; i += S::MR) {
    float *p = floats_of(t.out.p + i * LANES / S::STEP, p_block), *slopes = floats_of(t.out.ds + i * LANES / S::STEP, slope_block);
    probabilities<S, F>(panel, t, i, p, slopes);
    if constexpr ((F & SOFTCAP) != 0) {
      if (t.slopes) {
        if (t.kept != nullptr) {
          score_gradients<S, true, true>(panel, t, i, p, slopes);
        } else {
          score_gradients<S, false, true>(panel, t, i, p, slopes);
        }
        continue;
      }
    }
    if (t.kept != nullptr) {
      score_gradients<S, true, false>(panel, t, i, p, slopes);
    } else {
      score_gradients<S, false, false>(panel, t, i, p, slopes);
    }
  }
}
template <class S>
__attribute__((noinline)) static void gradient_tile_of(unsigned features, const GradientPanel<S>& panel, const GradientTile<S>& t) {
  switch (features & VARIANTS) {
    case 0: return gradient_tile<S, 0>(panel, t);
    case 1: return gradient_tile<S, 1>(panel, t);
    case 2: return gradient_tile<S, 2>(panel, t);
    case 3: return gradient_tile<S, 3>(panel, t);
    case 4: return gradient_tile<S, 4>(panel, t);
    case 5: return gradient_tile<S, 5>(panel, t);
    case 6: return gradient_tile<S, 6>(panel, t);
    default: return gradient_tile<S, 7>(panel, t);
  }
}
template <class S>
__attribute__((noinline)) static void kept_tile(const Panel<S>& panel, const Job& job, int key, int from, int to, float* kept) {
  using V = typename S::F;
  const V scale(job.params.keep_scale);
  decide<S>(panel, job, key, from, to,
            [&](int i, int j, Flags<S::W> keep) { S::store(kept + i * Panel<S>::LANES + j * S::W, select(keep, scale, V(0.0f))); });
}

// The rows that a gradient kernel works on together.
template <class S>
struct RowBlock {
  int panels;           // at most
  long dim, value_dim;  // rounded up to whole panels
  GradientPanel<S>* panel;
  typename S::Lane *q, *dout;            // transposed: [panel][element / STEP][lane]
  typename S::Lane *q_rows, *dout_rows;  // by columns: [element / LANES][row / STEP][element % LANES]; null where not wanted
  float *bias, *kept;                    // [tile row][lane], of one panel
  FA_INLINE int rows() const { return panels * Panel<S>::LANES; }
};
template <class S>
static RowBlock<S> take_row_block(const Job& job, Scratch& memory, bool with_rows) {
  using Lane = typename S::Lane;
  constexpr int LANES = Panel<S>::LANES;
  const Params& p = job.params;
  RowBlock<S> b;
  b.panels = max(2, min(BACKWARD_ELEMENTS / max(p.dim, p.value_dim) / LANES, BACKWARD_PANELS));
  b.dim = round_up(p.dim, LANES);
  b.value_dim = round_up(p.value_dim, LANES);
  b.panel = memory.take<GradientPanel<S>>(b.panels);
  const Int64 q_lanes = b.rows() * b.dim / S::STEP, dout_lanes = b.rows() * b.value_dim / S::STEP;
  b.q = memory.take<Lane>(q_lanes);
  b.dout = memory.take<Lane>(dout_lanes);
  b.q_rows = with_rows ? memory.take<Lane>(q_lanes) : nullptr;
  b.dout_rows = with_rows ? memory.take<Lane>(dout_lanes) : nullptr;
  b.bias = memory.take<float>((job.features & BIAS) != 0 ? BACKWARD_KEYS * LANES : 0);
  b.kept = memory.take<float>((job.features & DROPOUT) != 0 ? BACKWARD_KEYS * LANES : 0);
  return b;
}

// W rows of Q or dO, from lane `lane` of the block on: transposed, and as they are by columns.
template <class S, class T>
static void load_lanes_of(const T* const (&row)[S::W], int n, int dim, typename S::Lane* transposed, typename S::Lane* columns,
                          int block_rows, int lane) {
  using V = typename S::F;
  constexpr int LANES = Panel<S>::LANES, W = S::W, STEP = S::STEP;
  for (int t = 0; t < dim; t += W * STEP) {
    V x[W];
    UNROLL
    for (int a = 0; a < W; a++) x[a] = row[a] != nullptr ? row_lanes<S>(row[a], t, n) : V(0.0f);
    if (columns != nullptr) {
      typename S::Lane* to = columns + (static_cast<long>(t / LANES) * block_rows + lane) / STEP * LANES + t % LANES;
      UNROLL
      for (int a = 0; a < W; a += STEP) {
        UNROLL
        for (int part = 0; part < STEP; part++) {
          S::store_lanes(to + a / STEP * LANES + part * W, S::across(x[a], x[a + STEP - 1], part));
        }
      }
    }
    S::transpose(x);
    typename S::Lane* to = transposed + (static_cast<long>(lane / LANES) * dim + t) / STEP * LANES + lane % LANES;
    UNROLL
    for (int a = 0; a < W; a++) S::store_lanes(to + a * LANES, x[a]);
  }
}
// Rows [row, row + n) of the heads [head0, head0 + group). Rows past n, and rows that saw nothing, are zeros with P = 0.
template <class S, class T>
static void load_rows(const Job& job, const Sequence& s, int head0, int group, int row, int n, const RowBlock<S>& b) {
  constexpr int LANES = Panel<S>::LANES, W = S::W;
  const Params& p = job.params;
  const float* lses = array_of<const float>(job, Role::lse);
  const float* deltas = array_of<const float>(job, Role::delta);
  for (int first = 0; first < n; first += LANES) {
    GradientPanel<S>& panel = b.panel[first / LANES];
    set_rows<S>(panel, job, s, head0, group, row + first, min(LANES, n - first));
    for (int l = 0; l < LANES; l += W) {
      const T *q[W], *dout[W];
      for (int a = 0; a < W; a++) {
        const int r = first + l + a, position = (row + r) / group, head = head0 + (row + r) % group;
        const Int64 at = s.lse_base + head * p.lse_head + position;
        const bool in = r < n && !(lses[at] <= -1e30f);  // NaN is in
        q[a] = in ? array_of<const T>(job, Role::q) + row_offset(p.q, s, position, head) : nullptr;
        dout[a] = in ? array_of<const T>(job, Role::dout) + row_offset(p.dout, s, position, head) : nullptr;
        const float lse = in ? lses[at] : minus_infinity();
        panel.minus_lse[l + a] = -lse_reference(lse);
        panel.minus_remainder[l + a] = -lse_remainder(lse);
        panel.minus_delta[l + a] = in ? -deltas[at] : 0.0f;
      }
      load_lanes_of<S, T>(q, p.dim, static_cast<int>(b.dim), b.q, b.q_rows, b.rows(), first + l);
      load_lanes_of<S, T>(dout, p.value_dim, static_cast<int>(b.value_dim), b.dout, b.dout_rows, b.rows(), first + l);
    }
  }
}

// P and dS of panel i of the block against keys [key, key + keys) of a tile: its rows [from, to). False: no lane sees any of them.
template <class S>
FA_FN bool gradient_of_panel(const Job& job, const Sequence& s, const RowBlock<S>& b, int i, const typename S::Lane* k, long k_pitch,
                             const typename S::Lane* v, long v_pitch, int key, int keys, const Gradients<S>& out, bool slopes, int& from,
                             int& to) {
  constexpr int LANES = Panel<S>::LANES, STEP = S::STEP;
  const GradientPanel<S>& panel = b.panel[i];
  const int low = max(panel.some.first - key, 0), high = min(panel.some.end - key, keys);
  from = to = 0;
  if (high <= low) return false;
  from = low / S::MR * S::MR;
  to = round_up(high, S::MR);
  GradientTile<S> t;
  t.k = k;
  t.v = v;
  t.q = b.q + i * b.dim / STEP * LANES;
  t.dout = b.dout + i * b.value_dim / STEP * LANES;
  t.bias = b.bias;
  t.kept = (job.features & DROPOUT) != 0 ? b.kept : nullptr;
  t.out = out;
  t.slopes = slopes;
  t.k_pitch = k_pitch;
  t.v_pitch = v_pitch;
  t.depth = divide_up(job.params.dim, STEP);
  t.value_depth = divide_up(job.params.value_dim, STEP);
  t.key = key;
  t.from = from;
  t.to = to;
  t.clear_from = panel.all.first - key;
  t.clear_to = panel.all.end - key;
  t.score = job.params.score;
  if ((job.features & BIAS) != 0) load_bias<S>(panel, job, key, min(BACKWARD_KEYS, s.mask.keys - key), b.bias);
  if ((job.features & DROPOUT) != 0) kept_tile<S>(panel, job, key, from, to, b.kept);
  gradient_tile_of<S>(job.features, panel, t);
  return true;
}

// Keys [first, first + n) of K or V as rows of STEP elements a lane and, where wanted, across: one element of STEP keys a lane. Zeros
// outside `seen`, which no query of the sequence sees.
template <class S, class T>
static void pack_keys(const KeyRows<T>& rows, int dim, int first, int n, Interval<int> seen, typename S::Lane* to, long pitch,
                      typename S::Lane* across, long across_pitch) {
  constexpr int W = S::W, STEP = S::STEP;
  for (int i = 0; i < n; i += STEP) {
    const T* row[STEP];
    for (int a = 0; a < STEP; a++) {
      const int key = first + i + a;
      const bool in = key >= seen.first && key < seen.end;
      row[a] = in ? rows.at(key) : nullptr;
    }
    for (int t = 0; t < dim; t += W * STEP) {
      typename S::F x[STEP];
      UNROLL
      for (int a = 0; a < STEP; a++) {
        x[a] = row[a] != nullptr ? row_lanes<S>(row[a], t, dim) : typename S::F(0.0f);
        S::store_lanes(to + (i + a) * pitch + t / STEP, x[a]);
      }
      if (across == nullptr) continue;
      for (int part = 0; part < STEP && t + part * W < dim; part++) {
        S::store_lanes(across + i / STEP * across_pitch + t + part * W, S::across(x[0], x[STEP - 1], part));
      }
    }
  }
}
}  // namespace
}  // namespace fa::cpu
