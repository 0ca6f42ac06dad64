// Who a thread is, and what a class's functions are marked with: FA_FN says static, which means another thing there.
#pragma once
#include "semantics/platform.h"
#define FA_MEMBER __device__ __forceinline__
namespace fa::cuda {
FA_FN int lane_of() { return static_cast<int>(threadIdx.x & 31u); }
FA_FN int warp_of() { return static_cast<int>(threadIdx.x >> 5); }
}  // namespace fa::cuda
