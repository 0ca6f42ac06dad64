// The kernels for AVX-512 with AVX512_BF16: those of avx512.cpp, but dot products of bf16 pairs in the forward pass.
#include "cpu/simd/avx512bf16.h"

#include "cpu/kernels/table.h"

namespace fa::cpu {
constinit const Isa AVX512BF16 = make_isa<Avx512, Avx512Bf16>("avx512bf16", has_avx512bf16);
}  // namespace fa::cpu
