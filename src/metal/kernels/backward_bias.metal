// Gradient of an additive bias: dS = P (dout V^T - delta), summed over the axes along which the bias was broadcast, in a fixed order.
// Tile     8 rows x STREAM_TILES * 8 keys of the bias; where it has one row or one key for all, a simdgroup goes over all of them.
// Who      each simdgroup has elements of its own, for which it goes over the sequences and heads that share them. No barrier between them.
// Memory   registers: scores, dS and its sums; Q and dout in registers or, each lane's own, in threadgroup memory.
// Speed    2 matrix products a tile. A bias with few elements has few simdgroups at work.
#pragma once
#include "words/gradient.metal"
namespace fa {
// dS of one tile added to `sums`; columns behind the last row count for nothing.
template <class Bias>
FA_FN void add_score_gradients(thread Tile& sums, const thread Tile& scores, const thread Tile& products, Elements<Bias> e,
                               const thread Columns& queries, const thread Saved* saved, float keep_scale, int j0, Lane l) {
  FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) {
    const float2 weights = saved_probabilities(scores.x[t][0], e.unit, saved[0], saved[1]);
    const float2 kept = kept_scales(e, queries, 0, j0 + 8 * t + int(l.row), keep_scale);
    const float2 product = products.x[t][0];
    const float a = score_gradient(weights.x, kept.x, product.x, saved[0].delta);
    const float b = score_gradient(weights.y, kept.y, product.y, saved[1].delta);
    sums.x[t][0] += float2(queries.at[0].x < e.mask.rows ? a : 0.0f, queries.at[0].y < e.mask.rows ? b : 0.0f);
  }
}
// The pair's own elements, or the sums of all rows and all keys where the bias has one for them.
template <class T>
FA_FN void store_sums(device T* dbias, Int64 at, ParamsPointer p, const thread Tile& sums, int i0, int j0, Lane l) {
  float2 all = float2(0.0f);
  FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) {
    float2 x = sums.x[t][0];
    const int j = j0 + 8 * t + int(l.row), i = i0 + 2 * int(l.pair);
    if (p->dbias.key == 0) {
      all += x;
    } else if (p->dbias.row == 0) {
      float sum = x.x + x.y;
      sum += metal::simd_shuffle_xor(sum, ushort(1));
      sum += metal::simd_shuffle_xor(sum, ushort(8));
      if (l.pair == 0 && j >= 0 && j < p->mask.keys) {
        dbias[at + j] = T(sum);
      }
    } else if (j >= 0 && j < p->mask.keys) {
      if (i < p->mask.rows) {
        dbias[at + i * p->dbias.row + j] = T(x.x);
      }
      if (i + 1 < p->mask.rows) {
        dbias[at + (i + 1) * p->dbias.row + j] = T(x.y);
      }
    }
  }
  if (p->dbias.key == 0) {
    all = column_sum(all);
    const int i = i0 + 2 * int(l.pair);
    if (p->dbias.row == 0) {
      float sum = all.x + all.y;
      sum += metal::simd_shuffle_xor(sum, ushort(1));
      sum += metal::simd_shuffle_xor(sum, ushort(8));
      if (l.lane == 0) {
        dbias[at] = T(sum);
      }
    } else if (l.row == 0) {
      if (i < p->mask.rows) {
        dbias[at + i * p->dbias.row] = T(all.x);
      }
      if (i + 1 < p->mask.rows) {
        dbias[at + (i + 1) * p->dbias.row] = T(all.y);
      }
    }
  }
}
template <bool VECTOR, class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P,
          class T>
