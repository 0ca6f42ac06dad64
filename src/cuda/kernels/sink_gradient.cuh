// Gradient of the learnable sink: a sum over all rows of all sequences, always in the same order.
// Tile     all rows of one head.
// Who      a block a head: warps take sequences, lanes their rows.
// Memory   lse and delta are read once.
// Speed    bound by the time of reads, of which each warp has one under way.
//
//   sink_gradient    lse, delta, sink -> dsink    grid: heads, 1, 1
#include "semantics/softmax.h"
#include "words/where.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, THREADS = WARPS * 32;

FA_FN double sum_of_block(double mine) {
  __shared__ double sums[THREADS];
  sums[threadIdx.x] = mine;
  for (int step = THREADS / 2; step > 0; step /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < step) sums[threadIdx.x] += sums[threadIdx.x + static_cast<unsigned>(step)];
  }
  return sums[0];  // thread 0's
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sink_gradient(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  const int head = static_cast<int>(blockIdx.x);
  const Real sink = sink_of(a, head);
  double sum = 0;
  for (int b = warp_of(); b < p.batch; b += WARPS) {
    const Sequence s = sequence_of(p, a, b);
    for (int i = lane_of(); i < s.mask.rows; i += 32) {
      const Int64 at = lse_offset(p, s, i, head);
      sum += static_cast<double>(fa::sink_gradient(sink, static_cast<const Real*>(a.lse)[at], static_cast<const Real*>(a.delta)[at]));
    }
  }
  sum = sum_of_block(sum);
  using Sink = TypeOf<FA_SINK>::Type;
  if (threadIdx.x == 0) static_cast<Sink*>(a.dsink)[head] = from_real<Sink>(static_cast<Real>(sum));
}
}  // namespace fa::cuda
