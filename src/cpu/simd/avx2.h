// AVX2 + FMA + F16C: 8 lanes. A SIMD struct is everything a kernel knows about a machine; the vocabulary, the same in each file:
//   F, I, U        W lanes of float, int, unsigned (vector.h): operators, max, min, fma, select, abs, exp2, log2, mulhi, any
//   Lane, STEP     what a lane of a packed tile holds: STEP elements along the depth of a product
//   MR, NV         the register block of accumulate() (kernels/words.h): MR rows by NV vectors
//   load, store    aligned scratch; bcast: one lane to all; widen, narrow: W elements of the caller's arrays to and from floats
//   dot            lane product summed over STEP elements, plus c
//   lanes          STEP * W elements of the caller's array as lanes of a tile; load_lanes, store_lanes: a tile's lanes as they are
//   store_p        STEP rows of floats as one row of lanes; scale_p: lanes in place, times a factor; keep_p: one of
//                  the STEP rows becomes 0 where not kept
//   transpose      W x W in registers; lane_sums: lane i of the result = sum of the lanes of r[i]
//   twice          half of W elements of the caller's array as floats, in both halves of the lanes; store_half: one half
//   half_sums      lane i of each half of the result = sum of the lanes of that half of r[i]
//
// Register block 6 x 2: 12 accumulators + 2 operands + 1 broadcast = 15 of 16 registers; 12 independent FMA chains cover latency 4 x 2
// pipes, and 8 loads go with 12 FMAs (2 loads a cycle are available). There is no 16-bit arithmetic: bf16 and f16 are widened to
// float32 when a tile is packed, and every product is a float32 FMA.
#pragma once
#include <immintrin.h>

#include "cpu/simd/vector.h"

namespace fa::cpu {
namespace {

using Float8 = Vec<float, 8>;
using Unsigned8 = Vec<unsigned, 8>;
FA_FN Float8 fma(Float8 a, Float8 b, Float8 c) { return Float8(_mm256_fmadd_ps(a.x, b.x, c.x)); }
// The second operand where one is NaN: a NaN score given second stays NaN.
FA_FN Float8 max(Float8 a, Float8 b) { return Float8(_mm256_max_ps(a.x, b.x)); }
FA_FN Float8 min(Float8 a, Float8 b) { return Float8(_mm256_min_ps(a.x, b.x)); }
FA_FN Float8 select(Flags<8> c, Float8 yes, Float8 no) { return Float8(_mm256_blendv_ps(no.x, yes.x, _mm256_castsi256_ps((__m256i)c.x))); }
FA_FN bool any(Flags<8> c) { return _mm256_movemask_ps(_mm256_castsi256_ps((__m256i)c.x)) != 0; }
FA_FN Unsigned8 mulhi(Unsigned8 a, Unsigned8 b) {
  const __m256i x = (__m256i)a.x, y = (__m256i)b.x;
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, y), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(y, 32));
  return Unsigned8((Unsigned8::Raw)_mm256_blend_epi32(even, odd, 0xaa));
}

struct Avx2 : FloatLanes<Avx2, 8> {
  using F = Float8;
  using I = Vec<int, 8>;
  using U = Unsigned8;
  static constexpr int W = 8, MR = 6, NV = 2;

  static FA_INLINE F load(const float* p) { return F(_mm256_load_ps(p)); }
  static FA_INLINE I load(const int* p) { return I((I::Raw)_mm256_load_si256(reinterpret_cast<const __m256i*>(p))); }
  static FA_INLINE U load(const unsigned* p) { return U((U::Raw)_mm256_load_si256(reinterpret_cast<const __m256i*>(p))); }
  static FA_INLINE void store(float* p, F v) { _mm256_store_ps(p, v.x); }
  static FA_INLINE F bcast(const float* p) { return F(_mm256_broadcast_ss(p)); }
  static FA_INLINE F dot(F a, F b, F c) { return fma(a, b, c); }

  static FA_INLINE F widen(const float* p) { return F(_mm256_loadu_ps(p)); }
  static FA_INLINE F widen(const Half* p) { return F(_mm256_cvtph_ps(half_row(p))); }
  static FA_INLINE F widen(const Bf16* p) { return F(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_row(p)), 16))); }
  // A bool mask as a bias: 0 where visible, -inf where hidden.
  static FA_INLINE F widen(const Bool* p) {
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i hides = _mm256_cmpeq_epi32(bytes, _mm256_setzero_si256());
    return F(_mm256_and_ps(_mm256_castsi256_ps(hides), _mm256_set1_ps(minus_infinity())));
  }
  static FA_INLINE void narrow(float* p, F v) { _mm256_storeu_ps(p, v.x); }
  static FA_INLINE void narrow(Half* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.x, _MM_FROUND_TO_NEAREST_INT));
  }
  // Round to nearest even; NaN becomes a quiet NaN.
  static FA_INLINE void narrow(Bf16* p, F v) {
    const __m256i u = _mm256_castps_si256(v.x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v.x, v.x, _CMP_UNORD_Q));
    const __m256i r = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }

  static FA_INLINE void transpose(F (&r)[8]) {
    __m256 t[8], u[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i].x, r[i + 1].x);
      t[i + 1] = _mm256_unpackhi_ps(r[i].x, r[i + 1].x);
    }
    UNROLL
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
      r[i] = F(_mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
      r[i + 4] = F(_mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
    }
  }
  static FA_INLINE F lane_sums(const F (&r)[8]) {
    __m256 a[4], b[2];
    UNROLL
    for (int i = 0; i < 4; i++) {
      a[i] = _mm256_add_ps(_mm256_unpacklo_ps(r[2 * i].x, r[2 * i + 1].x), _mm256_unpackhi_ps(r[2 * i].x, r[2 * i + 1].x));
    }
    UNROLL
    for (int i = 0; i < 2; i++) {
      b[i] = _mm256_add_ps(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44), _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
    }
    return F(_mm256_add_ps(_mm256_permute2f128_ps(b[0], b[1], 0x20), _mm256_permute2f128_ps(b[0], b[1], 0x31)));
  }
  static FA_INLINE F twice(const float* p, int half) { return F(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p + 4 * half))); }
  static FA_INLINE F twice(const Half* p, int half) {
    const __m256 all = widen(p).x;
    return F(half == 0 ? _mm256_insertf128_ps(all, _mm256_castps256_ps128(all), 1) : _mm256_permute2f128_ps(all, all, 0x11));
  }
  static FA_INLINE F half_sums(const F (&r)[4]) {
    const __m256 a = _mm256_add_ps(_mm256_unpacklo_ps(r[0].x, r[1].x), _mm256_unpackhi_ps(r[0].x, r[1].x));
    const __m256 b = _mm256_add_ps(_mm256_unpacklo_ps(r[2].x, r[3].x), _mm256_unpackhi_ps(r[2].x, r[3].x));
    return F(_mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee)));
  }
  static FA_INLINE void store_half(float* p, F v, int half) {
    _mm_store_ps(p, half == 0 ? _mm256_castps256_ps128(v.x) : _mm256_extractf128_ps(v.x, 1));
  }
  static FA_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

 private:
  template <class T>
  static FA_INLINE __m128i half_row(const T* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
};
}  // namespace
}  // namespace fa::cpu
