// How many threads a call may use.
#pragma once

namespace fa::cpu {
// The smallest of FLASH_ATTENTION_NUM_THREADS (or OMP_NUM_THREADS), the CPUs this thread may run on, and the cgroup's CPU quota; at
// least 1. Throws Error (value) when FLASH_ATTENTION_NUM_THREADS is no positive number.
int thread_count();
}  // namespace fa::cpu
