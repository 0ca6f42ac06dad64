// Compiled kernels: from text to an image (in memory, on disk, or by NVRTC), and from there to a function of a context.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "core/plan.h"
#include "cuda/driver/context.h"
#include "cuda/driver/nvrtc.h"

namespace fa::cuda::driver {
// What NVRTC is told for a kernel on a device of architecture `arch` (90: sm_90).
std::vector<std::string> options_for(std::span<const Constant> constants, int arch);
// Compiles src/cuda/kernels/<source>; asks no cache.
Compiled compile_kernel(const std::string& source, std::span<const Constant> constants, int arch,
                        const std::vector<std::string>& more = {});

// The functions of a plan's launches in the current context, compiled and loaded at first use; later calls only look them up. What has to
// be compiled for one plan is compiled at the same time.
std::vector<Function> functions_of(std::span<const Launch> launches, const Current& current, int arch);
}  // namespace fa::cuda::driver
