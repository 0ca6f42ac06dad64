// Values of W lanes with the words of semantics/: written once over the vector extension of GCC and Clang, completed by each
// instruction set's header where it has something better (fma, max, exp2, select ...). Templates of semantics/ find the words by
// argument-dependent lookup. Everything is local to the translation unit: no ISA may lend its code to another one.
#pragma once
#include <cstdint>

#include "semantics/dropout.h"
#include "semantics/platform.h"

#define FA_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace fa::cpu {
namespace {

// The scalar words stay visible beside the vector ones.
using fa::abs;
using fa::exp2;
using fa::fma;
using fa::log2;
using fa::max;
using fa::min;
using fa::mulhi;
using fa::select;

// Elements of 16-bit and bool arrays.
struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};
struct Bool {
  uint8_t value;
};

template <class E, int W>
struct RawVec {
  typedef E Type __attribute__((vector_size(sizeof(E) * W)));
};
template <class E, int W>
struct Vec {
  using Raw = typename RawVec<E, W>::Type;
  Raw x;
  Vec() = default;
  FA_INLINE Vec(Raw raw) : x(raw) {}
  FA_INLINE explicit Vec(E e) : x(Raw{} + e) {}
};
template <int W>
struct Vec<float, W> {
  using Raw = typename RawVec<float, W>::Type;
  Raw x;
  Vec() = default;
  FA_INLINE Vec(Raw raw) : x(raw) {}
  FA_INLINE explicit Vec(float e) : x(e - Raw{}) {}
  FA_INLINE explicit Vec(double e) : Vec(static_cast<float>(e)) {}
};
// Lanes that are all ones or all zeros: the result of a comparison.
template <int W>
struct Flags {
  using Raw = typename RawVec<int, W>::Type;
  Raw x;
};
template <int W>
FA_FN Flags<W> operator&(Flags<W> a, Flags<W> b) {
  return {a.x & b.x};
}
template <int W>
FA_FN Flags<W> operator|(Flags<W> a, Flags<W> b) {
  return {a.x | b.x};
}
template <int W>
FA_FN Flags<W> and_not(Flags<W> a, Flags<W> b) {
  return {a.x & ~b.x};
}

template <class E, int W>
FA_FN Vec<E, W> operator+(Vec<E, W> a, Vec<E, W> b) {
  return a.x + b.x;
}
template <class E, int W>
FA_FN Vec<E, W> operator-(Vec<E, W> a, Vec<E, W> b) {
  return a.x - b.x;
}
template <class E, int W>
FA_FN Vec<E, W> operator*(Vec<E, W> a, Vec<E, W> b) {
  return a.x * b.x;
}
template <int W>
FA_FN Vec<float, W> operator/(Vec<float, W> a, Vec<float, W> b) {
  return a.x / b.x;
}
template <class E, int W>
FA_FN Vec<E, W> operator&(Vec<E, W> a, Vec<E, W> b) {
  return a.x & b.x;
}
template <class E, int W>
FA_FN Vec<E, W> operator|(Vec<E, W> a, Vec<E, W> b) {
  return a.x | b.x;
}
template <class E, int W>
FA_FN Vec<E, W> operator^(Vec<E, W> a, Vec<E, W> b) {
  return a.x ^ b.x;
}
template <class E, int W>
FA_FN Vec<E, W> operator<<(Vec<E, W> a, int n) {
  return a.x << n;
}
template <class E, int W>
FA_FN Vec<E, W> operator>>(Vec<E, W> a, int n) {
  return a.x >> n;
}
template <class E, int W>
FA_FN Vec<E, W> operator>>(Vec<E, W> a, Vec<E, W> n) {
  return a.x >> n.x;
}
template <class E, int W>
FA_FN Flags<W> operator<(Vec<E, W> a, Vec<E, W> b) {
  return {a.x < b.x};
}
template <class E, int W>
FA_FN Flags<W> operator>(Vec<E, W> a, Vec<E, W> b) {
  return {a.x > b.x};
}
template <class E, int W>
FA_FN Flags<W> operator<=(Vec<E, W> a, Vec<E, W> b) {
  return {a.x <= b.x};
}
template <class E, int W>
FA_FN Flags<W> operator>=(Vec<E, W> a, Vec<E, W> b) {
  return {a.x >= b.x};
}
template <class E, int W>
FA_FN Flags<W> operator==(Vec<E, W> a, Vec<E, W> b) {
  return {a.x == b.x};
}

// The same bits as another kind of lane.
template <int W>
FA_FN Vec<unsigned, W> bits_of(Vec<float, W> a) {
  return (typename Vec<unsigned, W>::Raw)a.x;
}
template <int W>
FA_FN Vec<float, W> as_float(Vec<unsigned, W> a) {
  return (typename Vec<float, W>::Raw)a.x;
}
template <int W>
FA_FN Vec<unsigned, W> to_unsigned(Vec<int, W> a) {
  return (typename Vec<unsigned, W>::Raw)a.x;
}
template <int W>
FA_FN Vec<float, W> to_float(Vec<int, W> a) {
  return __builtin_convertvector(a.x, typename Vec<float, W>::Raw);
}

