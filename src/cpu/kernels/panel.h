// A panel: NV * W rows of one kv head, one in each lane, and the stations of a kernel that look at rows: which keys a lane sees, its
// ALiBi slope, its tile of attn_bias, its dropout. A *row* is (position, member of the group): row = position * group + member, so the
// heads of a group share their K and V without special code, and neighbouring lanes see nearly the same keys.
#pragma once
#include "cpu/kernels/words.h"
#include "semantics/softmax.h"

namespace fa::cpu {
namespace {

// The features that make variants of a kernel. NATURAL makes none: the scale is in the unit, of either sign, and keys are hidden
// after it.
constexpr unsigned VARIANTS = SOFTCAP | ALIBI | BIAS;

template <class S>
struct Panel {
  static constexpr int LANES = S::NV * S::W;
  alignas(64) int before[LANES], end[LANES];  // the lane sees keys before < key < end
  alignas(64) int diagonal[LANES];            // position + shift: the key at distance 0
  alignas(64) float slope[LANES];             // ALiBi
  alignas(64) unsigned drop_row[LANES], drop_head[LANES];
  Int64 bias[LANES];   // where the lane's row of attn_bias begins
  bool one_bias;       // the same row for all lanes
  bool same[S::NV];    // dropout: this vector's counters are those of the vector before, so its Philox words serve both
  Interval<int> some;  // keys that some lane sees
  Interval<int> all;   // keys that every lane sees
};

// Rows [row, row + n) of a kv head; lanes past n repeat the last one. `group`: heads that share a position, from head0 on (1 when
// rows are those of one query head).
template <class S>
static void set_rows(Panel<S>& panel, const Job& job, const Sequence& s, int head0, int group, int row, int n) {
  constexpr int LANES = Panel<S>::LANES;
  const Params& p = job.params;
  const float* slopes = array_of<const float>(job, Role::slopes);
  panel.one_bias = true;
  int position = row / group, member = row % group;
  for (int l = 0; l < LANES; l++) {
    const int head = head0 + member;
    const Interval<int> keys = visible_keys(s.mask, position);
    panel.before[l] = keys.first - 1;
    panel.end[l] = keys.end;
    panel.diagonal[l] = position + s.mask.shift;
    panel.slope[l] = (job.features & ALIBI) != 0 ? slopes[s.index * p.slopes_batch + head] : 0.0f;
    panel.drop_row[l] = static_cast<unsigned>(position + p.q_offset);
    panel.drop_head[l] = static_cast<unsigned>(s.index * p.heads + head);
    panel.bias[l] = s.index * p.bias.batch + head * p.bias.head + position * p.bias.row;
    panel.one_bias = panel.one_bias && panel.bias[l] == panel.bias[0];
    if (l + 1 < n && ++member == group) {
      member = 0;
      position++;
    }
  }
  panel.some = any_visible(s.mask, row / group, position);
  panel.all = all_visible(s.mask, row / group, position);
  for (int j = 0; j < S::NV; j++) {
    panel.same[j] = j > 0;
    for (int l = j * S::W; panel.same[j] && l < (j + 1) * S::W; l++) {
      const unsigned a = panel.drop_row[l], b = panel.drop_row[l - S::W];
      panel.same[j] = a >> 4 == b >> 4 && (a & 7u) == (b & 7u) && panel.drop_head[l] == panel.drop_head[l - S::W];
    }
  }
}

// Score of hidden keys becomes hidden(): c[i][j] belongs to key + i and vector NV - N + j.
template <class S, int R, int N>
FA_FN void hide(typename S::F (&c)[R][N], const Panel<S>& panel, int key) {
  UNROLL
  for (int j = 0; j < N; j++) {
    const int lane = (S::NV - N + j) * S::W;
    const typename S::I before = S::load(panel.before + lane), end = S::load(panel.end + lane);
    UNROLL
    for (int i = 0; i < R; i++) {
      const typename S::I here(key + i);
      c[i][j] = select((here > before) & (end > here), c[i][j], typename S::F(hidden()));
    }
  }
}

// attn_bias of keys [key, key + n) for every lane, as floats: tile[key][lane]. Along a broadcast axis the stride is 0.
template <class S, class B>
static void load_bias_rows(const Panel<S>& panel, const B* bias, Int64 step, int key, int n, float* tile) {
  constexpr int LANES = Panel<S>::LANES, W = S::W;
  for (int i = 0; i < n; i += W) {
    for (int l = 0; l < LANES; l += W) {
      typename S::F r[W];
      UNROLL
      for (int a = 0; a < W; a++) {
        const B* row = bias + panel.bias[l + a];
        if (step == 0) {
          const B one[W] = {*row};
          r[a] = typename S::F(S::widen(one).x[0]);
        } else {
          r[a] = widen_lanes<S>(row + key, i, n);
        }
        if (panel.one_bias) {
          UNROLL
          for (int b = 1; b < W; b++) r[b] = r[0];
          break;
        }
      }
      S::transpose(r);
      for (int a = 0; a < W && i + a < n; a++) S::store(tile + (i + a) * LANES + l, r[a]);
    }
  }
}
template <class S>
static void load_bias(const Panel<S>& panel, const Job& job, int key, int n, float* tile) {
  const void* bias = array_of<const void>(job, Role::bias);
  const Int64 step = job.params.bias.key;
  switch (job.bias_dtype) {
    case DType::f16: return load_bias_rows<S>(panel, static_cast<const Half*>(bias), step, key, n, tile);
    case DType::bf16: return load_bias_rows<S>(panel, static_cast<const Bf16*>(bias), step, key, n, tile);
    case DType::f32: return load_bias_rows<S>(panel, static_cast<const float*>(bias), step, key, n, tile);
    default: return load_bias_rows<S>(panel, static_cast<const Bool*>(bias), step, key, n, tile);
  }
}

// Dropout's decisions for rows [from, to) of a tile whose row 0 is key `key`, a vector at a time: use(i, j, keep) for tile row i and
// vector j. One Philox call decides four keys of a lane, and of the vector before where the counters are the same.
template <class S, class Use>
FA_FN void decide(const Panel<S>& panel, const Job& job, int key, int from, int to, Use use) {
  using U = typename S::U;
  const int origin = key + job.params.k_offset;
  for (int block = (origin + from) & ~31; block < origin + to; block += 32) {
    for (int k = 0; k < 8; k++) {
      Words<U> words;
      for (int j = 0; j < S::NV; j++) {
        const U row = S::load(panel.drop_row + j * S::W);
        if (!panel.same[j]) words = dropout_words(job.seed, S::load(panel.drop_head + j * S::W), row, U(static_cast<unsigned>(block + k)));
        UNROLL
        for (int quarter = 0; quarter < 4; quarter++) {
          const int i = block + k + 8 * quarter - origin;
          if (i < from || i >= to) continue;
          // Of the key, the bits depend on (key / 8) % 4 alone.
          use(i, j, dropout_bits(words, row, U(8u * static_cast<unsigned>(quarter))) < U(job.params.dropout.threshold));
        }
      }
    }
  }
}

// One element of a small float array of any dtype.
template <class S>
static float element(const void* data, DType dtype, int index) {
  if (dtype == DType::f32) return static_cast<const float*>(data)[index];
  if (dtype == DType::f16) {
    const Half one[S::W] = {static_cast<const Half*>(data)[index]};
    return S::widen(one).x[0];
  }
  const Bf16 one[S::W] = {static_cast<const Bf16*>(data)[index]};
  return S::widen(one).x[0];
}
}  // namespace
}  // namespace fa::cpu
