// Online softmax of one row (or one row per vector lane), in log2 units and without infinities inside: a hidden score is hidden(), the
// maximum starts at no_maximum(), far above it, so a row that sees nothing ends with sum == 0.
#pragma once
#include "platform.h"
#include "score.h"
namespace fa {
template <class V>
struct Softmax {
  V max, sum;
};
FA_FN float no_maximum() { return -1e20f; }

// what everything accumulated so far must be multiplied by when the maximum moves
template <class V>
FA_FN V rescale(V old_max, V new_max) {
  return exp2(old_max - new_max);
}
template <class V>
FA_FN V probability(V score, V unit, V maximum) {
  return exp2(fma(score, unit, V(0.0) - maximum));
}
template <class V>
FA_FN Softmax<V> advance(Softmax<V> s, V tile_max) {
  const V m = max(s.max, tile_max);
  return Softmax<V>{m, s.sum * rescale(s.max, m)};
}
// a learnable sink is one more key of score `sink` (natural units) without a value: it enters the sum and nothing else
template <class V>
FA_FN Softmax<V> add_sink(Softmax<V> s, V sink) {
  const V x = sink * V(1.4426950408889634);
  const Softmax<V> t = advance(s, x);
  return Softmax<V>{t.max, t.sum + exp2(x - t.max)};
}
template <class V>
FA_FN V inverse_sum(Softmax<V> s) {
  return select(s.sum == V(0.0), V(0.0), V(1.0) / s.sum);  // NaN stays NaN
}
// natural logarithm of the sum of exponentials; -inf for a row that sees nothing
template <class V>
FA_FN V log_sum_exp(Softmax<V> s) {
  const V sum = log2(s.sum) * V(0.69314718055994531);
  return select(s.sum == V(0.0), V(minus_infinity()), fma(s.max, V(0.69314718055994531), sum));
}
// what the backward pass subtracts from a score in log2 units: the lse, or a huge number for a row that sees nothing, so that P = 0
template <class V>
FA_FN V lse_reference(V lse) {
  return select(lse <= V(-1e30), V(1e30), lse * V(1.4426950408889634));
}
// what lse_reference() loses in float32, for kernels that compute in it: up to half a unit of a number that may be large, and P would
// be off by as much. Subtracted after the reference, when the difference is small.
template <class V>
FA_FN V lse_remainder(V lse) {
  const V product = lse * V(1.4426950408889634);
  const V lost = fma(lse, V(1.4426950408889634), V(0.0) - product);
  return select(lse <= V(-1e30), V(0.0), fma(lse, V(1.9259629911266175e-8), lost));
}
// P of a row whose lse is known: probability() with lse_reference() for its maximum, and what that lost
template <class V>
FA_FN V saved_probability(V score, V unit, V reference, V remainder) {
  return exp2(fma(score, unit, V(0.0) - reference) - remainder);
}
// dS of one element in natural units: P (kept (dO.V) - delta), delta = rowsum(dO * O) - dlse
template <class V>
FA_FN V score_gradient(V probability, V kept, V product, V delta) {
  return probability * fma(kept, product, V(0.0) - delta);
}
// d(lse) / d(sink) and what it weighs: dsink = sum over rows of -exp(sink - lse) * delta
template <class V>
FA_FN V sink_gradient(V sink, V lse, V delta) {
  const V weight = exp2(fma(sink, V(1.4426950408889634), V(0.0) - lse_reference(lse)));
  return V(0.0) - weight * delta;
}
}  // namespace fa
