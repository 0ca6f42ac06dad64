// Executes CUDA plans: on the caller's stream, without waiting and without memory of its own, so that streams may be captured into graphs.
#pragma once
#include "core/plan.h"

namespace fa::cuda {
Device device(Place place);
void run(const Plan& plan, const Buffers& buffers, Stream stream, bool (*interrupted)());
// Copies an array to the host, after all that was queued before: for checks of values, which wait.
void read(const Tensor& array, void* to);
}  // namespace fa::cuda
