// The CPU backend: its table of kernels and its planner.
#pragma once
#include "core/plan.h"

namespace fa::cpu {
extern const Backend BACKEND;
}  // namespace fa::cpu
