// The baseline of any machine: 4 lanes of GCC's vector extension (SSE2 on x86-64, NEON on aarch64), no header of any instruction set.
// The vocabulary is that of avx2.h. Register block 6 x 2: 15 of 16 registers.
#pragma once
#include "cpu/simd/vector.h"

namespace fa::cpu {
namespace {

using Float4 = Vec<float, 4>;
FA_FN Float4 fma(Float4 a, Float4 b, Float4 c) { return a.x * b.x + c.x; }
FA_FN bool any(Flags<4> c) { return (c.x[0] | c.x[1] | c.x[2] | c.x[3]) != 0; }

struct Scalar : FloatLanes<Scalar, 4> {
  using F = Float4;
  using I = Vec<int, 4>;
  using U = Vec<unsigned, 4>;
  static constexpr int W = 4, MR = 6, NV = 2;

  static FA_INLINE F load(const float* p) { return load_any<F>(p); }
  static FA_INLINE I load(const int* p) { return load_any<I>(p); }
  static FA_INLINE U load(const unsigned* p) { return load_any<U>(p); }
  static FA_INLINE void store(float* p, F v) { store_any(p, v); }
  static FA_INLINE F bcast(const float* p) { return F(*p); }
  static FA_INLINE F dot(F a, F b, F c) { return fma(a, b, c); }

  static FA_INLINE F widen(const float* p) { return load_any<F>(p); }
  static FA_INLINE F widen(const Bf16* p) { return as_float(gather(p) << 16); }
  // Exponents are re-biased by one multiplication, which is exact and brings subnormals along; infinities and NaNs keep their exponent.
  static FA_INLINE F widen(const Half* p) {
    const U h = gather(p);
    const U magnitude = (h & U(0x7fffu)) << 13;
    const U scaled = bits_of(as_float(magnitude) * F(0x1p112f));
    return as_float(select(magnitude >= U(0x7c00u << 13), magnitude | U(0x7f800000u), scaled) | ((h & U(0x8000u)) << 16));
  }
  static FA_INLINE F widen(const Bool* p) {
    const auto bias = [p](int i) { return p[i].value != 0 ? 0.0f : minus_infinity(); };
    return F(F::Raw{bias(0), bias(1), bias(2), bias(3)});
  }
  static FA_INLINE void narrow(float* p, F v) { store_any(p, v); }
  static FA_INLINE void narrow(Bf16* p, F v) {
    const U u = bits_of(v);
    const U rounded = (u + U(0x7fffu) + ((u >> 16) & U(1u))) >> 16;
    scatter(p, select((u & U(0x7fffffffu)) > U(0x7f800000u), U(0x7fc0u), rounded));
  }
  // Nearest even: normal results by adding half a unit to the bits, subnormal ones by an addition that leaves them at the low end.
  static FA_INLINE void narrow(Half* p, F v) {
    const U u = bits_of(v), sign = (u >> 16) & U(0x8000u), magnitude = u & U(0x7fffffffu);
    const U normal = (magnitude + U(0xc8000fffu) + ((magnitude >> 13) & U(1u))) >> 13;
    const U tiny = bits_of(as_float(magnitude) + F(0.5f)) - U(0x3f000000u);
    const U finite = select(magnitude < U(0x38800000u), tiny, normal);
    const U large = select(magnitude > U(0x7f800000u), U(0x7e00u), U(0x7c00u));
    scatter(p, sign | select(magnitude >= U(0x477ff000u), large, finite));
  }

  static FA_INLINE void transpose(F (&r)[W]) {
    F t[W];
    UNROLL
    for (int i = 0; i < W; i++) t[i] = F(F::Raw{r[0].x[i], r[1].x[i], r[2].x[i], r[3].x[i]});
    UNROLL
    for (int i = 0; i < W; i++) r[i] = t[i];
  }
  static FA_INLINE F lane_sums(const F (&r)[W]) {
    F t[W];
    UNROLL
    for (int i = 0; i < W; i++) t[i] = r[i];
    transpose(t);
    return (t[0] + t[1]) + (t[2] + t[3]);
  }
  static FA_INLINE F twice(const float* p, int half) {
    const float x = p[2 * half], y = p[2 * half + 1];
    return F(F::Raw{x, y, x, y});
  }
  static FA_INLINE F twice(const Half* p, int half) {
    const Half x = p[2 * half], y = p[2 * half + 1], both[W] = {x, y, x, y};
    return widen(both);
  }
  static FA_INLINE F half_sums(const F (&r)[2]) {
    const typename F::Raw a = r[0].x, b = r[1].x;
    return F(F::Raw{a[0] + a[1], b[0] + b[1], a[2] + a[3], b[2] + b[3]});
  }
  static FA_INLINE void store_half(float* p, F v, int half) {
    p[0] = v.x[2 * half];
    p[1] = v.x[2 * half + 1];
  }
  static FA_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

 private:
  template <class T>
  static FA_INLINE U gather(const T* p) {
    return U(U::Raw{p[0].bits, p[1].bits, p[2].bits, p[3].bits});
  }
  template <class T>
  static FA_INLINE void scatter(T* p, U v) {
    UNROLL
    for (int i = 0; i < W; i++) p[i].bits = static_cast<uint16_t>(v.x[i]);
  }
};
}  // namespace
}  // namespace fa::cpu
