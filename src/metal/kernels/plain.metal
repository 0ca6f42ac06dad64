// Attention as semantics/ says it: one row (or key, or element of the bias) a simdgroup, key after key. Slow and obvious: it takes every
// call, and the fast kernels are compared with it when they first meet a new GPU.
// Tile     one row. Who: a simdgroup; lane l holds elements l, l + 32, ... of the head dimension.
// Memory   registers only; rows are read element by element, with any strides.
// Speed    bound by the sum over lanes of every product.
#pragma once
#include "semantics/softmax.h"
#include "words/where.metal"
namespace fa {
constant constexpr const unsigned F = FA_F;
constant constexpr const int SIMDGROUPS = FA_SIMDGROUPS;  // rows a threadgroup
template <int N>
struct Piece {
  float x[(N + 31) / 32];
};
typedef Piece<FA_DIM> DimPiece;
typedef Piece<FA_VALUE_DIM> ValuePiece;

template <int N>
FA_FN Piece<N> zero_piece() {
  Piece<N> piece;
  for (int t = 0; t < (N + 31) / 32; t++) {
    piece.x[t] = 0.0f;
  }
  return piece;
}
template <int N, class P>
FA_FN Piece<N> load_piece(P array, Int64 at, Int64 step, int dim, Place place) {
  Piece<N> piece = zero_piece<N>();
  for (int t = 0; t < (N + 31) / 32; t++) {
    const int d = 32 * t + int(place.lane);
    if (d < dim) {
      piece.x[t] = float(array[at + d * step]);
    }
  }
  return piece;
}
template <int N, class T>
FA_FN void store_piece(device T* array, Int64 at, int dim, Place place, Piece<N> piece) {
  for (int t = 0; t < (N + 31) / 32; t++) {
    const int d = 32 * t + int(place.lane);
    if (d < dim) {
      array[at + d] = T(piece.x[t]);
    }
  }
}
template <int N>
FA_FN float product(Piece<N> a, Piece<N> b) {
  float sum = 0.0f;
  for (int t = 0; t < (N + 31) / 32; t++) {
    sum += a.x[t] * b.x[t];
  }
  return simd_sum(sum);
}
template <int N>
FA_FN Piece<N> scaled(Piece<N> a, float factor) {
  for (int t = 0; t < (N + 31) / 32; t++) {
    a.x[t] = a.x[t] * factor;
  }
  return a;
}
template <int N>
FA_FN Piece<N> add_scaled(Piece<N> a, float weight, Piece<N> b) {
  for (int t = 0; t < (N + 31) / 32; t++) {
    a.x[t] = fma(weight, b.x[t], a.x[t]);
  }
  return a;
}

// The score of one element; hidden() where the bias hides its key.
template <class Bias>
FA_FN float element_score(ParamsPointer p, Sequence s, Head h, Bias bias, float dot, int row, int key) {
  float b = 0.0f;
  if constexpr ((F & BIAS) != 0) {
    b = bias_at(bias, h.bias + row * p->bias.row + key * p->bias.key);
  }
  return score<F>(dot, score_numbers(p), h.slope, float(abs(row + s.mask.shift - key)), b);
}
FA_FN bool hides(float score) {
  if constexpr ((F & BIAS) != 0) {
    return score == hidden();
  }
  return false;
}
// what dropout multiplies a probability by
FA_FN bool kept(ParamsPointer p, Seed seed, Head h, int row, int key) {
  if constexpr ((F & DROPOUT) != 0) {
    return keeps(Dropout{p->dropout.threshold}, seed, h.stream, unsigned(row + p->q_offset), unsigned(key + p->k_offset));
  }
  return true;
}

template <class Q, class K, class V, class Out, class Lse, class SeedArray, class Slopes, class Bias, class Sink, class P, class SQ,
          class SK, class SV>
FA_FN void forward_plain(Place place, ParamsPointer p, Q q, K k, V v, Out out, Lse lse, SeedArray seed_array, Slopes slopes, Bias bias,
                         Sink sink, P places, SQ sq, SK sk, SV sv) {
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const Head h = head_of(p, s, int(place.group.y), slopes);
  const RowStrides qs = row_strides(p->q, sq, IS_PACKED), ks = row_strides(p->k, sk, IS_PACKED && !IS_PAGED);
  const RowStrides vs = row_strides(p->v, sv, IS_PACKED && !IS_PAGED);
  const Strides outs = copy_strides(p->out);
  const Seed seed = seed_of(seed_array);
  const float unit = score_unit<F>(score_numbers(p));
  const int step = SIMDGROUPS * int(place.groups.x);
  for (int i = int(place.group.x) * SIMDGROUPS + place.simdgroup; i < s.row_slots; i += step) {
    Softmax<float> state = Softmax<float>{no_maximum(), 0.0f};
    ValuePiece sum = zero_piece<FA_VALUE_DIM>();
    if (i < s.mask.rows) {
      const DimPiece row = load_piece<FA_DIM>(q, row_offset(qs.rows, s, i, h.head), qs.step, p->dim, place);
      const Interval<int> keys = visible_keys(s.mask, i);
      for (int j = keys.first; j < keys.end; j++) {
        const Int64 at = key_offset(ks.rows, s, p->page_size, places.pages, j, h.kv_head);
        const float dot = product<FA_DIM>(row, load_piece<FA_DIM>(k, at, ks.step, p->dim, place));
        const float x = element_score(p, s, h, bias, dot, i, j);
        if (!hides(x)) {
          const Softmax<float> next = advance(state, x * unit);
          const float e = probability(x, unit, next.max);
          sum = scaled<FA_VALUE_DIM>(sum, rescale(state.max, next.max));
          state = Softmax<float>{next.max, next.sum + e};
          if (kept(p, seed, h, i, j)) {
            const Int64 from = key_offset(vs.rows, s, p->page_size, places.pages, j, h.kv_head);
            sum = add_scaled<FA_VALUE_DIM>(sum, e, load_piece<FA_VALUE_DIM>(v, from, vs.step, p->value_dim, place));
          }
        }
      }
      if constexpr ((F & SINK) != 0) {
        const float old_max = state.max;
        state = add_sink(state, float_at(sink, h.head));
        sum = scaled<FA_VALUE_DIM>(sum, rescale(old_max, state.max));
      }
      sum = scaled<FA_VALUE_DIM>(sum, inverse_sum(state) * ((F & DROPOUT) != 0 ? p->keep_scale : 1.0f));
    }
    store_piece<FA_VALUE_DIM>(out, row_offset(outs, s, i, h.head), p->value_dim, place, sum);
    if (place.lane == 0) {
      lse[h.lse + i] = log_sum_exp(state);
    }
  }
}
}  // namespace fa
#define FA_ENTRY_forward_plain(lane, simdgroup, group, groups)                                                                             \
  fa::forward_plain(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, FA_ARRAY_OUT, \
                    FA_ARRAY_LSE, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_ARRAY_SINK, FA_PLACES, FA_STRIDES_Q, FA_STRIDES_K,     \
                    FA_STRIDES_V)
