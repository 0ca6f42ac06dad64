// Arrays and numbers of a launch. A pointer's address space and element type are the framework's choice (MLX passes what has fewer than
// 8 elements as `constant`), so functions are templates over the pointer. What a call does not have is an Absent. `params` holds the
// bytes of fa::Params, in device memory or, with FA_PARAMS_SPACE, in constant; its members are read one by one, because a struct does not
// copy out of either on every compiler.
#pragma once
#include "semantics/params.h"
namespace fa {
struct Absent {};
template <class P>
struct is_given {
  enum { value = 1 };
};
template <>
struct is_given<Absent> {
  enum { value = 0 };
};
#ifndef FA_PARAMS_SPACE
#define FA_PARAMS_SPACE device
#endif
typedef const FA_PARAMS_SPACE Params* ParamsPointer;
FA_FN ParamsPointer params_of(const FA_PARAMS_SPACE int* words) { return reinterpret_cast<ParamsPointer>(words); }

// Where the hardware has put this thread: one simdgroup of 32 lanes in a threadgroup of a grid.
struct Place {
  ushort lane, simdgroup;
  uint3 group, groups;
};
FA_FN Place place_of(uint lane, uint simdgroup, uint3 group, uint3 groups) { return Place{ushort(lane), ushort(simdgroup), group, groups}; }

#if FA_DTYPE == 1
typedef half Element;
#elif FA_DTYPE == 2
typedef bfloat Element;
#else
typedef float Element;
#endif

FA_FN int int_at(Absent, Int64, int otherwise) { return otherwise; }
template <class P>
FA_FN int int_at(P array, Int64 i, int) {
  return array[i];
}
FA_FN float float_at(Absent, Int64) { return 0.0f; }
template <class P>
FA_FN float float_at(P array, Int64 i) {
  return float(array[i]);
}
// A bias in natural units; False of a bool mask hides its key.
FA_FN float bias_value(bool visible) { return visible ? 0.0f : hidden(); }
FA_FN float bias_value(uchar visible) { return visible != 0 ? 0.0f : hidden(); }
FA_FN float bias_value(float x) { return x; }
FA_FN float bias_value(half x) { return float(x); }
#if !defined(__METAL_VERSION__) || __METAL_VERSION__ >= 310
FA_FN float bias_value(bfloat x) { return float(x); }
#endif
FA_FN float bias_at(Absent, Int64) { return 0.0f; }
template <class P>
FA_FN float bias_at(P bias, Int64 i) {
  return bias_value(bias[i]);
}
// uint32[4] or int64[2]
FA_FN Seed seed_of(Absent) { return Seed{0u, 0u, 0u}; }
FA_FN Seed seed_of(const device uint* s) { return Seed{s[0], s[1], s[2]}; }
FA_FN Seed seed_of(const constant uint* s) { return Seed{s[0], s[1], s[2]}; }
FA_FN Seed seed_of(const device long* s) { return Seed{uint(ulong(s[0])), uint(ulong(s[0]) >> 32), uint(ulong(s[1]))}; }
FA_FN Seed seed_of(const constant long* s) { return Seed{uint(ulong(s[0])), uint(ulong(s[0]) >> 32), uint(ulong(s[1]))}; }

// Strides of an array of rows; `step`: of the head dimension.
struct RowStrides {
  Strides rows;
  Int64 step;
};
FA_FN Strides copy_strides(const FA_PARAMS_SPACE Strides& s) { return Strides{s.batch, s.row, s.head}; }
FA_FN RowStrides row_strides(const FA_PARAMS_SPACE Strides& s, Absent, bool) { return RowStrides{copy_strides(s), 1}; }
// as MLX gives them to a kernel, where nobody knew them when the launch was planned
FA_FN RowStrides row_strides(const FA_PARAMS_SPACE Strides&, const constant long* s, bool packed) {
  if (packed) {
    return RowStrides{Strides{0, s[0], s[1]}, s[2]};
  }
  return RowStrides{Strides{s[0], s[1], s[2]}, s[3]};
}
}  // namespace fa
