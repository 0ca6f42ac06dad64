// The kernels for AVX2, FMA and F16C.
#include "cpu/simd/avx2.h"

#include "cpu/kernels/table.h"

namespace fa::cpu {
constinit const Isa AVX2 = make_isa<Avx2>("avx2", has_avx2);
}  // namespace fa::cpu
