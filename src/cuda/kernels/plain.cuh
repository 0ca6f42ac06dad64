// Attention straight from semantics/, one row a warp: takes every call and every dtype. Sums are float32 (float64 for float64) and have
// one order. Its gradients: plain_gradient.cuh.
// Tile     one row and 32 keys: lane l has the score of key l, and elements l, l + 32, ... of the head dim.
// Who      a warp alone; a block is FA_WARPS neighbours, which find each other's keys in the L1 cache.
// Memory   registers; a warp's 4 KB of shared memory (8 for float64), through which lanes read their rows; arrays are read in place.
// Speed    bound by loads from L1 and shared memory: each feeds one multiply-add a lane.
//
//   forward    q, k, v -> out, lse    grid: splits * divide_up(longest rows * group, FA_WARPS), kv heads, batch; see each_head()
//              Rows are (position * group + head of the group): those that share keys are neighbours. With part_out and part_lse, each
//              split (words/splits.cuh) writes there what its keys give, for merge.cuh.
#include "words/head.cuh"
#include "words/splits.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, DIM = FA_DIM, VALUE_DIM = FA_VALUE_DIM;
using Dim = Row<DIM>;
using ValueDim = Row<VALUE_DIM>;

FA_FN void forward_row(const Head& head, int i, int part, Splits splits) {
  const Numbers& p = head.p;
  Dim q;
  q.load(head.q(i), p.dim);
  ValueDim out;
  out.clear();
  Softmax<Real> state{Real(no_maximum()), 0};
  const Real unit = head.elements.unit();
  const bool split = head.a.part_out != nullptr;
  const Interval<int> keys = splits.keys(part, visible_keys(head.s.mask, i));
  for (int first = keys.first; first < keys.end; first += 32) {
    const int j = first + lane_of();
    const Real score = head.elements.score(products(q, first, keys, p.dim, [&](int key) { return head.k(key); }), i, j);
    const bool seen = j < keys.end && !head.elements.hidden_by_bias(score);
    const Softmax<Real> next = advance(state, warp_max(seen ? score * unit : Real(no_maximum())));
    const Real weight = seen ? probability(score, unit, next.max) : Real(0);
    if (next.max != state.max) out.scale(rescale(state.max, next.max));
    state = Softmax<Real>{next.max, next.sum + warp_sum(weight)};
    const Real kept = head.kept(i, j);
    add_rows(out, weight * kept, seen && kept != 0, first, p.value_dim, [&](int key) { return head.v(key); });
  }
  if constexpr ((F & SINK) != 0) {
    const Real before = state.max;
    if (part == 0) state = add_sink(state, sink_of(head.a, head.head));
    out.scale(rescale(before, state.max));
  }
  out.scale(inverse_sum(state));
  const Int64 at = row_offset(p.out, head.s, i, head.head), part_row = part * head.a.total_rows * p.heads;
  if (split)
    out.store(static_cast<Real*>(head.a.part_out) + part_row * p.value_dim + at, p.value_dim);
  else
    out.store(static_cast<Out*>(head.a.out) + at, p.value_dim);
  Real* const lse = static_cast<Real*>(split ? head.a.part_lse : head.a.lse);
  if (lane_of() == 0) lse[part_row + lse_offset(p, head.s, i, head.head)] = log_sum_exp(state);
}
}  // namespace

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) forward(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  const unsigned parts = static_cast<unsigned>(max(p.splits, 1));
  const int part = static_cast<int>(blockIdx.x % parts);
  const Int64 row = static_cast<Int64>(blockIdx.x / parts) * WARPS + warp_of();
  const int i = static_cast<int>(row / p.group), member = static_cast<int>(row % p.group);
  each_head(p, a, p.kv_heads, [&](const Sequence& s, int kv_head) {
    const Splits splits = splits_of(p, s.mask);
    if (i < s.mask.rows && part < splits.count) forward_row(Head(p, a, s, kv_head * p.group + member), i, part, splits);
  });
}
}  // namespace fa::cuda
