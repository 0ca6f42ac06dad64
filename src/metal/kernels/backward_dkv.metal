// Attention backward, dK and dV: P from the saved lse, dV = P^T dout, dS = P (dout V^T - delta), dK = scale dS^T Q. No atomics: keys belong
// to one simdgroup, which goes over the query heads that share them and over their rows in order, so the result is the same in every run.
// Tile     HELD_TILES * 8 keys a simdgroup, STREAM_TILES * 8 rows (tiles.h); head dim <= 512. Up to 128 both gradients in one launch,
//          above one each, and above 256 in two parts of the columns.
// Who      each simdgroup has keys of its own. No barrier between them.
// Memory   registers: scores, dS, dK, dV and, up to 128, the tiles of Q and dout, which are left factors of the scores and right factors of
//          the gradients; K and V in registers or, each lane's own, in threadgroup memory.
// Speed    4 matrix products a tile (5 in two launches). Counts: docs/performance.md.
#pragma once
#include "words/gradient.metal"
namespace fa {
constant constexpr const bool DK = FA_DK_PART != 0, DV = FA_DV_PART != 0, KEEP = FA_KEEP != 0;
constant constexpr const int DK_PART = DK ? FA_DK_PART : 8, DV_PART = DV ? FA_DV_PART : 8;  // columns that a simdgroup adds up

template <bool VECTOR, class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P,
          class DKArray, class DVArray>
FA_FN void dkv_rows(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed, Slopes alibi, Bias bias,
                    P places, DKArray dk, DVArray dv, threadgroup uint4* memory) {
  const Lane l = lane_of(place.lane);
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const int kv_head = int(place.group.y) / FA_PARTS, which = int(place.group.y) % FA_PARTS;
  const int dk_part = which * DK_PART, dv_part = which * DV_PART;
  const int dk_dim = min(DK_PART, p->dim - dk_part), dv_dim = min(DV_PART, p->value_dim - dv_part);
  const Strides qs = copy_strides(p->q), ks = copy_strides(p->k), vs = copy_strides(p->v), douts = copy_strides(p->dout);
  const Strides dks = copy_strides(p->dk), dvs = copy_strides(p->dv);
  const int tile = 8 * HELD_TILES, block = tile * FA_SIMDGROUPS;
  const int j0 = int(place.group.x) * block + int(place.simdgroup) * tile;
  if (j0 < s.mask.keys) {
    const Reader<FA_DIM, VECTOR> reader = Reader<FA_DIM, VECTOR>{1, p->dim, l.pair};
    const Reader<FA_VALUE_DIM, VECTOR> value_reader = Reader<FA_VALUE_DIM, VECTOR>{1, p->value_dim, l.pair};
    Held<FA_DIM, HELD_TILES, FA_IN_REGISTERS != 0> k_held;
    Held<FA_VALUE_DIM, HELD_TILES, FA_IN_REGISTERS != 0> v_held;
    const int words = HELD_TILES * Spread<FA_DIM>::WORDS;
    threadgroup uint4* const own = memory + place.simdgroup * (words + (DK ? HELD_TILES * Spread<FA_VALUE_DIM>::WORDS : 0));
    place_held(k_held, own, l);
    place_held(v_held, own + words, l);
    Columns keys = columns_of(j0, 0.0f, l);
    const int last = s.mask.keys - 1;
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      const int a = min(keys.at[r].x, last), b = min(keys.at[r].y, last);
      hold(k_held, r, reader, k + key_offset(ks, s, 0, places.pages, a, kv_head), k + key_offset(ks, s, 0, places.pages, b, kv_head), l);
      if constexpr (DK) {
        hold(v_held, r, value_reader, v + key_offset(vs, s, 0, places.pages, a, kv_head),
             v + key_offset(vs, s, 0, places.pages, b, kv_head), l);
      }
    }
    Sums<DK_PART> dk_sums = zero_sums<DK_PART>();
    Sums<DV_PART> dv_sums = zero_sums<DV_PART>();
    const int j_last = min(j0 + tile, s.mask.keys) - 1;
    // rows that see some of these keys, and rows that see all of them
    const Interval<int> low = visible_rows(s.mask, j0), high = visible_rows(s.mask, j_last);
    const Interval<int> some = Interval<int>{low.first, high.end}, all = Interval<int>{high.first, low.end};
    for (int member = 0; member < p->group && some.first < some.end; member++) {
      const Head h = head_of(p, s, kv_head * p->group + member, alibi);
      const Elements<Bias> e = elements_of(p, s, h, bias, seed);
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++) { keys.slope[r] = float2(h.slope); }
      for (int i0 = first_tile(e, some.first); i0 < some.end; i0 += 8 * STREAM_TILES) {
        const bool edge = i0 < all.first || i0 + 8 * STREAM_TILES > all.end;
        StreamRows<Q> q_rows;
        StreamRows<DOut> dout_rows;
        Saved saved[STREAM_TILES];
        FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) {
          const int i = min(max(i0 + 8 * t + int(l.row), some.first), some.end - 1);
          q_rows.at[t] = lane_row(reader, q + row_offset(qs, s, i, h.head));
          dout_rows.at[t] = lane_row(value_reader, dout + row_offset(douts, s, i, h.head));
          saved[t] = saved_at(lse, delta, h.lse + i);
        }
        Tile scores, products;
        ScoreSlopes slopes;
        Factors weights, gradients;
        Fragments<FA_DIM, KEEP && DK> kept_queries;
        Fragments<FA_VALUE_DIM, KEEP && DV> kept_douts;
        multiply(scores, k_held, reader, q_rows, kept_queries);
        if constexpr (DK) {
          multiply(products, v_held, value_reader, dout_rows, kept_douts);
          find_slopes(slopes, scores, e);
        }
        score_tile(scores, e, keys, i0, edge, l);
        find_seen(weights, scores);
        if constexpr (DK) {
          hide_products(products, scores, edge);
          find_seen(gradients, scores);
        }
        decide(keys, e, i0, l);
        FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) {
          FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
            const float2 x = saved_probabilities(scores.x[t][r], e.unit, saved[t], saved[t]);
            const float2 kept = kept_scales(e, keys, r, i0 + 8 * t + int(l.row), p->keep_scale);
            if constexpr (DV) {
              weights.x[t][r] = transpose(pair_of(float2(kept.x != 0.0f ? x.x : 0.0f, kept.y != 0.0f ? x.y : 0.0f)), l);
            }
            if constexpr (DK) {
              gradients.x[t][r] = transpose(pair_of(score_gradients(x, kept, products.x[t][r], saved[t], saved[t], slopes, t, r)), l);
            }
          }
        }
        if constexpr (DV) {
          if constexpr (KEEP) {
            add_products(dv_sums, weights, kept_douts);
          } else {
            FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) { dout_rows.at[t] += dv_part; }
            add_products(dv_sums, weights, Reader<DV_PART, VECTOR>{1, dv_dim, l.pair}, dout_rows);
          }
        }
        if constexpr (DK) {
          if constexpr (KEEP) {
            add_products(dk_sums, gradients, kept_queries);
          } else {
            FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) { q_rows.at[t] += dk_part; }
            add_products(dk_sums, gradients, Reader<DK_PART, VECTOR>{1, dk_dim, l.pair}, q_rows);
          }
        }
      }
    }
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      const int j = j0 + 8 * r + int(l.row);
      if (j < s.mask.keys) {
        if constexpr (DK) {
          device Element* const row = dk + key_offset(dks, s, 0, places.pages, j, kv_head) + dk_part;
          store_row<DK_PART, VECTOR>(row, dk_dim, dk_sums.x[r], p->score.scale, l);
        }
        if constexpr (DV) {
          device Element* const row = dv + key_offset(dvs, s, 0, places.pages, j, kv_head) + dv_part;
          store_row<DV_PART, VECTOR>(row, dv_dim, dv_sums.x[r], p->keep_scale, l);
        }
      }
    }
  }
  for (int first = j0; first < s.key_slots; first += int(place.groups.x) * block) {
    for (int j = max(first, s.mask.keys); j < min(first + tile, s.key_slots); j++) {
      if constexpr (DK) {
        clear_row(dk + key_offset(dks, s, 0, places.pages, j, kv_head) + dk_part, dk_dim, place.lane);
      }
      if constexpr (DV) {
        clear_row(dv + key_offset(dvs, s, 0, places.pages, j, kv_head) + dv_part, dv_dim, place.lane);
      }
    }
  }
}
template <class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P, class DKArray,
          class DVArray>
FA_FN void backward_dkv(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed, Slopes alibi,
                        Bias bias, P places, DKArray dk, DVArray dv, threadgroup uint4* memory) {
  if (FA_VECTOR == 1 || (FA_VECTOR == 2 && has_words(q, p->q) && has_words(k, p->k) && has_words(v, p->v) && has_words(dout, p->dout))) {
    if constexpr (FA_VECTOR != 0) {
      dkv_rows<true>(place, p, q, k, v, dout, lse, delta, seed, alibi, bias, places, dk, dv, memory);
    }
  } else {
    if constexpr (FA_VECTOR != 1) {
      dkv_rows<false>(place, p, q, k, v, dout, lse, delta, seed, alibi, bias, places, dk, dv, memory);
    }
  }
}
}  // namespace fa
#define FA_ENTRY_backward_dkv(lane, simdgroup, group, groups)                                                                              \
  threadgroup uint4 fa_memory[FA_MEMORY];                                                                                                  \
  fa::backward_dkv(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, FA_ARRAY_DOUT, \
                   FA_ARRAY_LSE, FA_ARRAY_DELTA, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_PLACES, FA_ARRAY_DK, FA_ARRAY_DV,       \
                   fa_memory)
