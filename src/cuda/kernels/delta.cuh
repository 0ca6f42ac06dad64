// delta = rowsum(dout * out) - dlse, what backward subtracts from dP; 0 for rows with lse -inf.
// Tile     a row of one head.
// Who      a warp has ROWS rows, one after the other.
// Memory   dout and out are read once.
// Speed    bound by memory.
//
//   delta    dout, out, lse, dlse -> delta    grid: divide_up(longest rows, ROWS * FA_WARPS), heads, batch; see each_head()
#include "semantics/softmax.h"
#include "words/each.cuh"
#include "words/row.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, THREADS = WARPS * 32;
constexpr int ROWS = 4;

FA_FN void delta_of(const Numbers& p, const Arrays& a, const Sequence& s, int head, int i) {
  const Int64 at = lse_offset(p, s, i, head);
  const Interval<int> keys = visible_keys(s.mask, i);
  // what a row that sees nothing holds in dout must not matter, not even a NaN
  const bool counts = static_cast<const Real*>(a.lse)[at] > Real(minus_infinity());
  Real sum = 0;
  if (counts && keys.first < keys.end) {
    const Element* const dout = static_cast<const Element*>(a.dout) + row_offset(p.dout, s, i, head);
    const Out* const out = static_cast<const Out*>(a.out) + row_offset(p.out, s, i, head);
#pragma unroll 4
    for (int d = lane_of(); d < p.value_dim; d += 32) sum = fma(to_real(dout[d]), to_real(out[d]), sum);
  }
  sum = warp_sum(sum);
  if (counts && a.dlse != nullptr) sum -= static_cast<const Real*>(a.dlse)[at];
  if (lane_of() == 0) static_cast<Real*>(a.delta)[at] = sum;
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) delta(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.heads, [&](const Sequence& s, int head) {
    for (int n = 0, i = static_cast<int>(blockIdx.x) * ROWS * WARPS + warp_of(); n < ROWS && i < s.mask.rows; n++, i += WARPS)
      delta_of(p, a, s, head, i);
  });
}
}  // namespace fa::cuda
