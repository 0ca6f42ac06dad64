// What every SIMD struct of src/cpu/simd promises, checked lane by lane against plain numbers. Included by one file per instruction set.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/kernels/words.h"
#include "semantics/params.h"
#include "semantics/softmax.h"

namespace fa::cpu {
namespace {
constexpr float INF = std::numeric_limits<float>::infinity();

inline uint32_t bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
// IEEE half precision from its definition
inline float half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  float x = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24) : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  if (exponent == 31) x = mantissa == 0 ? INF : std::nanf("");
  return (h & 0x8000) != 0 ? -x : x;
}
inline uint16_t half_bits(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float a = std::fabs(x);
  if (a >= 65520.0f) return sign | 0x7c00;
  if (a < std::ldexp(1.0f, -14)) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(a, 24)));
  int exponent;
  const float fraction = std::frexp(a, &exponent);  // in [1/2, 1): 11 bits of it are kept, and a carry moves to the exponent
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + (mantissa - 1024));
}
inline uint16_t bf16_bits(float x) {
  if (std::isnan(x)) return 0x7fc0;
  const double unit = std::ldexp(1.0, -7);
  int exponent;
  std::frexp(x, &exponent);
  if (std::isinf(x) || x == 0) return static_cast<uint16_t>(bits(x) >> 16);
  const double step = std::ldexp(unit, std::max(exponent - 1, -126));
  return static_cast<uint16_t>(bits(static_cast<float>(std::nearbyint(x / step) * step)) >> 16);
}
// numbers of all sizes, and those at which something changes
inline std::vector<float> samples() {
  std::vector<float> x{0.0f,     -0.0f,   1.0f,    -1.0f,   INF,    -INF,    65504.0f, 65519.0f,
                       65520.0f, 6.1e-5f, 6.0e-8f, 2.9e-8f, 1e-40f, 3.4e38f, -3.39e38f};
  for (const uint32_t tie : {0x3f808000u, 0x3f818000u, 0xbf801000u, 0x3f803000u, 0x33000000u, 0x33c00000u}) x.push_back(from_bits(tie));
  uint32_t state = 12345;
  while (x.size() < 4096) {
    state = state * 1664525u + 1013904223u;
    const float random = from_bits(state);
    x.push_back(std::isfinite(random) ? random : 1.0f);
    x.push_back(std::ldexp(1.0f + static_cast<float>(state >> 9) * 0x1p-23f, static_cast<int>(state % 40) - 26));
  }
  x.resize(x.size() / 64 * 64);
  return x;
}

template <class S>
struct Block {
  alignas(64) float x[S::W];
};
template <class S>
Block<S> lanes_of(typename S::F v) {
  Block<S> b;
  S::store(b.x, v);
  return b;
}
template <class S>
typename S::F ramp(float first, float step) {
  Block<S> b;
  for (int i = 0; i < S::W; i++) b.x[i] = first + step * static_cast<float>(i);
  return S::load(b.x);
}

template <class S>
void check_halves() {
  for (uint32_t first = 0; first < 65536; first += S::W) {
    Half half[S::W];
    Bf16 brain[S::W];
    for (uint32_t i = 0; i < S::W; i++) half[i].bits = brain[i].bits = static_cast<uint16_t>(first + i);
    const Block<S> h = lanes_of<S>(S::widen(half)), b = lanes_of<S>(S::widen(brain));
    for (uint32_t i = 0; i < S::W; i++) {
      const float expected = half_value(static_cast<uint16_t>(first + i));
      ASSERT_TRUE(std::isnan(expected) ? std::isnan(h.x[i]) : bits(h.x[i]) == bits(expected)) << "half " << first + i;
      ASSERT_EQ(bits(b.x[i]), (first + i) << 16) << "bf16 " << first + i;
    }
  }
  const std::vector<float> x = samples();
  for (size_t first = 0; first < x.size(); first += S::W) {
    Half half[S::W];
    Bf16 brain[S::W];
    S::narrow(half, S::widen(&x[first]));
    S::narrow(brain, S::widen(&x[first]));
    for (size_t i = 0; i < S::W; i++) {
      ASSERT_EQ(half[i].bits, half_bits(x[first + i])) << x[first + i];
      ASSERT_EQ(brain[i].bits, bf16_bits(x[first + i])) << x[first + i];
    }
  }
  Half half[S::W];
  Bf16 brain[S::W];
  S::narrow(half, typename S::F(std::nanf("")));
  S::narrow(brain, typename S::F(from_bits(0x7fffffffu)));
  EXPECT_TRUE(std::isnan(half_value(half[0].bits)));
  EXPECT_TRUE((brain[0].bits & 0x7f80) == 0x7f80 && (brain[0].bits & 0x7f) != 0) << "a NaN must not round to infinity";
}

