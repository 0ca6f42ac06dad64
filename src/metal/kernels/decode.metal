// Few queries against many keys: a key/value cache, or one query position. The rows of a tile are the query positions of all heads that
// share a key/value head, so that K and V are read once for all of them.
// Tile     HELD_TILES * 8 rows (position * group + member of the group), STREAM_TILES * 8 keys (tiles.h); head dim <= 512.
// Who      a threadgroup has one key/value head and one range of keys; its simdgroups take tiles of keys in turn and join their results,
// lane
//          to lane, in a tree. Parts of long sequences are joined by `merge` in small.metal.
// Memory   registers: scores, Out and, up to 128, Q; threadgroup memory: a longer Q, each lane's own, and later the results on their way.
// Speed    bound by reading K and V, once. Not measured on a GPU.
#pragma once
#include "words/stream.metal"
namespace fa {
template <class B>
FA_FN B either(Absent, B b) {
  return b;
}
template <class A>
FA_FN A either(A a, Absent) {
  return a;
}

// What the upper half of the simdgroups has found joins what the lower half has.
FA_FN void join(thread Running& state, threadgroup float2* memory, int simdgroup, Lane l) {
  constexpr const int STEP = HELD_TILES * (PART / 8 + 2) * 32;
  FA_UNROLL for (int half_count = FA_SIMDGROUPS / 2; half_count > 0; half_count /= 2) {
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    if (simdgroup >= half_count && simdgroup < 2 * half_count) {
      threadgroup float2* to = memory + (simdgroup - half_count) * STEP + l.lane;
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++, to += (PART / 8 + 2) * 32) {
        to[0] = state.top[r];
        to[32] = state.sum[r];
        FA_UNROLL for (int f = 0; f < PART / 8; f++) { to[(f + 2) * 32] = state.out.x[r][f]; }
      }
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    if (simdgroup < half_count) {
      const threadgroup float2* from = memory + simdgroup * STEP + l.lane;
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++, from += (PART / 8 + 2) * 32) {
        const float2 other = from[0], now = metal::max(state.top[r], other);
        const float2 a = float2(rescale(state.top[r].x, now.x), rescale(state.top[r].y, now.y));
        const float2 b = float2(rescale(other.x, now.x), rescale(other.y, now.y));
        state.top[r] = now;
        state.sum[r] = state.sum[r] * a + from[32] * b;
        const float row_a = to_rows(a, l), row_b = to_rows(b, l);
        FA_UNROLL for (int f = 0; f < PART / 8; f++) { state.out.x[r][f] = state.out.x[r][f] * row_a + from[(f + 2) * 32] * row_b; }
      }
    }
  }
}

