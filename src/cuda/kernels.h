// The CUDA backend: its table of kernels, its planner and its runner.
#pragma once
#include "core/plan.h"

namespace fa::cuda {
extern const Backend BACKEND;
}  // namespace fa::cuda
