// Metal's functions on numbers. `fast` and `precise` are the same here: accuracy of the fast ones is not what the emulator can tell.
#pragma once

namespace metal {
#include "math_functions.h"
namespace fast {
#include "math_functions.h"
}
namespace precise {
#include "math_functions.h"
}

METAL_FUNC bool isnan(float x) { return x != x; }
METAL_FUNC bool isnan(half x) { return x != x; }
METAL_FUNC bool isinf(float x) { return __builtin_isinf(x); }
METAL_FUNC bool isinf(half x) { return __builtin_isinf(static_cast<float>(x)); }
METAL_FUNC bool isfinite(float x) { return __builtin_isfinite(x); }
METAL_FUNC bool isfinite(half x) { return __builtin_isfinite(static_cast<float>(x)); }
METAL_FUNC bool signbit(float x) { return __builtin_signbit(x); }
METAL_FUNC float copysign(float x, float y) { return __builtin_copysignf(x, y); }
METAL_FUNC float frexp(float x, int& exponent) { return __builtin_frexpf(x, &exponent); }
METAL_FUNC float modf(float x, float& whole) { return __builtin_modff(x, &whole); }

#define FA_FOR_INTEGERS(T)                                                      \
  METAL_FUNC constexpr T max(T x, T y) { return x < y ? y : x; }                \
  METAL_FUNC constexpr T min(T x, T y) { return y < x ? y : x; }                \
  METAL_FUNC constexpr T clamp(T x, T a, T b) { return min(max(x, a), b); }     \
  METAL_FUNC constexpr T max3(T x, T y, T z) { return max(x, max(y, z)); }      \
  METAL_FUNC constexpr T min3(T x, T y, T z) { return min(x, min(y, z)); }      \
  METAL_FUNC constexpr T abs(T x) { return x < T(0) ? static_cast<T>(-x) : x; } \
  METAL_FUNC constexpr T select(T a, T b, bool c) { return c ? b : a; }
FA_FOR_INTEGERS(char)
FA_FOR_INTEGERS(uchar)
FA_FOR_INTEGERS(short)
FA_FOR_INTEGERS(ushort)
FA_FOR_INTEGERS(int)
FA_FOR_INTEGERS(uint)
FA_FOR_INTEGERS(long)
FA_FOR_INTEGERS(ulong)
METAL_FUNC constexpr bool select(bool a, bool b, bool c) { return c ? b : a; }

// A NaN operand loses against a number.
#define FA_FOR_FLOATS(T)                                                                      \
  METAL_FUNC constexpr T max(T x, T y) { return x != x ? y : y != y ? x : x < y ? y : x; }    \
  METAL_FUNC constexpr T min(T x, T y) { return x != x ? y : y != y ? x : y < x ? y : x; }    \
  METAL_FUNC constexpr T fmax(T x, T y) { return max(x, y); }                                 \
  METAL_FUNC constexpr T fmin(T x, T y) { return min(x, y); }                                 \
  METAL_FUNC constexpr T clamp(T x, T a, T b) { return min(max(x, a), b); }                   \
  METAL_FUNC constexpr T max3(T x, T y, T z) { return max(x, max(y, z)); }                    \
  METAL_FUNC constexpr T min3(T x, T y, T z) { return min(x, min(y, z)); }                    \
  METAL_FUNC constexpr T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); } \
  METAL_FUNC constexpr T abs(T x) { return x < T(0) ? -x : x == T(0) ? T(0) : x; }            \
  METAL_FUNC constexpr T select(T a, T b, bool c) { return c ? b : a; }                       \
  METAL_FUNC constexpr T mix(T x, T y, T a) { return x + (y - x) * a; }                       \
  METAL_FUNC constexpr T sign(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : T(0); }      \
  METAL_FUNC constexpr T saturate(T x) { return clamp(x, T(0), T(1)); }                       \
  METAL_FUNC constexpr T step(T edge, T x) { return x < edge ? T(0) : T(1); }
FA_FOR_FLOATS(float)
FA_FOR_FLOATS(half)

// The same on vectors, element by element.
#define FA_VECTOR_1(NAME)                             \
  template <class T, int N>                           \
  METAL_FUNC vec<T, N> NAME(vec<T, N> x) {            \
    for (int i = 0; i < N; i++) x[i] = NAME(T(x[i])); \
    return x;                                         \
  }
#define FA_VECTOR_2(NAME)                                      \
  template <class T, int N>                                    \
  METAL_FUNC vec<T, N> NAME(vec<T, N> x, vec<T, N> y) {        \
    for (int i = 0; i < N; i++) x[i] = NAME(T(x[i]), T(y[i])); \
    return x;                                                  \
  }
FA_VECTOR_1(abs)
FA_VECTOR_1(sign)
FA_VECTOR_1(saturate)
FA_VECTOR_2(max)
FA_VECTOR_2(min)
FA_VECTOR_2(fmax)
FA_VECTOR_2(fmin)
template <class T, int N>
METAL_FUNC vec<T, N> clamp(vec<T, N> x, vec<T, N> a, vec<T, N> b) {
  return min(max(x, a), b);
}
template <class T, int N>
METAL_FUNC vec<T, N> clamp(vec<T, N> x, T a, T b) {
  return min(max(x, vec<T, N>(a)), vec<T, N>(b));
}
// A comparison of clang's vectors gives integers, all ones for true.
template <class T, int N, class C>
METAL_FUNC vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<C, N> c) {
  for (int i = 0; i < N; i++) a[i] = c[i] ? b[i] : a[i];
  return a;
}
template <class T, int N>
METAL_FUNC T dot(vec<T, N> x, vec<T, N> y) {
  T sum = x[0] * y[0];
  for (int i = 1; i < N; i++) sum = fma(T(x[i]), T(y[i]), sum);
  return sum;
}
template <class T, int N>
METAL_FUNC bool any(vec<T, N> v) {
  for (int i = 0; i < N; i++) {
    if (v[i]) return true;
  }
  return false;
}
template <class T, int N>
METAL_FUNC bool all(vec<T, N> v) {
  for (int i = 0; i < N; i++) {
    if (!v[i]) return false;
  }
  return true;
}

template <class T>
METAL_FUNC constexpr unsigned long long bits_of(T x) {
  return static_cast<unsigned long long>(static_cast<make_unsigned_t<T>>(x));
}
template <class T>
METAL_FUNC constexpr T popcount(T x) {
  return static_cast<T>(__builtin_popcountll(bits_of(x)));
}
template <class T>
METAL_FUNC constexpr T clz(T x) {
  return static_cast<T>(x ? __builtin_clzll(bits_of(x)) - (64 - 8 * static_cast<int>(sizeof(T))) : 8 * static_cast<int>(sizeof(T)));
}
template <class T>
METAL_FUNC constexpr T ctz(T x) {
  return static_cast<T>(x ? __builtin_ctzll(bits_of(x)) : 8 * static_cast<int>(sizeof(T)));
}
METAL_FUNC constexpr uint mulhi(uint x, uint y) { return static_cast<uint>((static_cast<ulong>(x) * y) >> 32); }
METAL_FUNC constexpr int mulhi(int x, int y) { return static_cast<int>((static_cast<long>(x) * y) >> 32); }
METAL_FUNC constexpr uint rotate(uint x, uint n) { return x << (n & 31) | x >> (-n & 31); }
METAL_FUNC constexpr uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }

}  // namespace metal
