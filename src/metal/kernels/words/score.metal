// The stations score, hide and weigh on tiles. A tile of scores is a pair a lane for each 8x8 matrix; rows are what streams by, columns
// what a simdgroup holds.
#pragma once
#include "rows.metal"
#include "semantics/softmax.h"
namespace fa {
constant constexpr const unsigned F = FA_F;

// What the elements of a sequence and head need, besides their position.
template <class Bias>
struct Elements {
  ScoreT<float> numbers;
  float unit;  // of a score, to log2 units
  Mask mask;
  float slope;
  Bias bias;
  Int64 bias_at, bias_row, bias_key;
  Dropout dropout;
  Seed seed;
  unsigned stream;
  int q_offset, k_offset;
};
template <class Bias, class SeedArray>
FA_FN Elements<Bias> elements_of(ParamsPointer p, Sequence s, Head h, Bias bias, SeedArray seed) {
  Elements<Bias> e;
  e.numbers = score_numbers(p);
  e.unit = score_unit<F>(e.numbers);
  e.mask = s.mask;
  e.slope = h.slope;
  e.bias = bias;
  e.bias_at = h.bias;
  e.bias_row = p->bias.row;
  e.bias_key = p->bias.key;
  e.dropout = Dropout{p->dropout.threshold};
  e.seed = seed_of(seed);
  e.stream = h.stream;
  e.q_offset = p->q_offset;
  e.k_offset = p->k_offset;
  return e;
}
// The score of one element; positions outside of the sequence are clamped, which is only for what will be hidden.
template <class Bias>
FA_FN float element_score(Elements<Bias> e, float dot, float slope, int row, int key) {
  float bias = 0.0f;
  if constexpr ((F & BIAS) != 0) {
    const int i = min(max(row, 0), e.mask.rows - 1), j = min(max(key, 0), e.mask.keys - 1);
    bias = bias_at(e.bias, e.bias_at + i * e.bias_row + j * e.bias_key);
  }
  return score<F>(dot, e.numbers, slope, float(abs(row + e.mask.shift - key)), bias);
}
FA_FN bool within(Interval<int> interval, int x) { return x >= interval.first && x < interval.end; }

// Dropout's decisions on rows {i, i + 8} x keys {j, j + 8, j + 16, j + 24}: one bit each, at ((row / 8) % 2) * 4 + (key / 8) % 4.
template <class Bias>
FA_FN uint kept_bits(Elements<Bias> e, int row, int key) {
  const Words<uint> words = dropout_words(e.seed, e.stream, uint(row + e.q_offset), uint(key + e.k_offset));
  uint bits = 0;
  FA_UNROLL for (uint n = 0; n < 8; n++) { bits |= dropout_bits(words, 8u * (n >> 2), 8u * (n & 3u)) < e.dropout.threshold ? 1u << n : 0u; }
  return bits;
}
template <class Bias>
FA_FN bool is_kept(Elements<Bias> e, uint bits, int row, int key) {
  const uint i = uint(row + e.q_offset), j = uint(key + e.k_offset);
  return ((bits >> (((i >> 3) & 1u) * 4u + ((j >> 3) & 3u))) & 1u) != 0;
}
}  // namespace fa
