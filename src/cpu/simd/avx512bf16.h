// AVX-512-BF16: tiles are 32-bit lanes of two bf16 (STEP = 2), and one instruction adds two products a lane. Pairs of Q and K along the
// head dimension are what lies in memory; pairs of V and P along the keys are made when V is packed and P is stored, and backward makes
// pairs of rows, too (gradient.h). Sums stay float32.
// Twice the float32 rate on Zen 4 and 5; on Emerald Rapids half of it, so dispatch.cpp does not choose it there.
#pragma once
#include "cpu/simd/avx512.h"

namespace fa::cpu {
namespace {

struct Avx512Bf16 : Avx512 {
  using Lane = unsigned;
  static constexpr int STEP = 2;

  static FA_INLINE F load_lanes(const Lane* p) { return F(_mm512_castsi512_ps(_mm512_load_si512(p))); }
  static FA_INLINE F bcast(const Lane* p) { return F(_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*p)))); }
  static FA_INLINE F dot(F a, F b, F c) { return F(_mm512_dpbf16_ps(c.x, (__m512bh)a.x, (__m512bh)b.x)); }

  static FA_INLINE F lanes(const Bf16* p) { return F(_mm512_castsi512_ps(_mm512_loadu_si512(p))); }
  static FA_INLINE void store_lanes(Lane* p, F v) { _mm512_store_si512(p, _mm512_castps_si512(v.x)); }
  // Lane i becomes (x[i], y[i]).
  static FA_INLINE void store_p(Lane* p, F x, F y) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(y.x, x.x);
    _mm512_store_si512(p, _mm512_permutexvar_epi16(pairs_of(0x100000), both));
  }
  // W values, neighbours in a lane: W / 2 lanes.
  static FA_INLINE void store_along(Lane* p, F v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v.x)); }
  // Lane i becomes (x[i], y[i]), of elements [part * W, (part + 1) * W) of two rows of pairs along the row.
  static FA_INLINE F across(F x, F y, int part) {
    const __m512i zip = _mm512_add_epi32(pairs_of(0x200000), _mm512_set1_epi32(part * 0x100010));
    return F(_mm512_castsi512_ps(_mm512_permutex2var_epi16(_mm512_castps_si512(x.x), zip, _mm512_castps_si512(y.x))));
  }
  static FA_INLINE void scale_p(Lane* p, F factor) {
    const U pair = load(p);
    store_p(p, as_float(pair << 16) * factor, as_float(pair & U(0xffff0000u)) * factor);
  }
  static FA_INLINE void keep_p(Lane* p, int half, Flags<W> keep) {
    const U pair = load(p);
    const U other = pair & U(half == 0 ? 0xffff0000u : 0x0000ffffu);
    _mm512_store_si512(p, (__m512i)select(keep, pair, other).x);
  }

 private:
  // Lane i: the pair of 16-bit indices `first`, both i further.
  static FA_INLINE __m512i pairs_of(int first) {
    return _mm512_setr_epi32(first, first + 0x10001, first + 0x20002, first + 0x30003, first + 0x40004, first + 0x50005, first + 0x60006,
                             first + 0x70007, first + 0x80008, first + 0x90009, first + 0xa000a, first + 0xb000b, first + 0xc000c,
                             first + 0xd000d, first + 0xe000e, first + 0xf000f);
  }
};
}  // namespace
}  // namespace fa::cpu
