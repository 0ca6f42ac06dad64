// delta = rowsum(dout * out) - dlse, what backward subtracts from dP; 0 for rows with lse -inf.
// Tile     ROWS * FA_WARPS rows of one head.
// Who      the lanes that a row needs when each reads 16 bytes of it; 8 at least, so that a block's warps fit its rows.
// Memory   dout and out are read once.
// Speed    bound by memory.
//
//   delta    dout, out, lse, dlse -> delta    grid: divide_up(longest rows, ROWS * FA_WARPS), heads, batch; see each_head()
#include "semantics/softmax.h"
#include "words/each.cuh"
#include "words/width.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, THREADS = WARPS * 32;
constexpr int ROWS = 4;

static_assert(sizeof(Out) >= sizeof(Element));  // else 16 bytes of elements are less than that of `out`
template <class T>
struct alignas(16) Piece {
  T x[CHUNK];
};
// The part of dout * out that is this lane's: pieces from `first` on, a `step` apart.
FA_FN Real products(const Element* dout, const Out* out, int first, int step, int dim, bool wide) {
  Real sum = 0;
#pragma unroll 1
  for (int d = first; d < dim; d += step) {
    if (wide && d + CHUNK <= dim) {
      const Piece<Element> x = *reinterpret_cast<const Piece<Element>*>(dout + d);
      const Piece<Out> y = *reinterpret_cast<const Piece<Out>*>(out + d);
#pragma unroll
      for (int c = 0; c < CHUNK; c++) sum = fma(to_real(x.x[c]), to_real(y.x[c]), sum);
    } else {
#pragma unroll 1
      for (int c = d; c < min(d + CHUNK, dim); c++) sum = fma(to_real(dout[c]), to_real(out[c]), sum);
    }
  }
  return sum;
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) delta(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  int lanes = 8;
  while (lanes < 32 && lanes * CHUNK < p.value_dim) lanes *= 2;
  const int lane = lane_of() % lanes, thread = static_cast<int>(threadIdx.x), row0 = static_cast<int>(blockIdx.x) * ROWS * WARPS;
  const bool wide = copy_width(a.dout, p.dout) == 16 && copy_width(a.out, p.out) == 16;
  each_head(p, a, p.heads, [&](const Sequence& s, int head) {
    if (row0 >= s.mask.rows) return;
    for (int n = thread / lanes; n < ROWS * WARPS; n += THREADS / lanes) {  // as often in all lanes
      const int i = min(row0 + n, s.mask.rows - 1);
      const Int64 at = lse_offset(p, s, i, head);
      const Interval<int> keys = visible_keys(s.mask, i);
      Real sum = products(static_cast<const Element*>(a.dout) + row_offset(p.dout, s, i, head),
                          static_cast<const Out*>(a.out) + row_offset(p.out, s, i, head), lane * CHUNK, lanes * CHUNK, p.value_dim, wide);
      for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      // what a row that sees nothing holds in dout must not matter, not even a NaN
      const bool counts = static_cast<const Real*>(a.lse)[at] > Real(minus_infinity());
      if (!counts || keys.first >= keys.end) sum = 0;
      if (counts && a.dlse != nullptr) sum -= static_cast<const Real*>(a.dlse)[at];
      if (lane == 0 && row0 + n < s.mask.rows) static_cast<Real*>(a.delta)[at] = sum;
    }
  });
}
}  // namespace fa::cuda