template <class E, int W>
FA_FN Vec<E, W> select(Flags<W> c, Vec<E, W> yes, Vec<E, W> no) {
  typedef typename Flags<W>::Raw Bits;
  return (typename Vec<E, W>::Raw)((c.x & (Bits)yes.x) | (~c.x & (Bits)no.x));
}
template <class E, int W>
FA_FN Vec<E, W> max(Vec<E, W> a, Vec<E, W> b) {
  return select(a > b, a, b);
}
template <class E, int W>
FA_FN Vec<E, W> min(Vec<E, W> a, Vec<E, W> b) {
  return select(a < b, a, b);
}
template <int W>
FA_FN Vec<int, W> abs(Vec<int, W> a) {
  return max(a, Vec<int, W>(0) - a);
}
template <int W>
FA_FN Vec<float, W> log2(Vec<float, W> a) {
  Vec<float, W> r(0.0f);
  for (int i = 0; i < W; i++) r.x[i] = __builtin_log2f(a.x[i]);
  return r;
}
template <int W>
FA_FN Vec<unsigned, W> mulhi(Vec<unsigned, W> a, Vec<unsigned, W> b) {
  Vec<unsigned, W> r(0u);
  UNROLL
  for (int i = 0; i < W; i++) r.x[i] = static_cast<unsigned>((static_cast<uint64_t>(a.x[i]) * b.x[i]) >> 32);
  return r;
}

// 2^x of N vectors at once: relative error 1.6e-7 up to x = 127; exactly 0 at and below -127, for -inf too; NaN stays NaN. The
// polynomial is fitted with its constant fixed at 1, so the bits cancel at -127. Stage by stage, because one chain is 40 cycles long
// and a core's scheduler holds too few of them.
template <class F, int N>
FA_FN void exp2_of(F (&x)[N]) {
  const F magic(12582912.0f);  // adding it leaves round(x) in the low bits of the mantissa
  F t[N], p[N];
  UNROLL
  for (int i = 0; i < N; i++) {
    x[i] = max(F(-127.0f), x[i]);
    t[i] = x[i] + magic;
  }
  UNROLL
  for (int i = 0; i < N; i++) x[i] = x[i] - (t[i] - magic);  // in [-1/2, 1/2]
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(x[i], F(1.32647273e-3f), F(9.67151299e-3f));
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(p[i], x[i], F(5.55073358e-2f));
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(p[i], x[i], F(2.40222424e-1f));
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(p[i], x[i], F(6.93147004e-1f));
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(p[i], x[i], F(1.0f));
  UNROLL
  for (int i = 0; i < N; i++) x[i] = as_float(bits_of(p[i]) + (bits_of(t[i]) << 23));
}
// The word of semantics/: one vector, and infinity from 128 on.
template <int W>
FA_FN Vec<float, W> exp2(Vec<float, W> x) {
  Vec<float, W> r[1] = {min(Vec<float, W>(128.0f), x)};
  exp2_of(r);
  return r[0];
}

// The value in a register of its own. Without it g++ reads an operand that several products share from memory for each of them.
template <int W>
FA_FN Vec<float, W> in_register(Vec<float, W> a) {
#if defined(__x86_64__)
  asm("" : "+v"(a.x));
#elif defined(__aarch64__)
  asm("" : "+w"(a.x));
#endif
  return a;
}

// Tiles whose lanes are floats, for a set S of W of them; a set with lanes of another kind hides these by its own.
template <class S, int W>
struct FloatLanes {
  using Lane = float;
  static constexpr int STEP = 1;
  template <class T>
  static FA_INLINE Vec<float, W> lanes(const T* p) {
    return S::widen(p);
  }
  static FA_INLINE Vec<float, W> load_lanes(const float* p) { return S::load(p); }
  static FA_INLINE void store_lanes(float* p, Vec<float, W> v) { S::store(p, v); }
  static FA_INLINE void store_p(float* p, Vec<float, W> v, Vec<float, W>) { S::store(p, v); }
  static FA_INLINE void store_along(float* p, Vec<float, W> v) { S::store(p, v); }
  static FA_INLINE Vec<float, W> across(Vec<float, W> x, Vec<float, W>, int) { return x; }
  static FA_INLINE void scale_p(float* p, Vec<float, W> factor) { S::store(p, factor * S::load(p)); }
  static FA_INLINE void keep_p(float* p, int, Flags<W> keep) { S::store(p, select(keep, S::load(p), Vec<float, W>(0.0f))); }
};

// Memory of the caller: any alignment. A kernel's own scratch is read and written by the load and store of its instruction set.
template <class V, class P>
FA_FN V load_any(const P* p) {
  V r;
  __builtin_memcpy(&r.x, p, sizeof r.x);
  return r;
}
template <class V, class P>
FA_FN void store_any(P* p, V v) {
  __builtin_memcpy(p, &v.x, sizeof v.x);
}
}  // namespace
}  // namespace fa::cpu
