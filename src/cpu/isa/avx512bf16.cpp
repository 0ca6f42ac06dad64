// AVX-512 with AVX512_BF16: the forward and the backward pass of bfloat16 by dot products of pairs; all else is avx512.cpp's.
#include "cpu/simd/avx512bf16.h"

#include "cpu/dispatch.h"
#include "cpu/kernels/backward.h"
#include "cpu/kernels/forward.h"

namespace fa::cpu {
namespace {
// Pairs round P to bfloat16, which a bfloat16 result hides; float32 partial results keep float32 products.
bool by_pairs(const Job& job) { return job.out_dtype == DType::bf16; }
const Entry& by_lanes() { return AVX512.forward[1]; }

void run(const Job& job, const Task& task, void* memory) {
  by_pairs(job) ? forward<Avx512Bf16, Bf16>(job, task, memory) : by_lanes().run(job, task, memory);
}
size_t scratch_bytes(const Job& job) { return by_pairs(job) ? forward_scratch_bytes<Avx512Bf16>(job) : by_lanes().scratch_bytes(job); }
int task_rows(const Job& job, int workers) {
  return by_pairs(job) ? forward_task_rows<Avx512Bf16>(job, workers) : by_lanes().task_rows(job, workers);
}
}  // namespace
constinit const Isa AVX512BF16 = {"avx512bf16",
                                  has_avx512bf16,
                                  {{}, {scratch_bytes, task_rows, run}, {}},
                                  {{}, {backward_scratch_bytes<Avx512Bf16>, backward_task_keys, backward<Avx512Bf16, Bf16>}, {}},
                                  {},
                                  {},
                                  &AVX512};
}  // namespace fa::cpu
