// The SIMD struct of AVX-512.
#include "cpu/simd/avx512.h"

#include "simd_checks.h"

namespace fa::cpu {
TEST(Simd, Avx512Floats) { check_floats<Avx512>(); }
TEST(Simd, Avx512Tiles) { check_tiles<Avx512>(); }
TEST(Simd, Avx512Lanes) { check_lanes<Avx512>(); }
}  // namespace fa::cpu