template <class S>
void check_bools() {
  Bool flags[S::W];
  for (int i = 0; i < S::W; i++) flags[i].value = static_cast<uint8_t>(i % 3 == 1 ? 0 : i + 1);
  const Block<S> b = lanes_of<S>(S::widen(flags));
  for (int i = 0; i < S::W; i++) EXPECT_EQ(b.x[i], i % 3 == 1 ? -INF : 0.0f);
}

template <class S>
void check_arithmetic() {
  using F = typename S::F;
  const F a = ramp<S>(-3.0f, 1.5f), b = ramp<S>(4.0f, -1.0f), c(0.25f);
  const Block<S> sum = lanes_of<S>(fma(a, b, c)), high = lanes_of<S>(max(a, b)), low = lanes_of<S>(min(a, b));
  const Block<S> chosen = lanes_of<S>(select(a > b, a, c));
  for (int i = 0; i < S::W; i++) {
    const float x = -3.0f + 1.5f * static_cast<float>(i), y = 4.0f - static_cast<float>(i);
    EXPECT_EQ(sum.x[i], x * y + 0.25f);
    EXPECT_EQ(high.x[i], std::max(x, y));
    EXPECT_EQ(low.x[i], std::min(x, y));
    EXPECT_EQ(chosen.x[i], x > y ? x : 0.25f);
  }
  for (int lane = 0; lane < S::W; lane++) {  // any() sees each lane
    Block<S> one{};
    one.x[lane] = 1.0f;
    EXPECT_TRUE(any(S::load(one.x) > F(0.5f))) << lane;
  }
  EXPECT_FALSE(any(F(0.0f) > F(0.5f)));
  EXPECT_FALSE(any(F(std::nanf("")) > F(0.5f)));
  EXPECT_FALSE(any(F(2.0f) > F(2.0f)) || any(F(2.0f) < F(2.0f)));
  EXPECT_TRUE(any(F(2.0f) >= F(2.0f)) && any(F(2.0f) <= F(2.0f)) && any(F(2.0f) == F(2.0f)));
}

template <class S>
void check_exp2() {
  using F = typename S::F;
  double worst = 0;
  for (float first = -126.0f; first < 126.0f; first += 0.37f) {
    F x[3] = {ramp<S>(first, 0.011f), ramp<S>(first, 0.037f), ramp<S>(first, 0.0013f)};
    Block<S> in[3], out[3];
    for (int i = 0; i < 3; i++) in[i] = lanes_of<S>(x[i]);
    exp2_of(x);
    for (int i = 0; i < 3; i++) out[i] = lanes_of<S>(x[i]);
    for (int i = 0; i < 3; i++)
      for (int l = 0; l < S::W; l++) worst = std::max(worst, std::fabs(out[i].x[l] / std::exp2(static_cast<double>(in[i].x[l])) - 1));
  }
  EXPECT_LT(worst, 2.5e-7);
  const float numbers[][2] = {{-INF, 0}, {hidden(), 0}, {-1e30f, 0}, {-200.0f, 0}, {0, 1}, {16.0f, 65536.0f}, {128.0f, INF}, {INF, INF}};
  for (const auto& n : numbers) EXPECT_EQ(lanes_of<S>(exp2(F(n[0]))).x[0], n[1]) << n[0];
  EXPECT_TRUE(std::isnan(lanes_of<S>(exp2(F(std::nanf("")))).x[0]));
  EXPECT_EQ(lanes_of<S>(log2(F(8.0f))).x[S::W - 1], 3.0f);
}

