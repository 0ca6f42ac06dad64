// The small kernels beside attention: delta (what the backward pass subtracts), merge (of partial results), append (new keys into a cache,
// rotated), rotate_queries, sink_gradient.
// Tile     one row of one head. Who: a simdgroup; lane l holds elements l, l + 32, ...
// Speed    bound by memory: every element is read once.
#pragma once
#include "semantics/rotary.h"
#include "semantics/softmax.h"
#include "words/where.metal"
namespace fa {
constant constexpr const int SIMDGROUPS = FA_SIMDGROUPS;  // rows a threadgroup

// delta = rowsum(dout * out) - dlse; what a row that sees nothing holds in dout does not matter, not even a NaN
template <class DOut, class Out, class Lse, class DLse, class P>
FA_FN void delta_rows(Place place, ParamsPointer p, DOut dout, Out out, Lse lse, DLse dlse, P places, device float* delta) {
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const Strides douts = copy_strides(p->dout), outs = copy_strides(p->out);
  const int head = int(place.group.y), step = SIMDGROUPS * int(place.groups.x);
  for (int i = int(place.group.x) * SIMDGROUPS + place.simdgroup; i < s.row_slots; i += step) {
    const Int64 at = s.lse_base + head * p->lse_head + i;
    float value = 0.0f;
    if (i < s.mask.rows && lse[at] > minus_infinity()) {
      const Interval<int> keys = visible_keys(s.mask, i);
      if (keys.first < keys.end) {
        const Int64 a = row_offset(douts, s, i, head), b = row_offset(outs, s, i, head);
        for (int d = place.lane; d < p->value_dim; d += 32) {
          value = fma(float(dout[a + d]), float(out[b + d]), value);
        }
        value = simd_sum(value);
      }
      value -= float_at(dlse, at);
    }
    if (place.lane == 0) {
      delta[at] = value;
    }
  }
}

// How much a part weighs in its row: parts of lse -inf count for nothing; NaN counts as a number.
template <class PartOut, class PartLse, class Out, class Lse, class P>
FA_FN void merge_rows(Place place, ParamsPointer p, PartOut part_out, PartLse part_lse, P places, device Out* out, Lse lse) {
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const Strides from = copy_strides(p->q), to = copy_strides(p->out);
  const Int64 part_rows = IS_PACKED ? p->lse_head * p->heads : p->batch * p->lse_batch;
  const float unit = score_unit<NATURAL>(ScoreT<float>{1.0f, 0.0f});
  const int head = int(place.group.y), step = SIMDGROUPS * int(place.groups.x);
  const int parts = p->split_keys > 0 ? max(1, (s.mask.keys + p->split_keys - 1) / p->split_keys) : p->splits;
  for (int i = int(place.group.x) * SIMDGROUPS + place.simdgroup; i < s.row_slots; i += step) {
    const Int64 at = s.lse_base + head * p->lse_head + i, row = row_offset(from, s, i, head);
    Softmax<float> state = Softmax<float>{no_maximum(), 0.0f};
    if (i < s.mask.rows) {
      for (int c = 0; c < parts; c++) {
        const float x = part_lse[c * part_rows + at];
        if (x > minus_infinity()) {
          state.max = max(x * unit, state.max);
        }
      }
      for (int c = 0; c < parts; c++) {
        const float x = part_lse[c * part_rows + at];
        if (!(x == minus_infinity())) {
          state.sum += probability(x, unit, state.max);
        }
      }
    }
    const float inverse = inverse_sum(state);
    for (int d = place.lane; d < p->value_dim; d += 32) {
      float sum = 0.0f;
      if (i < s.mask.rows) {
        for (int c = 0; c < parts; c++) {
          const float x = part_lse[c * part_rows + at];
          if (!(x == minus_infinity())) {
            sum = fma(probability(x, unit, state.max) * inverse, float(part_out[c * part_rows * p->value_dim + row + d]), sum);
          }
        }
      }
      out[row_offset(to, s, i, head) + d] = Out(sum);
    }
    if (place.lane == 0) {
      lse[at] = log_sum_exp(state);
    }
  }
}

// One row of one head: the first rotary_dim elements turn by the angle of `position`.
template <class From, class Cos, class Sin>
FA_FN void rotate_row(Place place, ParamsPointer p, device Element* to, Int64 at, From from, Int64 source, Cos cos, Sin sin, int position) {
  const int half_dim = p->rotary_dim / 2;
  if constexpr (is_given<Cos>::value != 0) {
    for (int t = place.lane; t < half_dim; t += 32) {
      const int first = rotary_first(t, p->rotary_interleaved), second = rotary_second(t, p->rotary_dim, p->rotary_interleaved);
      const Int64 angle = Int64(position) * half_dim + t;
      const Pair<float> turned = rotate(float(from[source + first]), float(from[source + second]), float(cos[angle]), float(sin[angle]));
      to[at + first] = Element(turned.x);
      to[at + second] = Element(turned.y);
    }
  }
  for (int d = p->rotary_dim + place.lane; d < p->dim; d += 32) {
    to[at + d] = from[source + d];
  }
}
// New keys go to the slots behind the length of their sequence, leftpad or not; without caches only a rotated copy is made.
template <class NewK, class NewV, class Cos, class Sin, class P, class K, class V, class Rotated>
FA_FN void append_keys(Place place, ParamsPointer p, NewK new_k, NewV new_v, Cos cos, Sin sin, P places, K k, V v, Rotated rotated) {
  Sequence s = sequence_of(p, places, int(place.group.z));
  s.key_base = 0;
  const int head = int(place.group.y), t = int(place.group.x) * SIMDGROUPS + place.simdgroup;
  if (t >= p->appended) {
    return;
  }
  const int position = int_at(places.lengths, s.index, p->cache_length) + t;
  const Int64 from = offset_of(copy_strides(p->new_k), s.index, t, head);
  if constexpr (is_given<K>::value != 0) {
    const Int64 value = offset_of(copy_strides(p->new_v), s.index, t, head);
    const Int64 to = key_offset(copy_strides(p->v), s, p->page_size, places.pages, position, head);
    rotate_row(place, p, k, key_offset(copy_strides(p->k), s, p->page_size, places.pages, position, head), new_k, from, cos, sin, position);
    for (int d = place.lane; d < p->value_dim; d += 32) {
      v[to + d] = new_v[value + d];
    }
  }
  if constexpr (is_given<Rotated>::value != 0) {
    rotate_row(place, p, rotated, offset_of(copy_strides(p->dk), s.index, t, head), new_k, from, cos, sin, position);
  }
}
template <class Q, class Cos, class Sin, class P>
FA_FN void rotate_queries(Place place, ParamsPointer p, Q q, Cos cos, Sin sin, P places, device Element* rotated) {
  const int b = int(place.group.z), head = int(place.group.y), i = int(place.group.x) * SIMDGROUPS + place.simdgroup;
  if (i >= p->mask.rows) {
    return;
  }
  const int position = int_at(places.lengths, b, p->cache_length) + (p->rotary_fixed != 0 ? 0 : i);
  rotate_row(place, p, rotated, offset_of(copy_strides(p->dq), b, i, head), q, offset_of(copy_strides(p->q), b, i, head), cos, sin,
             position);
}

// One head a simdgroup; rows of all sequences, in a fixed order.
template <class Lse, class Delta, class Sink, class P, class T>
FA_FN void sink_slope(Place place, ParamsPointer p, Lse lse, Delta delta, Sink sink, P places, device T* dsink) {
  const int head = int(place.group.x);
  float sum = 0.0f;
  for (int b = 0; b < p->batch; b++) {
    const Sequence s = sequence_of(p, places, b);
    const Int64 at = s.lse_base + head * p->lse_head;
    for (int i = place.lane; i < s.mask.rows; i += 32) {
      sum += sink_gradient(float_at(sink, head), float(lse[at + i]), float_at(delta, at + i));
    }
  }
  sum = simd_sum(sum);
  if (place.lane == 0) {
    dsink[head] = T(sum);
  }
}
}  // namespace fa
#define FA_ENTRY_delta(lane, simdgroup, group, groups)                                                                           \
  fa::delta_rows(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_DOUT, FA_ARRAY_OUT, FA_ARRAY_LSE, \
                 FA_ARRAY_DLSE, FA_PLACES, FA_ARRAY_DELTA)
#define FA_ENTRY_merge(lane, simdgroup, group, groups)                                                                                 \
  fa::merge_rows(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_PART_OUT, FA_ARRAY_PART_LSE, FA_PLACES, \
                 FA_ARRAY_OUT, FA_ARRAY_LSE)
#define FA_ENTRY_append(lane, simdgroup, group, groups)                                                                              \
  fa::append_keys(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_NEW_K, FA_ARRAY_NEW_V, FA_ARRAY_COS, \
                  FA_ARRAY_SIN, FA_PLACES, FA_ARRAY_K, FA_ARRAY_V, FA_ARRAY_ROTATED_K)
#define FA_ENTRY_rotate_queries(lane, simdgroup, group, groups)                                                                   \
  fa::rotate_queries(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_COS, FA_ARRAY_SIN, \
                     FA_PLACES, FA_ARRAY_ROTATED_Q)
#define FA_ENTRY_sink_gradient(lane, simdgroup, group, groups)                                                                     \
  fa::sink_slope(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_LSE, FA_ARRAY_DELTA, FA_ARRAY_SINK, \
                 FA_PLACES, FA_ARRAY_DSINK)
