// Words of Apple's compiler that MLX's headers call directly (bf16_math.h and others). The last argument is a math mode or a mask.
#pragma once

#define FA_WORD(NAME) \
  METAL_FUNC float __metal_##NAME(float x, int) { return ::metal::NAME(x); }
#define FA_WORD_2(NAME) \
  METAL_FUNC float __metal_##NAME(float x, float y, int) { return ::metal::NAME(x, y); }
#define FA_WORD_3(NAME) \
  METAL_FUNC float __metal_f##NAME(float x, float y, float z, int) { return ::metal::NAME(x, y, z); }
FA_WORD(acos)
FA_WORD(acosh)
FA_WORD(asin)
FA_WORD(asinh)
FA_WORD(atan)
FA_WORD(atanh)
FA_WORD(ceil)
FA_WORD(cos)
FA_WORD(cosh)
FA_WORD(cospi)
FA_WORD(exp)
FA_WORD(exp10)
FA_WORD(exp2)
FA_WORD(fabs)
FA_WORD(floor)
FA_WORD(fract)
FA_WORD(log)
FA_WORD(log10)
FA_WORD(log2)
FA_WORD(rint)
FA_WORD(round)
FA_WORD(rsqrt)
FA_WORD(sin)
FA_WORD(sinh)
FA_WORD(sinpi)
FA_WORD(sqrt)
FA_WORD(tan)
FA_WORD(tanh)
FA_WORD(tanpi)
FA_WORD(trunc)
FA_WORD_2(atan2)
FA_WORD_2(divide)
FA_WORD_2(fmax)
FA_WORD_2(fmin)
FA_WORD_2(fmod)
FA_WORD_2(pow)
FA_WORD_2(powr)
FA_WORD_3(max3)
FA_WORD_3(median3)
FA_WORD_3(min3)
METAL_FUNC float __metal_fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
METAL_FUNC float __metal_nextafter(float x, float y) { return __builtin_nextafterf(x, y); }
METAL_FUNC float __metal_ldexp(float x, int exponent, int = 0) { return __builtin_ldexpf(x, exponent); }
METAL_FUNC float __metal_frexp(float x, int* exponent, int = 0) { return __builtin_frexpf(x, exponent); }
METAL_FUNC ushort __metal_get_simdgroup_size(ushort) { return ::emulator::SIMD_WIDTH; }
METAL_FUNC ushort __metal_get_thread_index_in_simdgroup(ushort) { return static_cast<ushort>(emulator_lane()); }
#undef FA_WORD
#undef FA_WORD_2
#undef FA_WORD_3

#define FA_WORD(NAME)                         \
  template <class T>                          \
  METAL_FUNC T __metal_##NAME(T x, FA_SITE) { \
    return ::metal::NAME<T>(x, site);         \
  }
#define FA_WORD_LANE(NAME)                                     \
  template <class T>                                           \
  METAL_FUNC T __metal_##NAME(T x, ushort argument, FA_SITE) { \
    return ::metal::NAME<T>(x, argument, site);                \
  }
#define FA_WORD_FILL(NAME)                                                     \
  template <class T>                                                           \
  METAL_FUNC T __metal_##NAME(T x, T fill, ushort argument, ushort, FA_SITE) { \
    return ::metal::NAME<T>(x, fill, argument, site);                          \
  }
FA_WORD(simd_sum)
FA_WORD(simd_product)
FA_WORD(simd_max)
FA_WORD(simd_min)
FA_WORD(simd_prefix_inclusive_sum)
FA_WORD(simd_prefix_exclusive_sum)
FA_WORD(simd_prefix_inclusive_product)
FA_WORD(simd_prefix_exclusive_product)
FA_WORD_LANE(simd_broadcast)
FA_WORD_LANE(simd_shuffle)
FA_WORD_LANE(simd_shuffle_xor)
FA_WORD_LANE(simd_shuffle_up)
FA_WORD_LANE(simd_shuffle_down)
FA_WORD_LANE(simd_shuffle_rotate_up)
FA_WORD_LANE(simd_shuffle_rotate_down)
FA_WORD_FILL(simd_shuffle_and_fill_up)
FA_WORD_FILL(simd_shuffle_and_fill_down)
// Called on bfloat too, which has no bits of its own to combine.
template <class T>
METAL_FUNC T __metal_simd_xor(T x, FA_SITE) {
  return static_cast<T>(::metal::simd_xor<uint>(static_cast<uint>(x), site));
}
#undef FA_WORD
#undef FA_WORD_LANE
#undef FA_WORD_FILL