template <class S>
void check_shuffles() {
  using F = typename S::F;
  F r[S::W];
  for (int i = 0; i < S::W; i++) r[i] = ramp<S>(static_cast<float>(100 * i), 1.0f);
  const Block<S> sums = lanes_of<S>(S::lane_sums(r));
  for (int i = 0; i < S::W; i++) EXPECT_EQ(sums.x[i], static_cast<float>(S::W * 100 * i + S::W * (S::W - 1) / 2)) << i;
  S::transpose(r);
  for (int i = 0; i < S::W; i++) {
    const Block<S> row = lanes_of<S>(r[i]);
    for (int j = 0; j < S::W; j++) EXPECT_EQ(row.x[j], static_cast<float>(100 * j + i));
  }
}

template <class S>
void check_integers() {
  using U = typename S::U;
  using I = typename S::I;
  alignas(64) unsigned a[S::W], b[S::W];
  alignas(64) int c[S::W];
  for (unsigned i = 0; i < S::W; i++) {
    a[i] = 0x9E3779B9u * (i + 1);
    b[i] = 0xD2511F53u + 77u * i;
    c[i] = static_cast<int>(i) - 3;
  }
  const U high = mulhi(S::load(a), S::load(b));
  const Block<S> distance = lanes_of<S>(to_float(abs(S::load(c) - I(2))));
  for (int i = 0; i < S::W; i++) {
    EXPECT_EQ(high.x[i], static_cast<unsigned>((static_cast<uint64_t>(a[i]) * b[i]) >> 32)) << i;
    EXPECT_EQ(distance.x[i], static_cast<float>(std::abs(c[i] - 2)));
  }
  // comparisons of unsigned lanes are unsigned
  EXPECT_TRUE(any(U(1u) < U(0x80000000u)));
  EXPECT_FALSE(any(U(0x80000000u) < U(1u)));
}

// semantics/ on vectors is semantics/ on numbers
template <class S>
void check_semantics() {
  using F = typename S::F;
  using U = typename S::U;
  const ScoreT<float> params{0.3f, 4.0f};
  const F dot = ramp<S>(-30.0f, 60.0f / S::W), slope = ramp<S>(0.5f, -0.02f), distance = ramp<S>(0.0f, 3.0f), bias = ramp<S>(-1e21f, 3e20f);
  const Block<S> d = lanes_of<S>(dot), s = lanes_of<S>(slope), far = lanes_of<S>(distance), add = lanes_of<S>(bias);
  const Block<S> all = lanes_of<S>(score<SOFTCAP | ALIBI | BIAS>(dot, params, slope, distance, bias));
  const Block<S> steep = lanes_of<S>(score_slope<SOFTCAP>(dot, params));
  for (int i = 0; i < S::W; i++) {
    const float expected = score<SOFTCAP | ALIBI | BIAS>(d.x[i], params, s.x[i], far.x[i], add.x[i]);
    EXPECT_NEAR(all.x[i], expected, 2e-6 * std::max(1.0f, std::fabs(expected))) << i;
    EXPECT_NEAR(steep.x[i], score_slope<SOFTCAP>(d.x[i], params), 1e-6) << i;
  }
  alignas(64) unsigned rows[S::W];
  for (unsigned i = 0; i < S::W; i++) rows[i] = 5 + 3 * i;
  const Seed seed{1, 2, 3};
  for (unsigned key = 0; key < 70; key += 9) {
    const U w = dropout_bits(dropout_words(seed, U(7u), S::load(rows), U(key)), S::load(rows), U(key));
    for (int i = 0; i < S::W; i++) EXPECT_EQ(w.x[i], dropout_bits(dropout_words(seed, 7u, rows[i], key), rows[i], key)) << i;
  }
}

template <class S>
void check_floats() {
  check_halves<S>();
  check_bools<S>();
  check_arithmetic<S>();
  check_exp2<S>();
  check_shuffles<S>();
  check_integers<S>();
  check_semantics<S>();
}