template <bool VECTOR, class Q, class K, class V, class T, class Lse, class Slopes, class Sink, class P>
FA_FN void decode_rows(Place place, ParamsPointer p, Q q, RowStrides qs, K k, RowStrides ks, V v, RowStrides vs, device T* out, Lse lse,
                       Slopes slopes, Sink sink, P places, threadgroup uint4* memory) {
  const Lane l = lane_of(place.lane);
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const int tile = 8 * HELD_TILES, blocks = int(place.groups.y) / (p->kv_heads * FA_PARTS), split = int(place.group.x);
  const int part = int(place.group.y) % FA_PARTS * PART, part_dim = min(PART, p->value_dim - part);
  const int x0 = int(place.group.y) / FA_PARTS % blocks * tile, kv_head = int(place.group.y) / (FA_PARTS * blocks);
  const int rows = s.mask.rows * p->group;
  const Int64 part_rows = IS_PACKED ? p->lse_head * p->heads : p->batch * p->lse_batch;
  const Int64 out_at = split * part_rows * p->value_dim + part, lse_at = split * part_rows;
  const Strides outs = copy_strides(p->out);
  if (x0 < rows) {
    const Reader<FA_DIM, VECTOR> reader = Reader<FA_DIM, VECTOR>{qs.step, p->dim, l.pair};
    Elements<Absent> e = elements_of(p, s, head_of(p, s, kv_head * p->group, slopes), Absent(), Absent());
    e.mask.keys = min(s.mask.keys, (split + 1) * p->split_keys);
    Held<FA_DIM, HELD_TILES, FA_IN_REGISTERS != 0> held;
    place_held(held, memory + place.simdgroup * (HELD_TILES * Spread<FA_DIM>::WORDS), l);
    Columns queries;
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      const int a = min(x0 + 8 * r + 2 * int(l.pair), rows - 1), b = min(x0 + 8 * r + 2 * int(l.pair) + 1, rows - 1);
      const Head head_a = head_of(p, s, kv_head * p->group + a % p->group, slopes);
      const Head head_b = head_of(p, s, kv_head * p->group + b % p->group, slopes);
      queries.at[r] = int2(a / p->group, b / p->group);
      queries.slope[r] = float2(head_a.slope, head_b.slope);
      hold(held, r, reader, q + row_offset(qs.rows, s, a / p->group, head_a.head), q + row_offset(qs.rows, s, b / p->group, head_b.head),
           l);
    }
    Running state = start();
    const int first = x0 / p->group, last = (min(x0 + tile, rows) - 1) / p->group;
    Interval<int> some = any_visible(e.mask, first, last);
    const Interval<int> all = all_visible(e.mask, first, last);
    some.first = max(some.first, split * p->split_keys);
    const int step = 8 * STREAM_TILES;
    for (int j0 = some.first + int(place.simdgroup) * step; j0 < some.end; j0 += step * FA_SIMDGROUPS) {
      const bool edge = j0 < all.first || j0 + step > all.end;
      forward_tile<VECTOR>(state, held, queries, e, s, k, ks, v, vs, part, p, places.pages, kv_head, some, j0, edge, l);
    }
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) { state.sum[r] = column_sum(state.sum[r]); }
    join(state, reinterpret_cast<threadgroup float2*>(memory), place.simdgroup, l);
    if (place.simdgroup == 0) {
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
        Softmax<float> a = Softmax<float>{state.top[r].x, state.sum[r].x}, b = Softmax<float>{state.top[r].y, state.sum[r].y};
        if constexpr ((F & SINK) != 0) {
          if (split == 0) {
            const int n = x0 + 8 * r + 2 * int(l.pair);
            a = add_sink(a, float_at(sink, kv_head * p->group + min(n, rows - 1) % p->group));
            b = add_sink(b, float_at(sink, kv_head * p->group + min(n + 1, rows - 1) % p->group));
          }
        }
        const float2 factor = float2(rescale(state.top[r].x, a.max) * inverse_sum(a), rescale(state.top[r].y, b.max) * inverse_sum(b));
        const float row_factor = to_rows(factor, l), row_lse = to_rows(float2(log_sum_exp(a), log_sum_exp(b)), l);
        const int x = x0 + 8 * r + int(l.row);
        if (x < rows) {
          const int i = x / p->group, head = kv_head * p->group + x % p->group;
          store_row<PART, VECTOR>(out + out_at + row_offset(outs, s, i, head), part_dim, state.out.x[r], row_factor, l);
          if (part == 0 && l.pair == 0) {
            lse[lse_at + s.lse_base + head * p->lse_head + i] = row_lse;
          }
        }
      }
    }
  }
  // rows that belong to nobody; of several parts `merge` writes them
  if (p->splits == 1 && place.simdgroup == 0) {
    for (int block = x0; block < s.row_slots * p->group; block += blocks * tile) {
      for (int x = max(block, rows); x < min(block + tile, s.row_slots * p->group); x++) {
        const int i = x / p->group, head = kv_head * p->group + x % p->group;
        clear_row(out + row_offset(outs, s, i, head) + part, part_dim, place.lane);
        if (part == 0 && place.lane == 0) {
          lse[s.lse_base + head * p->lse_head + i] = minus_infinity();
        }
      }
    }
  }
}
template <class Q, class K, class V, class T, class Lse, class Slopes, class Sink, class P, class SQ, class SK, class SV>
FA_FN void decode(Place place, ParamsPointer p, Q q, K k, V v, device T* out, Lse lse, Slopes slopes, Sink sink, P places, SQ sq, SK sk,
                  SV sv, threadgroup uint4* memory) {
  const RowStrides qs = row_strides(p->q, sq, IS_PACKED), ks = row_strides(p->k, sk, IS_PACKED && !IS_PAGED);
  const RowStrides vs = row_strides(p->v, sv, IS_PACKED && !IS_PAGED);
  if (FA_VECTOR == 1 || (FA_VECTOR == 2 && has_words(q, qs) && has_words(k, ks) && has_words(v, vs))) {
    if constexpr (FA_VECTOR != 0) {
      decode_rows<true>(place, p, q, qs, k, ks, v, vs, out, lse, slopes, sink, places, memory);
    }
  } else {
    if constexpr (FA_VECTOR != 1) {
      decode_rows<false>(place, p, q, qs, k, ks, v, vs, out, lse, slopes, sink, places, memory);
    }
  }
}
}  // namespace fa
#define FA_ENTRY_decode(lane, simdgroup, group, groups)                                                                                \
  threadgroup uint4 fa_memory[FA_MEMORY];                                                                                              \
  fa::decode(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V,                  \
             fa::either(FA_ARRAY_OUT, FA_ARRAY_PART_OUT), fa::either(FA_ARRAY_LSE, FA_ARRAY_PART_LSE), FA_ARRAY_SLOPES, FA_ARRAY_SINK, \
             FA_PLACES, FA_STRIDES_Q, FA_STRIDES_K, FA_STRIDES_V, fa_memory)