FA_FN void bias_tile(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed, Slopes alibi, Bias bias,
                     P places, device T* dbias, threadgroup uint4* memory) {
  const Lane l = lane_of(place.lane);
  const int tile = 8 * STREAM_TILES, own_heads = p->dbias.head != 0 ? p->heads : 1;
  const int own_batch = int(place.group.z) / own_heads, own_head = int(place.group.z) % own_heads;
  const int own_row = int(place.group.y) * 8, index = int(place.group.x) * FA_SIMDGROUPS + int(place.simdgroup);
  const bool all_rows = p->dbias.row == 0, all_keys = p->dbias.key == 0;
  // with dropout a tile holds the keys of one word of decisions
  const int own_key = all_keys ? 0 : index * tile - ((F & DROPOUT) != 0 ? p->k_offset & (tile - 1) : 0);
  if (index > 0 && own_key >= p->mask.keys) {
    return;
  }
  const int batch_end = p->dbias.batch != 0 ? own_batch + 1 : p->batch, head_end = p->dbias.head != 0 ? own_head + 1 : p->heads;
  const Strides qs = copy_strides(p->q), ks = copy_strides(p->k), vs = copy_strides(p->v), douts = copy_strides(p->dout);
  const Reader<FA_DIM, VECTOR> reader = Reader<FA_DIM, VECTOR>{1, p->dim, l.pair};
  const Reader<FA_VALUE_DIM, VECTOR> value_reader = Reader<FA_VALUE_DIM, VECTOR>{1, p->value_dim, l.pair};
  Held<FA_DIM, 1, FA_IN_REGISTERS != 0> q_held;
  Held<FA_VALUE_DIM, 1, FA_IN_REGISTERS != 0> dout_held;
  threadgroup uint4* const own = memory + place.simdgroup * (Spread<FA_DIM>::WORDS + Spread<FA_VALUE_DIM>::WORDS);
  place_held(q_held, own, l);
  place_held(dout_held, own + Spread<FA_DIM>::WORDS, l);
  Tile sums;
  FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) { sums.x[t][0] = float2(0.0f); }
  for (int b = own_batch; b < batch_end; b++) {
    const Sequence s = sequence_of(p, places, b);
    for (int head = own_head; head < head_end; head++) {
      const Head h = head_of(p, s, head, alibi);
      const Elements<Bias> e = elements_of(p, s, h, bias, seed);
      const int row_end = min(s.mask.rows, all_rows ? s.mask.rows : own_row + 8), last = s.mask.rows - 1;
      for (int i0 = own_row; i0 < row_end; i0 += 8) {
        const int i_last = min(i0 + 7, last);
        const Interval<int> some = any_visible(s.mask, i0, i_last), all = all_visible(s.mask, i0, i_last);
        if (some.first >= some.end || (!all_keys && (own_key >= some.end || own_key + tile <= some.first))) {
          continue;
        }
        const int first = all_keys ? first_tile(e, some.first) : own_key, end = all_keys ? some.end : own_key + tile;
        Columns queries = columns_of(i0, h.slope, l);
        const int a = min(queries.at[0].x, last), c = min(queries.at[0].y, last);
        hold(q_held, 0, reader, q + row_offset(qs, s, a, h.head), q + row_offset(qs, s, c, h.head), l);
        hold(dout_held, 0, value_reader, dout + row_offset(douts, s, a, h.head), dout + row_offset(douts, s, c, h.head), l);
        const Saved saved[2] = {saved_at(lse, delta, h.lse + a), saved_at(lse, delta, h.lse + c)};
        for (int j0 = first; j0 < end; j0 += tile) {
          const bool edge = j0 < all.first || j0 + tile > all.end;
          StreamRows<K> k_rows;
          StreamRows<V> v_rows;
          FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) {
            const int j = min(max(j0 + 8 * t + int(l.row), some.first), some.end - 1);
            k_rows.at[t] = lane_row(reader, k + key_offset(ks, s, 0, places.pages, j, h.kv_head));
            v_rows.at[t] = lane_row(value_reader, v + key_offset(vs, s, 0, places.pages, j, h.kv_head));
          }
          Tile scores, products;
          Fragments<FA_DIM, false> no_keys;
          Fragments<FA_VALUE_DIM, false> no_values;
          multiply(scores, q_held, reader, k_rows, no_keys);
          multiply(products, dout_held, value_reader, v_rows, no_values);
          score_tile(scores, e, queries, j0, edge, l);
          hide_products(products, scores, edge);
          decide(queries, e, j0, l);
          add_score_gradients(sums, scores, products, e, queries, saved, p->keep_scale, j0, l);
        }
      }
    }
  }
  store_sums(dbias, own_batch * p->dbias.batch + own_head * p->dbias.head, p, sums, own_row, own_key, l);
}
template <class Q, class K, class V, class DOut, class Lse, class Delta, class SeedArray, class Slopes, class Bias, class P, class T>
FA_FN void bias_gradient(Place place, ParamsPointer p, Q q, K k, V v, DOut dout, Lse lse, Delta delta, SeedArray seed, Slopes alibi,
                         Bias bias, P places, device T* dbias, threadgroup uint4* memory) {
  if (FA_VECTOR == 1 || (FA_VECTOR == 2 && has_words(q, p->q) && has_words(k, p->k) && has_words(v, p->v) && has_words(dout, p->dout))) {
    if constexpr (FA_VECTOR != 0) {
      bias_tile<true>(place, p, q, k, v, dout, lse, delta, seed, alibi, bias, places, dbias, memory);
    }
  } else {
    if constexpr (FA_VECTOR != 1) {
      bias_tile<false>(place, p, q, k, v, dout, lse, delta, seed, alibi, bias, places, dbias, memory);
    }
  }
}
}  // namespace fa
#define FA_ENTRY_bias_gradient(lane, simdgroup, group, groups)                                                                             \
  threadgroup uint4 fa_memory[FA_MEMORY];                                                                                                  \
  fa::bias_gradient(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V,               \
                    FA_ARRAY_DOUT, FA_ARRAY_LSE, FA_ARRAY_DELTA, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_PLACES, FA_ARRAY_DBIAS, \
                    fa_memory)
