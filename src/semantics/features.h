// What changes the meaning of an element, as bits of one compile-time integer: the same integer is a template argument of the CPU
// and CUDA kernels, a template argument of the Metal kernels, a constexpr of the Triton kernels, and part of every cache key.
#pragma once
namespace fa {
// NATURAL: nothing but the scale, applied before the maximum is taken, as a scale <= 0 needs.
enum Feature : unsigned {
  SOFTCAP = 1u,
  ALIBI = 2u,
  BIAS = 4u,
  DROPOUT = 8u,
  SINK = 16u,
  NATURAL = 32u,
  CHANGES_SCORE = 39u,
  ALL_FEATURES = 63u
};
}  // namespace fa
