// AVX-512 (F, BW, VL, DQ): 16 lanes. The vocabulary is that of avx2.h. Register block 6 x 4: 24 accumulators + 4 operands + 1 broadcast
// of 32 registers. bf16 and f16 are widened to float32 when a tile is packed.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 says both of its own _mm512_undefined_ps() (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "cpu/simd/vector.h"

namespace fa::cpu {
namespace {

using Float16 = Vec<float, 16>;
using Unsigned16 = Vec<unsigned, 16>;
FA_FN Float16 fma(Float16 a, Float16 b, Float16 c) { return Float16(_mm512_fmadd_ps(a.x, b.x, c.x)); }
// The second operand where one is NaN.
FA_FN Float16 max(Float16 a, Float16 b) { return Float16(_mm512_max_ps(a.x, b.x)); }
FA_FN Float16 min(Float16 a, Float16 b) { return Float16(_mm512_min_ps(a.x, b.x)); }
FA_FN bool any(Flags<16> c) { return _mm512_test_epi32_mask((__m512i)c.x, (__m512i)c.x) != 0; }
FA_FN Unsigned16 mulhi(Unsigned16 a, Unsigned16 b) {
  const __m512i x = (__m512i)a.x, y = (__m512i)b.x;
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, y), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(y, 32));
  return Unsigned16((Unsigned16::Raw)_mm512_mask_blend_epi32(0xaaaa, even, odd));
}
// vscalef does the exponent, -inf and NaN; x - round(x) is one vreduce. Same polynomial as in vector.h.
template <int N>
FA_FN void exp2_of(Float16 (&x)[N]) {
  Float16 f[N], p[N];
  UNROLL
  for (int i = 0; i < N; i++) {
    f[i] = Float16(_mm512_reduce_ps(x[i].x, _MM_FROUND_TO_NEAREST_INT));
    p[i] = fma(f[i], Float16(1.32647273e-3f), Float16(9.67151299e-3f));
  }
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(p[i], f[i], Float16(5.55073358e-2f));
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(p[i], f[i], Float16(2.40222424e-1f));
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(p[i], f[i], Float16(6.93147004e-1f));
  UNROLL
  for (int i = 0; i < N; i++) p[i] = fma(p[i], f[i], Float16(1.0f));
  UNROLL
  for (int i = 0; i < N; i++) {
    x[i] = Float16(_mm512_scalef_ps(p[i].x, _mm512_roundscale_ps(x[i].x, _MM_FROUND_TO_NEAREST_INT)));
  }
}

struct Avx512 : FloatLanes<Avx512, 16> {
  using F = Float16;
  using I = Vec<int, 16>;
  using U = Unsigned16;
  static constexpr int W = 16, MR = 6, NV = 4;

  static FA_INLINE F load(const float* p) { return F(_mm512_load_ps(p)); }
  static FA_INLINE I load(const int* p) { return I((I::Raw)_mm512_load_si512(p)); }
  static FA_INLINE U load(const unsigned* p) { return U((U::Raw)_mm512_load_si512(p)); }
  static FA_INLINE void store(float* p, F v) { _mm512_store_ps(p, v.x); }
  static FA_INLINE F bcast(const float* p) { return F(_mm512_set1_ps(*p)); }
  static FA_INLINE F dot(F a, F b, F c) { return fma(a, b, c); }

  static FA_INLINE F widen(const float* p) { return F(_mm512_loadu_ps(p)); }
  static FA_INLINE F widen(const Half* p) { return F(_mm512_cvtph_ps(half_row(p))); }
  static FA_INLINE F widen(const Bf16* p) { return F(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half_row(p)), 16))); }
  static FA_INLINE F widen(const Bool* p) {
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __mmask16 hides = _mm512_cmpeq_epi32_mask(bytes, _mm512_setzero_si512());
    return F(_mm512_maskz_mov_ps(hides, _mm512_set1_ps(minus_infinity())));
  }
  static FA_INLINE void narrow(float* p, F v) { _mm512_storeu_ps(p, v.x); }
  static FA_INLINE void narrow(Half* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v.x, _MM_FROUND_TO_NEAREST_INT));
  }
  // Round to nearest even; NaN becomes a quiet NaN.
  static FA_INLINE void narrow(Bf16* p, F v) {
    const __m512i u = _mm512_castps_si512(v.x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i r = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v.x, v.x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
  }

  static FA_INLINE void transpose(F (&r)[16]) {  // pairs, quads, then blocks of 128 bits
    __m512 t[16], u[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i].x, r[i + 1].x);
      t[i + 1] = _mm512_unpackhi_ps(r[i].x, r[i + 1].x);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) {
      u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
      t[i] = _mm512_shuffle_f32x4(u[i], u[4 + i], 0x88);
      t[4 + i] = _mm512_shuffle_f32x4(u[i], u[4 + i], 0xdd);
      t[8 + i] = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0x88);
      t[12 + i] = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
      r[i] = F(_mm512_shuffle_f32x4(t[i], t[8 + i], 0x88));
      r[8 + i] = F(_mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd));
      r[4 + i] = F(_mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88));
      r[12 + i] = F(_mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd));
    }
  }
  static FA_INLINE F lane_sums(const F (&r)[16]) {
    F t[16];
    UNROLL
    for (int i = 0; i < 16; i++) t[i] = r[i];
    transpose(t);
    UNROLL
    for (int i = 0; i < 8; i++) t[i] = t[i] + t[i + 8];
    UNROLL
    for (int i = 0; i < 4; i++) t[i] = t[i] + t[i + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
  }
  static FA_INLINE F twice(const float* p, int half) { return F(_mm512_broadcast_f32x8(_mm256_loadu_ps(p + 8 * half))); }
  static FA_INLINE F twice(const Half* p, int half) {
    return F(_mm512_cvtph_ps(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * half)))));
  }
  static FA_INLINE F half_sums(const F (&r)[8]) {
    __m512 a[4], b[2];
    UNROLL
    for (int i = 0; i < 4; i++) {
      a[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[2 * i].x, r[2 * i + 1].x), _mm512_unpackhi_ps(r[2 * i].x, r[2 * i + 1].x));
    }
    UNROLL
    for (int i = 0; i < 2; i++) {
      b[i] = _mm512_add_ps(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44), _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
    }
    // blocks of 128 bits: (first row, keys 0 - 3), (second, 0 - 3), (first, 4 - 7), (second, 4 - 7)
    const __m512 c = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
    return F(_mm512_shuffle_f32x4(c, c, 0xd8));
  }
  static FA_INLINE void store_half(float* p, F v, int half) {
    _mm256_store_ps(p, half == 0 ? _mm512_castps512_ps256(v.x) : _mm512_extractf32x8_ps(v.x, 1));
  }
  static FA_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

 private:
  template <class T>
  static FA_INLINE __m256i half_row(const T* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
};
}  // namespace
}  // namespace fa::cpu
