// Gradient of a float attn_bias, straight from semantics/: takes every call. Sums are float32 (float64 for float64) and have one order.
// Tile     32 neighbours of attn_bias along the keys, or the one element that all keys share; 32 keys of one row at a time.
// Who      a warp alone: lane l has key l, and elements l, l + 32, ... of the head dim.
// Memory   registers; a warp's 4 KB of shared memory (8 for float64), through which lanes read their rows; arrays are read in place, once
//          more for each row of q that a warp takes.
// Speed    bound by loads from L1 and shared memory: each feeds one multiply-add a lane. Slow where few elements of attn_bias share many
// rows.
//
//   bias_gradient    dout, q, k, v, lse, delta -> dbias    grid: any, 1, 1
#include "words/head.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS;
// What one row of one head adds to the gradient of lane l's key first + l.
FA_FN Real bias_gradient_of(const Head& head, int i, int first) {
  const Numbers& p = head.p;
  const Interval<int> all = visible_keys(head.s.mask, i), keys{max(all.first, first), min(all.end, first + 32)};
  if (keys.first >= keys.end) return 0;
  const int j = first + lane_of();
  Row<FA_DIM> q;
  Row<FA_VALUE_DIM> dout;
  q.load(head.q(i), p.dim);
  dout.load(head.dout(i), p.value_dim);
  const Real dot = products(q, first, keys, p.dim, [&](int key) { return head.k(key); });
  const Real product = products(dout, first, keys, p.value_dim, [&](int key) { return head.v(key); });
  const Real score = head.elements.score(dot, i, j);
  const bool seen = j >= keys.first && j < keys.end && !head.elements.hidden_by_bias(score);
  return seen ? element_gradient(head, score, product, i, j).score : Real(0);
}
// an index of attn_bias stands for itself, or for all of an axis that it is broadcast over
FA_FN Interval<int> spread(Int64 stride, int index, int full) {
  return stride != 0 ? Interval<int>{index, index + 1} : Interval<int>{0, full};
}
// Up to 32 neighbours along the keys, or the one that all keys share; sums over batch, then heads, then rows, then keys.
FA_FN void bias_gradient_at(const Numbers& p, const Arrays& a, int batch, int bias_head, int bias_row, int first_key) {
  const Interval<int> sequences = spread(p.dbias.batch, batch, p.batch), heads = spread(p.dbias.head, bias_head, p.heads);
  Real sum = 0;
  for (int b = sequences.first; b < sequences.end; b++) {
    const Sequence s = sequence_of(p, a, b);
    const Interval<int> rows = spread(p.dbias.row, bias_row, s.mask.rows), keys = spread(p.dbias.key, first_key, s.mask.keys);
    for (int h = heads.first; h < heads.end; h++) {
      const Head head(p, a, s, h);
      Real part = 0;  // of one head: a long sum loses less in pieces
      for (int i = rows.first; i < min(rows.end, s.mask.rows); i++)
        for (int first = keys.first; first < keys.end; first += 32) part += bias_gradient_of(head, i, first);
      sum += part;
    }
  }
  const Int64 at = batch * p.dbias.batch + bias_head * p.dbias.head + bias_row * p.dbias.row;
  Bias* const to = static_cast<Bias*>(a.dbias) + at;
  if (p.dbias.key == 0) sum = warp_sum(sum);
  if (first_key + lane_of() < a.bias_shape[3]) to[first_key + lane_of()] = from_real<Bias>(sum);
}
}  // namespace

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
    bias_gradient(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  const Int64 blocks = divide_up(a.bias_shape[3], 32), rows = a.bias_shape[2], heads = a.bias_shape[1];
  const Int64 count = a.bias_shape[0] * heads * rows * blocks, step = static_cast<Int64>(gridDim.x) * WARPS;
  for (Int64 n = static_cast<Int64>(blockIdx.x) * WARPS + warp_of(); n < count; n += step) {
    const Int64 row = n / blocks, head = row / rows;
    bias_gradient_at(p, a, static_cast<int>(head / heads), static_cast<int>(head % heads), static_cast<int>(row % rows),
                     static_cast<int>(n % blocks) * 32);
  }
}
}  // namespace fa::cuda
