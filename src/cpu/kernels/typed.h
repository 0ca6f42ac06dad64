// From the dtype that a job carries to a C++ type: `with_type(dtype, [&](auto zero) { using T = decltype(zero); ... })`, and numbers
// of arrays whose dtype differs from the call's (bias, sink).
#pragma once
#include "cpu/numbers.h"
#include "flash_attn/flash_attn.h"

namespace fa::cpu {
template <class Body>
void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f16: return body(f16{});
    case DType::bf16: return body(bf16{});
    case DType::f64: return body(double{});
    default: return body(float{});
  }
}
// lse, delta and dlse of a call: float64 for float64, else float32
template <class Body>
void with_real(DType dtype, const Body& body) {
  if (dtype == DType::f64) return body(double{});
  body(float{});
}
// A bool counts as 0 (visible) or -inf (hidden).
inline double load_number(const void* array, DType dtype, Int64 index) {
  switch (dtype) {
    case DType::f16: return widen(static_cast<const f16*>(array)[index]);
    case DType::bf16: return widen(static_cast<const bf16*>(array)[index]);
    case DType::f64: return static_cast<const double*>(array)[index];
    case DType::u8: return static_cast<const unsigned char*>(array)[index] ? 0.0 : static_cast<double>(minus_infinity());
    default: return static_cast<const float*>(array)[index];
  }
}
inline void store_number(void* array, DType dtype, Int64 index, double value) {
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    static_cast<T*>(array)[index] = narrow_to<T>(value);
  });
}
}  // namespace fa::cpu
