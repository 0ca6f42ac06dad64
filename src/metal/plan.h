// Planning on Apple GPUs: from a Problem to launches. Pure functions of numbers; only Python can launch (runners/metal.py).
#pragma once
#include "core/plan.h"

namespace fa::metal {
Plan plan(const Problem& problem, const Kernel& row, const Device& device);
}  // namespace fa::metal
