// The table of kernels of an instruction set, filled from its SIMD structs.
#pragma once
#include "cpu/dispatch.h"
#include "cpu/kernels/backward.h"
#include "cpu/kernels/bias_gradient.h"
#include "cpu/kernels/decode.h"
#include "cpu/kernels/forward.h"

namespace fa::cpu {
namespace {

template <class S, class T>
constexpr Entry forward_entry() {
  return {forward_scratch_bytes<S>, forward_task_rows<S>, forward<S, T>};
}
// bfloat16 by pairs of 16 bits rounds P to bfloat16, which a bfloat16 result hides; float32 partial results keep float32 products.
template <class S, class P>
static void forward_bf16(const Job& job, const Task& task, void* memory) {
  job.out_dtype == DType::bf16 ? forward<P, Bf16>(job, task, memory) : forward<S, Bf16>(job, task, memory);
}
template <class S, class P>
static size_t forward_bf16_bytes(const Job& job) {
  return job.out_dtype == DType::bf16 ? forward_scratch_bytes<P>(job) : forward_scratch_bytes<S>(job);
}
template <class S, class P>
static int forward_bf16_rows(const Job& job, int workers) {
  return job.out_dtype == DType::bf16 ? forward_task_rows<P>(job, workers) : forward_task_rows<S>(job, workers);
}
template <class S, class T>
constexpr Entry backward_entry() {
  return {backward_scratch_bytes<S>, backward_task_keys, backward<S, T>};
}
template <class S, class T>
constexpr Entry decode_entry() {
  return {decode_scratch_bytes<S, T>, decode_task_keys, decode<S, T>};
}
template <class S, class T>
constexpr Entry bias_gradient_entry() {
  return {bias_scratch_bytes<S>, bias_task_keys, bias_gradient<S, T>};
}
// S: float32 lanes. P: how the forward pass of bfloat16 multiplies, S again or pairs of 16 bits.
template <class S, class P>
constexpr Isa make_isa(const char* name, bool (*supported)()) {
  return {name,
          supported,
          {forward_entry<S, Half>(), {forward_bf16_bytes<S, P>, forward_bf16_rows<S, P>, forward_bf16<S, P>}, forward_entry<S, float>()},
          {backward_entry<S, Half>(), backward_entry<S, Bf16>(), backward_entry<S, float>()},
          {decode_entry<S, Half>(), decode_entry<S, Bf16>(), decode_entry<S, float>()},
          {bias_gradient_entry<S, Half>(), bias_gradient_entry<S, Bf16>(), bias_gradient_entry<S, float>()}};
}
}  // namespace
}  // namespace fa::cpu
