// The SIMD struct of AVX2.
#include "cpu/simd/avx2.h"

#include "simd_checks.h"

namespace fa::cpu {
TEST(Simd, Avx2Floats) { check_floats<Avx2>(); }
TEST(Simd, Avx2Tiles) { check_tiles<Avx2>(); }
TEST(Simd, Avx2Lanes) { check_lanes<Avx2>(); }
}  // namespace fa::cpu
