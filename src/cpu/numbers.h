// The 16-bit floats as plain bits, and their conversions in integer arithmetic: exact, and the same on every instruction set.
#pragma once
#include "semantics/platform.h"

namespace fa::cpu {
struct f16 {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};

FA_FN float widen(float x) { return x; }
FA_FN double widen(double x) { return x; }
FA_FN float widen(bf16 x) { return __builtin_bit_cast(float, static_cast<unsigned>(x.bits) << 16); }
// Without branches, so that loops over it become vector code on any machine: comparisons make masks. An exponent is moved to its new
// place, a second time for infinity and NaN. Subnormals: one bit of the exponent is added, then its value taken away.
FA_FN float widen(f16 x) {
  const int bits = x.bits, magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  const int infinite = -static_cast<int>(magnitude >= 0x0f800000), subnormal = -static_cast<int>(magnitude < 0x00800000);
  const int moved = magnitude + 0x38000000 + (infinite & 0x38000000);
  const int scaled = __builtin_bit_cast(int, __builtin_bit_cast(float, magnitude + 0x38800000) - 0x1p-14f);
  return __builtin_bit_cast(float, (scaled & subnormal) | (moved & ~subnormal) | sign);
}

// Rounding to nearest, ties to even; NaN stays NaN.
template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  FA_FN float from(float x) { return x; }
};
template <>
struct Narrow<double> {
  FA_FN double from(double x) { return x; }
};
template <>
struct Narrow<bf16> {
  FA_FN bf16 from(float x) {
    const unsigned u = __builtin_bit_cast(unsigned, x);
    const unsigned rounded = u + 0x7fffu + ((u >> 16) & 1u);
    return bf16{static_cast<unsigned short>((x == x ? rounded : u | 0x400000u) >> 16)};
  }
};
template <>
struct Narrow<f16> {
  FA_FN f16 from(float x) {
    const unsigned u = __builtin_bit_cast(unsigned, x);
    const unsigned sign = (u >> 16) & 0x8000u;
    const unsigned magnitude = u & 0x7fffffffu;
    const unsigned normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    // the last bit of 0.5 + x is the last bit of a subnormal half
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    const unsigned subnormal = __builtin_bit_cast(unsigned, shifted) - 0x3f000000u;
    unsigned h = magnitude < 0x38800000u ? subnormal : normal;
    h = magnitude >= 0x477ff000u ? 0x7c00u : h;  // 65520 and above
    h = magnitude > 0x7f800000u ? 0x7e00u : h;
    return f16{static_cast<unsigned short>(h | sign)};
  }
};
template <class T, class Real>
FA_FN T narrow_to(Real x) {
  if constexpr (sizeof(T) == 8) return x;
  return Narrow<T>::from(static_cast<float>(x));
}
}  // namespace fa::cpu
