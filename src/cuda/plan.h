// Planning for NVIDIA GPUs: from a Problem to launches of src/cuda/kernels. Pure functions of numbers.
#pragma once
#include "core/plan.h"

namespace fa::cuda {
Plan plan(const Problem& problem, const Kernel& row, const Device& device);

// Rules of the table: null, or why a kernel does not take a call on this device.
const char* forward_refuses(const Problem& problem, const Device& device);
const char* backward_refuses(const Problem& problem, const Device& device);
const char* decode_refuses(const Problem& problem, const Device& device);
}  // namespace fa::cuda
