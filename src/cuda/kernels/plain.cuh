// Attention straight from semantics/, one row a warp: takes every call and every dtype. Sums are float32 (float64 for float64) and have
// one order. Its gradients: plain_gradient.cuh.
// Tile     one row and 32 keys: lane l has the score of key l, and elements l, l + 32, ... of the head dim.
// Who      a warp alone; a block is FA_WARPS neighbours, which find each other's keys in the L1 cache.
// Memory   registers; K and V are read in place.
// Speed    bound by loads from L1: each feeds one multiply-add a lane.
//
//   forward    q, k, v -> out, lse    grid: divide_up(longest rows, FA_WARPS), heads, batch; see each_head()
#include "words/head.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, DIM = FA_DIM, VALUE_DIM = FA_VALUE_DIM;
using Dim = Row<DIM>;
using ValueDim = Row<VALUE_DIM>;

FA_FN void forward_row(const Head& head, int i) {
  const Numbers& p = head.p;
  Dim q;
  q.load(head.q(i), p.dim);
  ValueDim out;
  out.clear();
  Softmax<Real> state{Real(no_maximum()), 0};
  const Real unit = head.elements.unit();
  const Interval<int> keys = visible_keys(head.s.mask, i);
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
    state = add_sink(state, sink_of(head.a, head.head));
    out.scale(rescale(before, state.max));
  }
  out.scale(inverse_sum(state));
  out.store(static_cast<Out*>(head.a.out) + row_offset(p.out, head.s, i, head.head), p.value_dim);
  if (lane_of() == 0) static_cast<Real*>(head.a.lse)[lse_offset(p, head.s, i, head.head)] = log_sum_exp(state);
}
}  // namespace

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) forward(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.heads, [&](const Sequence& s, int head) {
    if (const int i = first_of_warp(); i < s.mask.rows) forward_row(Head(p, a, s, head), i);
  });
}
}  // namespace fa::cuda
