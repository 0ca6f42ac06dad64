// 8x8 matrices of a simdgroup as pairs: lane l holds two neighbours of one row, at (row, 2 pair) and (row, 2 pair + 1). Left factors, right
// factors and sums share this layout, so what was read as one can be used as another without moving.
#pragma once
#include "where.metal"
#define FA_UNROLL _Pragma("clang loop unroll(full)")
namespace fa {
typedef metal::vec<Element, 2> ElementPair;
FA_FN ElementPair pair_of(Element x, Element y) {
  ElementPair pair;
  pair.x = x;
  pair.y = y;
  return pair;
}
FA_FN ElementPair pair_of(float2 v) { return pair_of(Element(v.x), Element(v.y)); }

struct Lane {
  ushort lane, row, pair;
  ushort across;      // the lane that holds column `row` of row 2 pair
  ushort transposed;  // the lane whose place is this one's in the transposed matrix
  ushort column;      // a lane that holds column `row`
  bool odd;           // whether `row` is
};
FA_FN Lane lane_of(ushort lane) {
  Lane l;
  l.lane = lane;
  l.row = ushort(((lane >> 2) & 4) | ((lane >> 1) & 3));  // lane bits 1, 2, 4
  l.pair = ushort(((lane >> 2) & 2) | (lane & 1));        // lane bits 0, 3
  l.odd = (lane & 2) != 0;
  l.column = ushort(((l.row >> 1) & 1) | ((l.row & 1) << 1) | ((l.row >> 2) << 3));
  l.across = ushort(((l.pair & 1) << 2) | ((l.pair >> 1) << 4) | ((l.row >> 1) & 1) | ((l.row >> 2) << 3));
  l.transposed = ushort((lane & 2) | ((lane & 1) << 2) | ((lane & 4) >> 2) | ((lane & 8) << 1) | ((lane & 16) >> 1));
  return l;
}
// sum + a * b
FA_FN float2 multiply_add(float2 sum, ElementPair a, ElementPair b) {
  metal::simdgroup_matrix<Element, 8, 8> left, right;
  metal::simdgroup_matrix<float, 8, 8> total;
  left.thread_elements()[0] = a.x;
  left.thread_elements()[1] = a.y;
  right.thread_elements()[0] = b.x;
  right.thread_elements()[1] = b.y;
  total.thread_elements()[0] = sum.x;
  total.thread_elements()[1] = sum.y;
  simdgroup_multiply_accumulate(total, left, right, total);
  return float2(total.thread_elements()[0], total.thread_elements()[1]);
}
// Transposes without memory. 16 bits: fetch the pairs of rows 2 pair and 2 pair + 1 that hold column `row`, keep one half of each (2
// shuffles). 32 bits: swap one element with the lane a row away, then permute the lanes (3 shuffles).
template <class Pair>
FA_FN Pair transpose(Pair x, Lane l) {
  if constexpr (sizeof(Pair) == 4) {
    const uint word = as_type<uint>(x);
    const ushort2 a = as_type<ushort2>(metal::simd_shuffle(word, l.across));
    const ushort2 b = as_type<ushort2>(metal::simd_shuffle(word, ushort(l.across | 2)));
    return as_type<Pair>(ushort2(l.odd ? a.y : a.x, l.odd ? b.y : b.x));
  } else {
    const float other = metal::simd_shuffle_xor(l.odd ? x.x : x.y, ushort(2));
    const float first = l.odd ? other : x.x, second = l.odd ? x.y : other;
    x.x = metal::simd_shuffle(first, l.transposed);
    x.y = metal::simd_shuffle(second, l.transposed);
    return x;
  }
}
// The value of column `row`, from pairs that are the same in all rows.
FA_FN float to_rows(float2 v, Lane l) { return metal::simd_shuffle(l.odd ? v.y : v.x, l.column); }
FA_FN float2 shuffled(float2 v, ushort mask) { return float2(metal::simd_shuffle_xor(v.x, mask), metal::simd_shuffle_xor(v.y, mask)); }
FA_FN float2 column_max(float2 v) {
  v = metal::max(v, shuffled(v, 2));
  v = metal::max(v, shuffled(v, 4));
  return metal::max(v, shuffled(v, 16));
}
FA_FN float2 column_sum(float2 v) {
  v += shuffled(v, 2);
  v += shuffled(v, 4);
  return v + shuffled(v, 16);
}
// Whether any of the four lanes of a row says so.
FA_FN bool any_in_row(bool yes) {
  uint word = yes ? 1u : 0u;
  word |= metal::simd_shuffle_xor(word, ushort(1));
  word |= metal::simd_shuffle_xor(word, ushort(8));
  return word != 0;
}
// Keeps the compiler from moving loads far from their use, where they would only take registers.
FA_FN void keep_order() { metal::simdgroup_barrier(metal::mem_flags::mem_none); }
}  // namespace fa
