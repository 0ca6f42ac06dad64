// The tiles of bf16 pairs of AVX-512-BF16; its floats are those of AVX-512.
#include "cpu/simd/avx512bf16.h"

#include "simd_checks.h"

namespace fa::cpu {
TEST(Simd, Avx512Bf16Tiles) { check_tiles<Avx512Bf16>(); }
TEST(Simd, Avx512Bf16Lanes) { check_lanes<Avx512Bf16>(); }
}  // namespace fa::cpu
