// What the features do to the elements that one lane holds of a tile of products: score, hide, drop. `Elements` knows the sequence, the
// head and the arrays; the kernels know which row and key a register belongs to.
#pragma once
#include "lanes.cuh"
#include "semantics/dropout.h"
#include "semantics/softmax.h"
#include "where.cuh"
namespace fa::cuda {
constexpr unsigned F = FA_F;
constexpr bool CHANGED = (F & CHANGES_SCORE) != 0, DROPS = (F & DROPOUT) != 0;

// Out of line: one Philox call an element, for diagonals that split the tiles of a call.
__device__ __noinline__ bool keeps_element(Dropout d, Seed seed, unsigned head, unsigned row, unsigned key) {
  return keeps(d, seed, head, row, key);
}

// The sequence's mask; without attention_chunk its division is no part of the kernel.
FA_FN Mask mask_of(const Sequence& s) {
  Mask m = s.mask;
  if constexpr ((FA_NEEDS & 64u) == 0) m.chunk = 0;
  return m;
}

struct Elements {
  Mask mask;
  ScoreT<Real> numbers;
  Real slope;
  const void* bias;  // of element (0, 0) of this head, or null
  Int64 bias_row, bias_key;
  Dropout dropout;
  Seed seed;
  unsigned head;  // batch * heads + head, as dropout counts
  int q_offset, k_offset;
  Real keep_scale;

  FA_MEMBER Elements(const Numbers& p, const Arrays& a, const Sequence& s, int query_head)
      : mask(mask_of(s)),
        numbers(p.score),
        slope(0),
        bias(nullptr),
        bias_row(p.bias.row),
        bias_key(p.bias.key),
        dropout(p.dropout),
        seed{},
        head(static_cast<unsigned>(s.index * p.heads + query_head)),
        q_offset(p.q_offset),
        k_offset(p.k_offset),
        keep_scale(1) {
    if constexpr ((F & ALIBI) != 0) slope = slope_of(p, a, s, query_head);
    if constexpr ((F & BIAS) != 0) bias = bias_of(p, a, s, query_head);
    if constexpr (DROPS) seed = seed_of(a), keep_scale = p.keep_scale;
  }
  FA_MEMBER Real unit() const { return score_unit<F>(numbers); }

  // in units of unit(); rows and keys beyond the sequence read the bias of its last ones, and are hidden afterwards
  FA_MEMBER Real score(Real product, int row, int key) const {
    if constexpr (!CHANGED) return product;
    Real b = 0;
    if constexpr ((F & BIAS) != 0) b = load_bias(bias, min(row, mask.rows - 1) * bias_row + min(key, mask.keys - 1) * bias_key);
    return fa::score<F>(product, numbers, slope, static_cast<Real>(abs(row + mask.shift - key)), b);
  }
  FA_MEMBER bool hidden_by_bias(Real score) const { return (F & BIAS) != 0 && score == Real(hidden()); }
  FA_MEMBER Real score_slope(Real product) const { return fa::score_slope<F>(product, numbers); }
  // The Philox call whose aligned tile (16 rows x 32 keys) holds this row and key decides them all, if tiles start at multiples of it.
  FA_MEMBER bool dropout_aligned() const { return ((q_offset & 15) | (k_offset & 31)) == 0; }
  FA_MEMBER Words<unsigned> dropout_tile(int row, int key) const {
    return dropout_words(seed, head, static_cast<unsigned>(row + q_offset), static_cast<unsigned>(key + k_offset));
  }
  FA_MEMBER bool keeps_in(Words<unsigned> tile, int row, int key) const {
    return dropout_bits(tile, static_cast<unsigned>(row), static_cast<unsigned>(key)) < dropout.threshold;
  }
  FA_MEMBER bool keeps(int row, int key) const {
    return keeps_element(dropout, seed, head, static_cast<unsigned>(row + q_offset), static_cast<unsigned>(key + k_offset));
  }
};
}  // namespace fa::cuda
