// The conversions of 16-bit floats, all values of them: against what their bits mean, not against another conversion.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/numbers.h"

namespace {
using namespace fa::cpu;

// the value of sign, exponent and fraction bits
double meaning(unsigned bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits) & top;
  const double fraction = static_cast<double>(bits & ((1u << fraction_bits) - 1u)) / (1u << fraction_bits);
  const double sign = (bits >> 15) != 0 ? -1.0 : 1.0;
  if (exponent == top) return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1 + fraction, exponent - bias);
}
float next(float x, float towards) { return std::nextafter(x, towards); }

template <class T>
void check(int exponent_bits, int fraction_bits) {
  const auto value_of = [&](unsigned bits) { return meaning(bits, exponent_bits, fraction_bits); };
  for (unsigned bits = 0; bits < 65536; bits++) {
    const double expected = value_of(bits);
    const float wide = widen(T{static_cast<unsigned short>(bits)});
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(wide)) << bits;
      EXPECT_TRUE(std::isnan(widen(narrow_to<T>(wide)))) << bits;
      continue;
    }
    ASSERT_EQ(static_cast<double>(wide), expected) << bits;
    ASSERT_EQ(std::signbit(wide), std::signbit(expected)) << bits;
    ASSERT_EQ(narrow_to<T>(wide).bits, bits);
    ASSERT_EQ(narrow_to<T>(expected).bits, bits);
  }
  // between two neighbours: to the nearer one, halfway to the even one
  for (unsigned bits = 0; (bits & 0x7fffu) < 0x7fffu && std::isfinite(value_of(bits + 1)); bits++) {
    const double low = value_of(bits), high = value_of(bits + 1);
    const float middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(narrow_to<T>(middle).bits, bits + (bits & 1u)) << bits;
    ASSERT_EQ(narrow_to<T>(next(middle, 0.0f)).bits, bits) << bits;
    ASSERT_EQ(narrow_to<T>(next(middle, std::numeric_limits<float>::infinity())).bits, bits + 1) << bits;
    ASSERT_EQ(narrow_to<T>(-middle).bits, 0x8000u + bits + (bits & 1u)) << bits;
  }
}

TEST(Numbers, Float16) { check<f16>(5, 10); }
TEST(Numbers, Bfloat16) { check<bf16>(8, 7); }
TEST(Numbers, WhatIsTooLargeBecomesInfinite) {
  EXPECT_EQ(narrow_to<f16>(65519.0f).bits, 0x7bffu);
  EXPECT_EQ(narrow_to<f16>(65520.0f).bits, 0x7c00u);
  EXPECT_EQ(narrow_to<f16>(-1e30f).bits, 0xfc00u);
  EXPECT_EQ(narrow_to<bf16>(std::numeric_limits<float>::max()).bits, 0x7f80u);
}
}  // namespace
