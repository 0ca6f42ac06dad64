// The words every compiler must offer; everything else in this folder is written in them. The only file with an #if per compiler.
// House rule: a semantic function takes values and returns a value. No pointer, no reference, no loop over memory, no state: that is
// what lets one text compile as C++ (scalars and SIMD vectors), CUDA, Metal (no address space ever appears) and, translated, Triton.
#pragma once
#if defined(__METAL_VERSION__) || defined(__METAL__)
#define FA_FN static inline __attribute__((always_inline))
namespace fa {
typedef long Int64;
using metal::abs;
using metal::fma;
using metal::log2;
using metal::max;
using metal::min;
template <class V>
FA_FN V exp2(V x) {
  return metal::fast::exp2(x);
}
FA_FN unsigned mulhi(unsigned a, unsigned b) { return metal::mulhi(a, b); }
template <class V>
FA_FN V select(bool c, V yes, V no) {
  return c ? yes : no;
}
FA_FN float minus_infinity() { return as_type<float>(0xff800000u); }
}  // namespace fa
#elif defined(__CUDACC__)
#define FA_FN static __device__ __forceinline__
namespace fa {
typedef long long Int64;
FA_FN int abs(int x) { return x < 0 ? -x : x; }
FA_FN int min(int a, int b) { return ::min(a, b); }
FA_FN int max(int a, int b) { return ::max(a, b); }
FA_FN float max(float a, float b) { return fmaxf(a, b); }
FA_FN float min(float a, float b) { return fminf(a, b); }
FA_FN float fma(float a, float b, float c) { return fmaf(a, b, c); }
FA_FN float exp2(float x) {
  float y;  // one instruction; exp2f() adds three for results below the smallest normal number, which become 0 here
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FA_FN float log2(float x) { return log2f(x); }
FA_FN double max(double a, double b) { return fmax(a, b); }
FA_FN double min(double a, double b) { return fmin(a, b); }
FA_FN double fma(double a, double b, double c) { return ::fma(a, b, c); }
FA_FN double exp2(double x) { return ::exp2(x); }
FA_FN double log2(double x) { return ::log2(x); }
FA_FN unsigned mulhi(unsigned a, unsigned b) { return __umulhi(a, b); }
template <class V>
FA_FN V select(bool c, V yes, V no) {
  return c ? yes : no;
}
FA_FN float minus_infinity() { return __int_as_float(0xff800000); }
}  // namespace fa
#else
// static + always_inline: an inline function with a shared symbol would be merged by the linker across translation units built for
// different instruction sets, and the AVX-512 copy could then run on a machine without AVX-512.
#if defined(_MSC_VER) && !defined(__clang__)
#error "MSVC is not supported: use clang-cl, or a Linux or macOS compiler"
#endif
#define FA_FN static inline __attribute__((always_inline))
namespace fa {
typedef long long Int64;
FA_FN int abs(int x) { return x < 0 ? -x : x; }
FA_FN int min(int a, int b) { return a < b ? a : b; }
FA_FN int max(int a, int b) { return a > b ? a : b; }
FA_FN float max(float a, float b) { return a > b ? a : b; }
FA_FN float min(float a, float b) { return a < b ? a : b; }
FA_FN float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FA_FN float exp2(float x) { return __builtin_exp2f(x); }
FA_FN float log2(float x) { return __builtin_log2f(x); }
FA_FN double max(double a, double b) { return a > b ? a : b; }
FA_FN double min(double a, double b) { return a < b ? a : b; }
FA_FN double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
FA_FN double exp2(double x) { return __builtin_exp2(x); }
FA_FN double log2(double x) { return __builtin_log2(x); }
FA_FN unsigned mulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
template <class V>
FA_FN V select(bool c, V yes, V no) {
  return c ? yes : no;
}
FA_FN float minus_infinity() { return -__builtin_inff(); }
}  // namespace fa
#endif
