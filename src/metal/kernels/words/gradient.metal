// The backward station: scores and products with V become dS, from what the forward pass saved.
#pragma once
#include "tile.metal"
namespace fa {
// Of one row: the lse in log2 units, what its rounding lost, and delta = rowsum(dout * out) - dlse.
struct Saved {
  float reference, remainder, delta;
};
template <class Lse, class Delta>
FA_FN Saved saved_at(Lse lse, Delta delta, Int64 at) {
  const float x = lse[at];
  return Saved{lse_reference(x), lse_remainder(x), float_at(delta, at)};
}
// d(score) / d(product) where the score is curved; to be taken before the products become scores.
struct ScoreSlopes {
  Tile tile;
};
template <class Bias>
FA_FN void find_slopes(thread ScoreSlopes& slopes, const thread Tile& tile, Elements<Bias> e) {
  if constexpr ((F & SOFTCAP) != 0) {
    FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
        slopes.tile.x[k][r] = float2(score_slope<F>(tile.x[k][r].x, e.numbers), score_slope<F>(tile.x[k][r].y, e.numbers));
      }
    }
  }
}
// What is hidden may hold anything in V or dout, even a NaN.
FA_FN void hide_products(thread Tile& products, const thread Tile& scores, bool edge) {
  if (edge || (F & BIAS) != 0) {
    FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
        products.x[k][r].x = scores.x[k][r].x == hidden() ? 0.0f : products.x[k][r].x;
        products.x[k][r].y = scores.x[k][r].y == hidden() ? 0.0f : products.x[k][r].y;
      }
    }
  }
}
// P of a pair of elements whose rows have these numbers.
FA_FN float2 saved_probabilities(float2 scores, float unit, Saved a, Saved b) {
  return float2(saved_probability(scores.x, unit, a.reference, a.remainder), saved_probability(scores.y, unit, b.reference, b.remainder));
}
// dS of a pair in natural units; `kept`: 0 or 1 / (1 - p) of dropout
FA_FN float2 score_gradients(float2 probabilities, float2 kept, float2 products, Saved a, Saved b, const thread ScoreSlopes& slopes, int k,
                             int r) {
  float2 d =
      float2(score_gradient(probabilities.x, kept.x, products.x, a.delta), score_gradient(probabilities.y, kept.y, products.y, b.delta));
  if constexpr ((F & SOFTCAP) != 0) {
    d *= slopes.tile.x[k][r];
  }
  return d;
}
template <class Bias>
FA_FN float2 kept_scales(Elements<Bias> e, const thread Columns& columns, int r, int m, float keep_scale) {
  if constexpr ((F & DROPOUT) != 0) {
    const Both kept = is_kept(e, columns, r, m);
    return float2(kept.x ? keep_scale : 0.0f, kept.y ? keep_scale : 0.0f);
  }
  return float2(1.0f);
}
}  // namespace fa