// Tiles, whose lanes hold STEP elements: what goes in as rows of floats comes out of products.
template <class S>
void check_tiles() {
  using F = typename S::F;
  using Lane = typename S::Lane;
  alignas(64) Lane tile[S::W];
  const F x = ramp<S>(1.0f, 0.5f), y = ramp<S>(-2.0f, 0.25f);  // exact in bf16
  const auto rows = [&](float a, float b) {                    // a * first row + b * second row of the tile
    alignas(64) Lane weights[S::W];
    S::store_p(weights, F(a), F(b));
    return lanes_of<S>(S::dot(S::bcast(weights), S::load_lanes(tile), F(0.5f)));
  };
  const float second = S::STEP == 2 ? 1.0f : 0.0f;
  const auto expect = [&](float x_factor, float y_factor, const char* what) {
    const Block<S> a = rows(1.0f, 0.0f), b = rows(2.0f, 3.0f);
    for (int i = 0; i < S::W; i++) {
      const float u = x_factor * (1.0f + 0.5f * static_cast<float>(i)), v = second * y_factor * (-2.0f + 0.25f * static_cast<float>(i));
      EXPECT_EQ(a.x[i], 0.5f + u) << what << " " << i;
      EXPECT_EQ(b.x[i], 0.5f + 2.0f * u + 3.0f * v) << what << " " << i;
    }
  };
  S::store_p(tile, x, y);
  expect(1, 1, "store_p");
  S::scale_p(tile, F(0.5f));
  expect(0.5f, 0.5f, "scale_p");
  S::keep_p(tile, 0, F(1.0f) > F(0.0f));
  expect(0.5f, 0.5f, "keep_p, kept");
  S::keep_p(tile, 0, F(0.0f) > F(1.0f));
  expect(0, 0.5f, "keep_p of the first row");
  S::store_p(tile, x, y);
  S::keep_p(tile, S::STEP - 1, F(0.0f) > F(1.0f));
  expect(S::STEP == 2 ? 1.0f : 0.0f, 0, "keep_p of the last row");
  S::store_lanes(tile, F(0.0f));
  expect(0, 0, "store_lanes");
}

// Products of a row of bf16 elements, and of one of floats, neighbours in a lane, whatever a lane holds.
template <class S>
void check_lanes() {
  using F = typename S::F;
  constexpr int N = S::W * S::STEP;
  Bf16 row[N];
  for (int i = 0; i < N; i++) row[i].bits = bf16_bits(static_cast<float>(i % 7 - 3));
  alignas(64) typename S::Lane tile[S::W], ones[S::W];
  S::store_lanes(tile, S::lanes(row));
  S::store_p(ones, F(1.0f), F(1.0f));
  const Block<S> sums = lanes_of<S>(S::dot(S::bcast(ones), S::load_lanes(tile), F(0.0f)));
  for (int i = 0; i < S::W; i++) {
    float expected = 0;
    for (int a = 0; a < S::STEP; a++) expected += static_cast<float>((i * S::STEP + a) % 7 - 3);
    EXPECT_EQ(sums.x[i], expected) << i;
  }
  Bf16 next[N];
  for (int i = 0; i < N; i++) next[i].bits = bf16_bits(static_cast<float>(i % 5));
  alignas(64) typename S::Lane along[S::W], weights[S::W];
  S::store_along(along, ramp<S>(1.0f, 0.5f));
  S::store_p(weights, F(1.0f), F(10.0f));
  for (int i = 0; i < S::W / S::STEP; i++) {
    const Block<S> sum = lanes_of<S>(S::dot(S::bcast(along + i), S::load_lanes(weights), F(0.0f)));
    const float first = 1.0f + 0.5f * static_cast<float>(i * S::STEP), both = first + 10.0f * (first + 0.5f);
    EXPECT_EQ(sum.x[0], S::STEP == 2 ? both : first) << i;
  }
  for (int part = 0; part < S::STEP; part++) {
    S::store_lanes(tile, S::across(S::lanes(row), S::lanes(next), part));
    const Block<S> sum = lanes_of<S>(S::dot(S::bcast(weights), S::load_lanes(tile), F(0.0f)));
    for (int i = 0; i < S::W; i++) {
      const int element = part * S::W + i;
      EXPECT_EQ(sum.x[i], static_cast<float>(element % 7 - 3 + (S::STEP == 2 ? 10 * (element % 5) : 0))) << element;
    }
  }
}
}  // namespace
}  // namespace fa::cpu
