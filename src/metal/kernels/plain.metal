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

// The score of a row that is loaded and a key that is not.
template <class K, class Bias, class P>
FA_FN float score_of_key(Place place, ParamsPointer p, Sequence s, Head h, DimPiece row, K k, RowStrides ks, P places, Bias bias, int i,
                         int j) {
  const Int64 at = key_offset(ks.rows, s, p->page_size, places.pages, j, h.kv_head);
  const float dot = product<FA_DIM>(row, load_piece<FA_DIM>(k, at, ks.step, p->dim, place));
  return element_score(p, s, h, bias, dot, i, j);
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
        const float x = score_of_key(place, p, s, h, row, k, ks, places, bias, i, j);
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

// d(loss) / d(score) of one element, and what the forward pass weighed its value by.
struct Slope {
  float score, weight;
};
FA_FN Slope element_gradient(ParamsPointer p, float score, float lse, float delta, float product, bool is_kept) {
  const float unit = score_unit<F>(score_numbers(p));
  const float e = saved_probability(score, unit, lse_reference(lse), lse_remainder(lse));
  const float kept_scale = is_kept ? p->keep_scale : 0.0f;
  return Slope{score_gradient(e, kept_scale, product, delta), e * kept_scale};
}

template <class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P, class DQ>
FA_FN void row_gradient_plain(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed_array,
                              Slopes slopes, Bias bias, P places, DQ dq) {
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const Head h = head_of(p, s, int(place.group.y), slopes);
  const Strides qs = copy_strides(p->q), ks = copy_strides(p->k), vs = copy_strides(p->v), douts = copy_strides(p->dout);
  const Strides dqs = copy_strides(p->dq);
  const Seed seed = seed_of(seed_array);
  const int step = SIMDGROUPS * int(place.groups.x);
  for (int i = int(place.group.x) * SIMDGROUPS + place.simdgroup; i < s.row_slots; i += step) {
    DimPiece sum = zero_piece<FA_DIM>();
    if (i < s.mask.rows) {
      const DimPiece row = load_piece<FA_DIM>(q, row_offset(qs, s, i, h.head), 1, p->dim, place);
      const ValuePiece dout_row = load_piece<FA_VALUE_DIM>(dout, row_offset(douts, s, i, h.head), 1, p->value_dim, place);
      const Interval<int> keys = visible_keys(s.mask, i);
      for (int j = keys.first; j < keys.end; j++) {
        const DimPiece key = load_piece<FA_DIM>(k, key_offset(ks, s, 0, places.pages, j, h.kv_head), 1, p->dim, place);
        const Int64 from = key_offset(vs, s, 0, places.pages, j, h.kv_head);
        const float dot = product<FA_DIM>(row, key);
        const float dp = product<FA_VALUE_DIM>(dout_row, load_piece<FA_VALUE_DIM>(v, from, 1, p->value_dim, place));
        const float x = element_score(p, s, h, bias, dot, i, j);
        if (!hides(x)) {
          const Slope slope = element_gradient(p, x, lse[h.lse + i], float_at(delta, h.lse + i), dp, kept(p, seed, h, i, j));
          sum = add_scaled<FA_DIM>(sum, slope.score * score_slope<F>(dot, score_numbers(p)) * p->score.scale, key);
        }
      }
    }
    store_piece<FA_DIM>(dq, row_offset(dqs, s, i, h.head), p->dim, place, sum);
  }
}

template <class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P, class DK,
          class DV>
FA_FN void key_gradient_plain(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed_array,
                              Slopes slopes, Bias bias, P places, DK dk, DV dv) {
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const int kv_head = int(place.group.y);
  const Strides qs = copy_strides(p->q), ks = copy_strides(p->k), vs = copy_strides(p->v), douts = copy_strides(p->dout);
  const Strides dks = copy_strides(p->dk), dvs = copy_strides(p->dv);
  const Seed seed = seed_of(seed_array);
  const int step = SIMDGROUPS * int(place.groups.x);
  for (int j = int(place.group.x) * SIMDGROUPS + place.simdgroup; j < s.key_slots; j += step) {
    DimPiece dk_sum = zero_piece<FA_DIM>();
    ValuePiece dv_sum = zero_piece<FA_VALUE_DIM>();
    if (j < s.mask.keys) {
      const DimPiece key = load_piece<FA_DIM>(k, key_offset(ks, s, 0, places.pages, j, kv_head), 1, p->dim, place);
      const Int64 from = key_offset(vs, s, 0, places.pages, j, kv_head);
      const ValuePiece value = load_piece<FA_VALUE_DIM>(v, from, 1, p->value_dim, place);
      const Interval<int> seers = visible_rows(s.mask, j);
      for (int member = 0; member < p->group; member++) {
        const Head h = head_of(p, s, kv_head * p->group + member, slopes);
        for (int i = seers.first; i < seers.end; i++) {
          const DimPiece row = load_piece<FA_DIM>(q, row_offset(qs, s, i, h.head), 1, p->dim, place);
          const ValuePiece dout_row = load_piece<FA_VALUE_DIM>(dout, row_offset(douts, s, i, h.head), 1, p->value_dim, place);
          const float dot = product<FA_DIM>(key, row), dp = product<FA_VALUE_DIM>(value, dout_row);
          const float x = element_score(p, s, h, bias, dot, i, j);
          if (!hides(x)) {
            const Slope slope = element_gradient(p, x, lse[h.lse + i], float_at(delta, h.lse + i), dp, kept(p, seed, h, i, j));
            dk_sum = add_scaled<FA_DIM>(dk_sum, slope.score * score_slope<F>(dot, score_numbers(p)) * p->score.scale, row);
            if (slope.weight != 0.0f) {
              dv_sum = add_scaled<FA_VALUE_DIM>(dv_sum, slope.weight, dout_row);
            }
          }
        }
      }
    }
    store_piece<FA_DIM>(dk, key_offset(dks, s, 0, places.pages, j, kv_head), p->dim, place, dk_sum);
    store_piece<FA_VALUE_DIM>(dv, key_offset(dvs, s, 0, places.pages, j, kv_head), p->value_dim, place, dv_sum);
  }
}

// One element of the bias a threadgroup; its simdgroups share the rows of all sequences and heads along which it was broadcast, and their
// sums are added in order.
template <class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P, class T>
FA_FN void bias_gradient_plain(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed_array,
                               Slopes slopes, Bias bias, P places, device T* dbias, threadgroup float* sums) {
  const int own_heads = p->dbias.head != 0 ? p->heads : 1;
  const int own_batch = int(place.group.z) / own_heads, own_head = int(place.group.z) % own_heads;
  const int own_row = int(place.group.y), own_key = int(place.group.x);
  const int batch_end = p->dbias.batch != 0 ? own_batch + 1 : p->batch, head_end = p->dbias.head != 0 ? own_head + 1 : p->heads;
  const Strides qs = copy_strides(p->q), ks = copy_strides(p->k), vs = copy_strides(p->v), douts = copy_strides(p->dout);
  const Seed seed = seed_of(seed_array);
  float sum = 0.0f;
  int turn = 0;  // rows go round the simdgroups
  for (int b = own_batch; b < batch_end; b++) {
    const Sequence s = sequence_of(p, places, b);
    for (int head = own_head; head < head_end; head++) {
      const Head h = head_of(p, s, head, slopes);
      const int row_end = min(p->dbias.row != 0 ? own_row + 1 : s.mask.rows, s.mask.rows);
      for (int i = own_row; i < row_end; i++, turn++) {
        if (turn % SIMDGROUPS != place.simdgroup) {
          continue;
        }
        const Interval<int> seen = visible_keys(s.mask, i);
        const int first = p->dbias.key != 0 ? max(own_key, seen.first) : seen.first;
        const int end = p->dbias.key != 0 ? min(own_key + 1, seen.end) : seen.end;
        for (int j = first; j < end; j++) {
          const DimPiece row = load_piece<FA_DIM>(q, row_offset(qs, s, i, h.head), 1, p->dim, place);
          const ValuePiece dout_row = load_piece<FA_VALUE_DIM>(dout, row_offset(douts, s, i, h.head), 1, p->value_dim, place);
          const Int64 at = key_offset(ks, s, 0, places.pages, j, h.kv_head), from = key_offset(vs, s, 0, places.pages, j, h.kv_head);
          const float dot = product<FA_DIM>(row, load_piece<FA_DIM>(k, at, 1, p->dim, place));
          const float dp = product<FA_VALUE_DIM>(dout_row, load_piece<FA_VALUE_DIM>(v, from, 1, p->value_dim, place));
          const float x = element_score(p, s, h, bias, dot, i, j);
          if (!hides(x)) {
            sum += element_gradient(p, x, lse[h.lse + i], float_at(delta, h.lse + i), dp, kept(p, seed, h, i, j)).score;
          }
        }
      }
    }
  }
  if (place.lane == 0) {
    sums[place.simdgroup] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (place.simdgroup == 0 && place.lane == 0) {
    float total = 0.0f;
    for (int n = 0; n < SIMDGROUPS; n++) {
      total += sums[n];
    }
    dbias[own_batch * p->dbias.batch + own_head * p->dbias.head + own_row * p->dbias.row + own_key] = T(total);
  }
}

// S_dmask: the normalised probabilities, the sign bit set where dropped; zeros where there is no row or key. By a softmax of its own: the
// lse of another kernel has its own roundings, which the exponential of a large score shows.
template <class Q, class K, class SeedArray, class Slopes, class Bias, class Sink, class P, class SQ, class SK>
FA_FN void probabilities(Place place, ParamsPointer p, Q q, K k, SeedArray seed_array, Slopes slopes, Bias bias, Sink sink, P places,
                         device Element* to, SQ sq, SK sk) {
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const Head h = head_of(p, s, int(place.group.y), slopes);
  const RowStrides qs = row_strides(p->q, sq, IS_PACKED), ks = row_strides(p->k, sk, IS_PACKED && !IS_PAGED);
  const Seed seed = seed_of(seed_array);
  const float unit = score_unit<F>(score_numbers(p));
  const int i = int(place.group.x) * SIMDGROUPS + place.simdgroup;
  if (i >= p->mask.rows) {
    return;
  }
  const Int64 at = ((Int64(s.index) * p->heads + h.head) * p->mask.rows + i) * p->mask.keys;
  const bool exists = i < s.mask.rows;
  const Interval<int> visible = visible_keys(s.mask, i);
  const Interval<int> keys = exists ? visible : Interval<int>{0, 0};
  DimPiece row = zero_piece<FA_DIM>();
  if (exists) {
    row = load_piece<FA_DIM>(q, row_offset(qs.rows, s, i, h.head), qs.step, p->dim, place);
  }
  Softmax<float> state = Softmax<float>{no_maximum(), 0.0f};
  for (int j = keys.first; j < keys.end; j++) {
    const float x = score_of_key(place, p, s, h, row, k, ks, places, bias, i, j);
    if (!hides(x)) {
      state = advance(state, x * unit);
      state.sum += probability(x, unit, state.max);
    }
  }
  if constexpr ((F & SINK) != 0) {
    state = add_sink(state, float_at(sink, h.head));
  }
  for (int j = 0; j < p->mask.keys; j++) {
    float weight = 0.0f;
    if (j >= keys.first && j < keys.end) {
      const float x = score_of_key(place, p, s, h, row, k, ks, places, bias, i, j);
      weight = hides(x) ? 0.0f : probability(x, unit, state.max) * inverse_sum(state);
    }
    const bool negative = exists && j < s.mask.keys && !kept(p, seed, h, i, j);
    if (place.lane == 0) {
      to[at + j] = Element(negative ? as_type<float>(as_type<uint>(weight) | 0x80000000u) : weight);
    }
  }
}
}  // namespace fa
#define FA_ENTRY_forward_plain(lane, simdgroup, group, groups)                                                                             \
  fa::forward_plain(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, FA_ARRAY_OUT, \
                    FA_ARRAY_LSE, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_ARRAY_SINK, FA_PLACES, FA_STRIDES_Q, FA_STRIDES_K,     \
                    FA_STRIDES_V)
#define FA_ENTRY_row_gradient_plain(lane, simdgroup, group, groups)                                                               \
  fa::row_gradient_plain(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, \
                         FA_ARRAY_DOUT, FA_ARRAY_LSE, FA_ARRAY_DELTA, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_PLACES,   \
                         FA_ARRAY_DQ)
#define FA_ENTRY_key_gradient_plain(lane, simdgroup, group, groups)                                                               \
  fa::key_gradient_plain(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, \
                         FA_ARRAY_DOUT, FA_ARRAY_LSE, FA_ARRAY_DELTA, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_PLACES,   \
                         FA_ARRAY_DK, FA_ARRAY_DV)
#define FA_ENTRY_bias_gradient_plain(lane, simdgroup, group, groups)                                                               \
  threadgroup float fa_sums[FA_SIMDGROUPS];                                                                                        \
  fa::bias_gradient_plain(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, \
                          FA_ARRAY_DOUT, FA_ARRAY_LSE, FA_ARRAY_DELTA, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_PLACES,   \
                          FA_ARRAY_DBIAS, fa_sums)
#define FA_ENTRY_probabilities(lane, simdgroup, group, groups)                                                                  \
  fa::probabilities(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_SEED, \
                    FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_ARRAY_SINK, FA_PLACES, FA_ARRAY_PROBABILITIES, FA_STRIDES_Q, FA_STRIDES_K)
