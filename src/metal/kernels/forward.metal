// Attention forward: Out = softmax(score(Q K^T)) V and its log-sum-exp. Nothing of size rows x keys reaches memory.
// Tile     HELD_TILES * 8 rows a simdgroup, STREAM_TILES * 8 keys (tiles.h); head dim <= 512, above 256 in two parts of the columns of Out.
// Who      each simdgroup has rows of its own and reads K and V through the cache, 16 bytes a lane; simdgroups of a threadgroup share only
//          what the cache keeps. No barrier between them.
// Memory   registers: scores, Out, maximum and sum of each row, and Q; a Q that does not fit lies in threadgroup memory, each lane's own.
// Speed    bound by the matrix units: 2 shuffles an 8x8 of P, and one vote a tile instead of a maximum over lanes. Not measured on a GPU;
//          counts per matrix product: docs/performance.md.
// Features enter through semantics/ only, at the stations of words/stream.metal.
#pragma once
#include "words/stream.metal"
namespace fa {
template <bool VECTOR, class Q, class K, class V, class T, class Lse, class SeedArray, class Slopes, class Bias, class Sink, class P>
FA_FN void forward_rows(Place place, ParamsPointer p, Q q, RowStrides qs, K k, RowStrides ks, V v, RowStrides vs, device T* out, Lse lse,
                        SeedArray seed, Slopes slopes, Bias bias, Sink sink, P places, threadgroup uint4* memory) {
  const Lane l = lane_of(place.lane);
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const Head h = head_of(p, s, int(place.group.y) / FA_PARTS, slopes);
  const int part = int(place.group.y) % FA_PARTS * PART, part_dim = min(PART, p->value_dim - part);
  const Elements<Bias> e = elements_of(p, s, h, bias, seed);
  const Strides outs = copy_strides(p->out);
  const int tile = 8 * HELD_TILES, block = tile * FA_SIMDGROUPS;
  // the last blocks first: where the mask is causal they are the longest
  const int i0 = int(place.groups.x - 1 - place.group.x) * block + int(place.simdgroup) * tile;
  if (i0 < s.mask.rows) {
    const Reader<FA_DIM, VECTOR> reader = Reader<FA_DIM, VECTOR>{qs.step, p->dim, l.pair};
    Held<FA_DIM, HELD_TILES, FA_IN_REGISTERS != 0> held;
    place_held(held, memory + place.simdgroup * (HELD_TILES * Spread<FA_DIM>::WORDS), l);
    Columns queries = columns_of(i0, h.slope, l);
    Running state = start();
    const int last = s.mask.rows - 1;
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      hold(held, r, reader, q + row_offset(qs.rows, s, min(queries.at[r].x, last), h.head),
           q + row_offset(qs.rows, s, min(queries.at[r].y, last), h.head), l);
    }
    const int i_last = min(i0 + tile, s.mask.rows) - 1;
    const Interval<int> some = any_visible(s.mask, i0, i_last), all = all_visible(s.mask, i0, i_last);
    for (int j0 = first_tile(e, some.first); j0 < some.end && some.first < some.end; j0 += 8 * STREAM_TILES) {
      const bool edge = j0 < all.first || j0 + 8 * STREAM_TILES > all.end;
      forward_tile<VECTOR>(state, held, queries, e, s, k, ks, v, vs, part, p, places.pages, h.kv_head, some, j0, edge, l);
    }
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      const float2 sums = column_sum(state.sum[r]);
      Softmax<float> a = Softmax<float>{state.top[r].x, sums.x}, b = Softmax<float>{state.top[r].y, sums.y};
      if constexpr ((F & SINK) != 0) {
        a = add_sink(a, float_at(sink, h.head));
        b = add_sink(b, float_at(sink, h.head));
      }
      float2 factor = float2(rescale(state.top[r].x, a.max) * inverse_sum(a), rescale(state.top[r].y, b.max) * inverse_sum(b));
      if constexpr ((F & DROPOUT) != 0) {
        factor *= p->keep_scale;
      }
      const float row_factor = to_rows(factor, l);
      const int i = i0 + 8 * r + int(l.row);
      if (i < s.mask.rows) {
        store_row<PART, VECTOR>(out + row_offset(outs, s, i, h.head) + part, part_dim, state.out.x[r], row_factor, l);
      }
      if (part == 0 && l.row == 0) {
        if (queries.at[r].x < s.mask.rows) {
          lse[h.lse + queries.at[r].x] = log_sum_exp(a);
        }
        if (queries.at[r].y < s.mask.rows) {
          lse[h.lse + queries.at[r].y] = log_sum_exp(b);
        }
      }
    }
  }
  for (int first = i0; first < s.row_slots; first += int(place.groups.x) * block) {
    for (int i = max(first, s.mask.rows); i < min(first + tile, s.row_slots); i++) {
      clear_row(out + row_offset(outs, s, i, h.head) + part, part_dim, place.lane);
      if (part == 0 && place.lane == 0) {
        lse[h.lse + i] = minus_infinity();
      }
    }
  }
}

template <class Q, class K, class V, class T, class Lse, class SeedArray, class Slopes, class Bias, class Sink, class P, class SQ, class SK,
          class SV>
FA_FN void forward(Place place, ParamsPointer p, Q q, K k, V v, device T* out, Lse lse, SeedArray seed, Slopes slopes, Bias bias, Sink sink,
                   P places, SQ sq, SK sk, SV sv, threadgroup uint4* memory) {
  const RowStrides qs = row_strides(p->q, sq, IS_PACKED), ks = row_strides(p->k, sk, IS_PACKED && !IS_PAGED);
  const RowStrides vs = row_strides(p->v, sv, IS_PACKED && !IS_PAGED);
  if (FA_VECTOR == 1 || (FA_VECTOR == 2 && has_words(q, qs) && has_words(k, ks) && has_words(v, vs))) {
    if constexpr (FA_VECTOR != 0) {
      forward_rows<true>(place, p, q, qs, k, ks, v, vs, out, lse, seed, slopes, bias, sink, places, memory);
    }
  } else {
    if constexpr (FA_VECTOR != 1) {
      forward_rows<false>(place, p, q, qs, k, ks, v, vs, out, lse, seed, slopes, bias, sink, places, memory);
    }
  }
}
}  // namespace fa
#define FA_ENTRY_forward(lane, simdgroup, group, groups)                                                                             \
  threadgroup uint4 fa_memory[FA_MEMORY];                                                                                            \
  fa::forward(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, FA_ARRAY_OUT, \
              FA_ARRAY_LSE, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_ARRAY_SINK, FA_PLACES, FA_STRIDES_Q, FA_STRIDES_K,     \
              FA_STRIDES_V, fa_memory)
