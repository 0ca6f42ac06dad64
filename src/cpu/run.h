// Executes plans on the CPU, on the calling thread and the pool.
#pragma once
#include "core/plan.h"

namespace fa::cpu {
// What planning needs to know of this machine: the number of threads a call may use now.
Device device(Place place = {});
void run(const Plan& plan, const Buffers& buffers, Stream stream, bool (*interrupted)());
}  // namespace fa::cpu
