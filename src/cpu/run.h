// Executes plans on the CPU, on the calling thread and the pool.
#pragma once
#include "core/plan.h"

namespace fa::cpu {
// What planning needs to know of this machine: the number of threads a call may use now.
Device device();
// Temporaries that `buffers` does not bring are allocated here. `interrupted` (or null) is polled by the calling thread; when it
// returns true the call ends with Error (interrupted).
void run(const Plan& plan, const Buffers& buffers, bool (*interrupted)());
}  // namespace fa::cpu
