// The SIMD struct of the baseline.
#include "cpu/simd/scalar.h"

#include "simd_checks.h"

namespace fa::cpu {
TEST(Simd, ScalarFloats) { check_floats<Scalar>(); }
TEST(Simd, ScalarTiles) { check_tiles<Scalar>(); }
TEST(Simd, ScalarLanes) { check_lanes<Scalar>(); }
}  // namespace fa::cpu
