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
template <class S>
constexpr Isa make_isa(const char* name, bool (*supported)()) {
  return {name,
          supported,
          {forward_entry<S, Half>(), forward_entry<S, Bf16>(), forward_entry<S, float>()},
          {backward_entry<S, Half>(), backward_entry<S, Bf16>(), backward_entry<S, float>()},
          {decode_entry<S, Half>(), decode_entry<S, Bf16>(), decode_entry<S, float>()},
          {bias_gradient_entry<S, Half>(), bias_gradient_entry<S, Bf16>(), bias_gradient_entry<S, float>()},
          nullptr};
}
}  // namespace
}  // namespace fa::cpu
