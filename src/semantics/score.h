// From the product q.k to the exponent of the softmax: scale, softcap, ALiBi, bias. exponent = score * score_unit, in log2 units.
// Where no feature changes the score, the score is the product itself and the scale sits in the unit: kernels then fold it into the
// fused multiply-add in front of exp2, and pay nothing for it. (A scale <= 0 comes with the NATURAL bit.)
#pragma once
#include "features.h"
#include "platform.h"
namespace fa {
template <class Real>
struct ScoreT {
  Real scale, softcap;  // softcap is read only when the variant has SOFTCAP
};
FA_FN float log2e() { return 1.44269504088896341f; }
FA_FN float ln2() { return 0.69314718055994531f; }
// what a hidden key's score becomes: far below every real score, but finite, so that differences stay numbers
FA_FN float hidden() { return -1e33f; }

// tanh without infinities (argument clamped) and without cancellation near 0 (series)
template <class V>
FA_FN V bounded_tanh(V x) {
  const V c = max(min(x, V(20.0)), V(-20.0));
  const V y = c * c;
  const V high = fma(y, fma(y, V(-0.0014558343870513183), V(0.0035921280365724810)), V(-0.0088632355299021966));
  const V low = fma(y, fma(y, fma(y, high, V(0.021869488536155203)), V(-0.053968253968253968)), V(0.13333333333333333));
  const V series = fma(y, low, V(-0.33333333333333333));
  const V small = c * fma(y, series, V(1.0));
  const V large = V(1.0) - V(2.0) / (exp2(c * V(2.8853900817779268)) + V(1.0));
  return select(y < V(0.03), small, large);
}
// softcap: s -> cap * tanh(s / cap);  ds'/ds = 1 - tanh^2(s / cap)
template <class V, class Real>
FA_FN V softcap(V s, Real cap) {
  return V(cap) * bounded_tanh(s / V(cap));
}
template <class V, class Real>
FA_FN V softcap_slope(V s, Real cap) {
  const V t = bounded_tanh(s / V(cap));
  return V(1.0) - t * t;
}
// a bias below -1e20 (or -inf) hides its key, as False does in a bool mask
template <class V>
FA_FN V add_bias(V s, V bias) {
  return select(bias < V(-1e20), V(hidden()), s + bias);
}
// distance = |row + shift - key|, bias: unscaled, natural units
template <unsigned F, class V, class Real>
FA_FN V score(V dot, ScoreT<Real> s, V slope, V distance, V bias) {
  V x = dot;
  if constexpr ((F & CHANGES_SCORE) != 0) {
    x = dot * V(s.scale);
  }
  if constexpr ((F & SOFTCAP) != 0) {
    x = softcap(x, s.softcap);
  }
  if constexpr ((F & ALIBI) != 0) {
    x = x - slope * distance;
  }
  if constexpr ((F & BIAS) != 0) {
    x = add_bias(x, bias);
  }
  return x;
}
template <unsigned F, class Real>
FA_FN Real score_unit(ScoreT<Real> s) {
  if constexpr ((F & CHANGES_SCORE) != 0) {
    return Real(1.4426950408889634);
  }
  return s.scale * Real(1.4426950408889634);
}
// d(score in natural units) / d(dot * scale): what the backward pass multiplies dS by
template <unsigned F, class V, class Real>
FA_FN V score_slope(V dot, ScoreT<Real> s) {
  if constexpr ((F & SOFTCAP) != 0) {
    return softcap_slope(dot * V(s.scale), s.softcap);
  }
  return V(1.0);
}
}  // namespace fa
