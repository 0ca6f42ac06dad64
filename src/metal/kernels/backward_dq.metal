// Attention backward, dQ: P from the saved lse, dS = P (dout V^T - delta), dQ = scale dS K. No atomics: rows belong to one simdgroup, keys
// stream by in order, so the result is the same in every run.
// Tile     HELD_TILES * 8 rows a simdgroup, STREAM_TILES * 8 keys (tiles.h); head dim <= 512, above 256 in two parts of the columns of dQ.
// Who      each simdgroup has rows of its own. No barrier between them.
// Memory   registers: scores, dS, dQ and, up to 128, the tile of K, which is left factor of the scores and right factor of dQ; Q and dout
//          in registers or, each lane's own, in threadgroup memory.
// Speed    3 matrix products a tile, K read once where it stays in registers, else twice. Counts: docs/performance.md.
#pragma once
#include "words/gradient.metal"
namespace fa {
constant constexpr const int PART = FA_PART;  // columns of dQ that this launch's simdgroups add up
constant constexpr const bool KEEP = FA_KEEP != 0;

template <bool VECTOR, class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P>
FA_FN void dq_rows(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed, Slopes alibi, Bias bias,
                   P places, device Element* dq, threadgroup uint4* memory) {
  const Lane l = lane_of(place.lane);
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const Head h = head_of(p, s, int(place.group.y) / FA_PARTS, alibi);
  const int part = int(place.group.y) % FA_PARTS * PART, part_dim = min(PART, p->dim - part);
  const Elements<Bias> e = elements_of(p, s, h, bias, seed);
  const Strides qs = copy_strides(p->q), ks = copy_strides(p->k), vs = copy_strides(p->v), douts = copy_strides(p->dout);
  const Strides dqs = copy_strides(p->dq);
  const int tile = 8 * HELD_TILES, block = tile * FA_SIMDGROUPS;
  const int i0 = int(place.groups.x - 1 - place.group.x) * block + int(place.simdgroup) * tile;
  if (i0 < s.mask.rows) {
    const Reader<FA_DIM, VECTOR> reader = Reader<FA_DIM, VECTOR>{1, p->dim, l.pair};
    const Reader<PART, VECTOR> part_reader = Reader<PART, VECTOR>{1, part_dim, l.pair};
    const Reader<FA_VALUE_DIM, VECTOR> value_reader = Reader<FA_VALUE_DIM, VECTOR>{1, p->value_dim, l.pair};
    Held<FA_DIM, HELD_TILES, FA_IN_REGISTERS != 0> q_held;
    Held<FA_VALUE_DIM, HELD_TILES, FA_IN_REGISTERS != 0> dout_held;
    const int words = HELD_TILES * Spread<FA_DIM>::WORDS;
    threadgroup uint4* const own = memory + place.simdgroup * (words + HELD_TILES * Spread<FA_VALUE_DIM>::WORDS);
    place_held(q_held, own, l);
    place_held(dout_held, own + words, l);
    Columns queries = columns_of(i0, h.slope, l);
    Saved saved[HELD_TILES][2];
    const int last = s.mask.rows - 1;
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      const int a = min(queries.at[r].x, last), b = min(queries.at[r].y, last);
      hold(q_held, r, reader, q + row_offset(qs, s, a, h.head), q + row_offset(qs, s, b, h.head), l);
      hold(dout_held, r, value_reader, dout + row_offset(douts, s, a, h.head), dout + row_offset(douts, s, b, h.head), l);
      saved[r][0] = saved_at(lse, delta, h.lse + a);
      saved[r][1] = saved_at(lse, delta, h.lse + b);
    }
    Sums<PART> sums = zero_sums<PART>();
    const int i_last = min(i0 + tile, s.mask.rows) - 1;
    const Interval<int> some = any_visible(s.mask, i0, i_last), all = all_visible(s.mask, i0, i_last);
    for (int j0 = first_tile(e, some.first); j0 < some.end && some.first < some.end; j0 += 8 * STREAM_TILES) {
      const bool edge = j0 < all.first || j0 + 8 * STREAM_TILES > all.end;
      StreamRows<K> k_rows;
      StreamRows<V> v_rows;
      FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) {
        const int j = min(max(j0 + 8 * t + int(l.row), some.first), some.end - 1);
        k_rows.at[t] = lane_row(reader, k + key_offset(ks, s, 0, places.pages, j, h.kv_head));
        v_rows.at[t] = lane_row(value_reader, v + key_offset(vs, s, 0, places.pages, j, h.kv_head));
      }
      Tile scores, products;
      ScoreSlopes slopes;
      Factors factors;
      Fragments<FA_DIM, KEEP> kept_keys;
      Fragments<FA_VALUE_DIM, false> none;
      multiply(scores, q_held, reader, k_rows, kept_keys);
      multiply(products, dout_held, value_reader, v_rows, none);
      find_slopes(slopes, scores, e);
      score_tile(scores, e, queries, j0, edge, l);
      hide_products(products, scores, edge);
      find_seen(factors, scores);
      decide(queries, e, j0, l);
      FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) {
        FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
          const float2 weights = saved_probabilities(scores.x[t][r], e.unit, saved[r][0], saved[r][1]);
          const float2 kept = kept_scales(e, queries, r, j0 + 8 * t + int(l.row), p->keep_scale);
          const float2 d = score_gradients(weights, kept, products.x[t][r], saved[r][0], saved[r][1], slopes, t, r);
          factors.x[t][r] = transpose(pair_of(d), l);
        }
      }
      if constexpr (KEEP) {
        add_products(sums, factors, kept_keys);
      } else {
        FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) { k_rows.at[t] += part; }
        add_products(sums, factors, part_reader, k_rows);
      }
    }
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      const int i = i0 + 8 * r + int(l.row);
      if (i < s.mask.rows) {
        store_row<PART, VECTOR>(dq + row_offset(dqs, s, i, h.head) + part, part_dim, sums.x[r], p->score.scale, l);
      }
    }
  }
  for (int first = i0; first < s.row_slots; first += int(place.groups.x) * block) {
    for (int i = max(first, s.mask.rows); i < min(first + tile, s.row_slots); i++) {
      clear_row(dq + row_offset(dqs, s, i, h.head) + part, part_dim, place.lane);
    }
  }
}
template <class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P>
FA_FN void backward_dq(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed, Slopes alibi,
                       Bias bias, P places, device Element* dq, threadgroup uint4* memory) {
  if (FA_VECTOR == 1 || (FA_VECTOR == 2 && has_words(q, p->q) && has_words(k, p->k) && has_words(v, p->v) && has_words(dout, p->dout))) {
    if constexpr (FA_VECTOR != 0) {
      dq_rows<true>(place, p, q, k, v, dout, lse, delta, seed, alibi, bias, places, dq, memory);
    }
  } else {
    if constexpr (FA_VECTOR != 1) {
      dq_rows<false>(place, p, q, k, v, dout, lse, delta, seed, alibi, bias, places, dq, memory);
    }
  }
}
}  // namespace fa
#define FA_ENTRY_backward_dq(lane, simdgroup, group, groups)                                                                              \
  threadgroup uint4 fa_memory[FA_MEMORY];                                                                                                 \
  fa::backward_dq(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, FA_ARRAY_DOUT, \
                  FA_ARRAY_LSE, FA_ARRAY_DELTA, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_PLACES, FA_ARRAY_DQ, fa_memory)
