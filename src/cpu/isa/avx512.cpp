// The kernels for AVX-512 F, BW, VL and DQ.
#include "cpu/simd/avx512.h"

#include "cpu/kernels/table.h"

namespace fa::cpu {
constinit const Isa AVX512 = make_isa<Avx512>("avx512", has_avx512);
}  // namespace fa::cpu
