// Barriers of some warps of a block.
#pragma once
#include "lanes.cuh"
namespace fa::cuda {
// of THREADS threads, all of those that name the barrier (1 .. 15; 0 is that of __syncthreads)
template <int THREADS>
FA_FN void sync_some(int barrier) {
  if constexpr (THREADS == 32)
    __syncwarp();
  else
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
}
}  // namespace fa::cuda
