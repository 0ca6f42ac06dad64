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
// The same, and whether one of them says yes.
template <int THREADS>
FA_FN bool any_of_some(int barrier, bool yes) {
  unsigned any;
  asm volatile("{.reg .pred one, all; setp.ne.u32 one, %1, 0; bar.red.or.pred all, %2, %3, one; selp.u32 %0, 1, 0, all;}"
               : "=r"(any)
               : "r"(static_cast<unsigned>(yes)), "r"(barrier), "n"(THREADS)
               : "memory");
  return any != 0;
}
}  // namespace fa::cuda
