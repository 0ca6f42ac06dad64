// The types of a launch's arrays: by DType value (flash_attn.h) in the constants that arrays.cuh names.
#pragma once
#include "convert.cuh"
#include "semantics/params.h"
namespace fa::cuda {
template <int DTYPE>
struct TypeOf {
  using Type = float;  // 3; 0: no such array, never read
};
template <>
struct TypeOf<1> {
  using Type = Half;
};
template <>
struct TypeOf<2> {
  using Type = Bfloat;
};
template <>
struct TypeOf<4> {
  using Type = double;
};
template <>
struct TypeOf<8> {
  using Type = unsigned char;  // a bool
};
using Element = TypeOf<FA_DTYPE>::Type;            // of q, k, v, dout, gradients, new keys
using Out = TypeOf<FA_OUT>::Type;                  // of out
using Real = TypeOf<FA_DTYPE == 4 ? 4 : 3>::Type;  // of sums, lse, delta
using Numbers = ParamsT<Real>;                     // of a launch

// any type of number to the one sums are held in, and back
template <class T>
FA_FN Real to_real(T x) {
  return static_cast<Real>(widen(x));
}
template <class T, class Sum>
FA_FN T from_real(Sum x) {
  T narrowed;
  narrow(x, narrowed);
  return narrowed;
}
FA_FN float to_float(Element x) { return static_cast<float>(widen(x)); }
FA_FN Element from_float(float x) { return from_real<Element>(static_cast<Real>(x)); }
FA_FN int divide_up(int n, int by) { return (n + by - 1) / by; }
}  // namespace fa::cuda
