// Gradients straight from semantics/, one row or key a warp: takes every call that has gradients and every dtype.
// Sums are float32 (float64 for float64) and have one order.
// Tile     one row and 32 keys, or one key and 32 rows: lane l has the element of key (row) l, and l, l + 32, ... of the head dim.
// Who      a warp alone; a block is FA_WARPS neighbours, which find each other's operands in the L1 cache.
// Memory   registers; a warp's 4 KB of shared memory (8 for float64), through which lanes read their rows; arrays are read in place.
// Speed    bound by loads from L1 and shared memory: each feeds one multiply-add a lane.
//
//   row_gradient     dout, q, k, v, lse, delta -> dq      grid: divide_up(longest rows, FA_WARPS), heads, batch; see each_head()
//   key_gradient     the same -> dk, dv                   grid: divide_up(longest keys, FA_WARPS), kv heads, batch
#include "words/head.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, DIM = FA_DIM, VALUE_DIM = FA_VALUE_DIM;
using Dim = Row<DIM>;
using ValueDim = Row<VALUE_DIM>;

FA_FN void row_gradient_of(const Head& head, int i) {
  const Numbers& p = head.p;
  Dim q, dq;
  ValueDim dout;
  q.load(head.q(i), p.dim);
  dout.load(head.dout(i), p.value_dim);
  dq.clear();
  const Interval<int> keys = visible_keys(head.s.mask, i);
  for (int first = keys.first; first < keys.end; first += 32) {
    const int j = first + lane_of();
    const Real dot = products(q, first, keys, p.dim, [&](int key) { return head.k(key); });
    const Real product = products(dout, first, keys, p.value_dim, [&](int key) { return head.v(key); });
    const Real score = head.elements.score(dot, i, j);
    const bool seen = j < keys.end && !head.elements.hidden_by_bias(score);
    const Real slope = seen ? element_gradient(head, score, product, i, j).score : Real(0);
    add_rows(dq, slope * head.elements.score_slope(dot) * p.score.scale, seen, first, p.dim, [&](int key) { return head.k(key); });
  }
  dq.store(static_cast<Element*>(head.a.dq) + row_offset(p.dq, head.s, i, head.head), p.dim);
}

// Sums over the heads of the group, then over rows.
FA_FN void key_gradient_of(const Numbers& p, const Arrays& a, const Sequence& s, int kv_head, int j) {
  Dim k, dk;
  ValueDim v, dv;
  k.load(static_cast<const Element*>(a.k) + key_offset(p, p.k, s, j, kv_head), p.dim);
  v.load(static_cast<const Element*>(a.v) + key_offset(p, p.v, s, j, kv_head), p.value_dim);
  dk.clear();
  dv.clear();
  const Interval<int> rows = visible_rows(s.mask, j);
  for (int member = 0; member < p.group; member++) {
    const Head head(p, a, s, kv_head * p.group + member);
    for (int first = rows.first; first < rows.end; first += 32) {
      const int i = first + lane_of();
      const Real dot = products(k, first, rows, p.dim, [&](int row) { return head.q(row); });
      const Real product = products(v, first, rows, p.value_dim, [&](int row) { return head.dout(row); });
      const Real score = head.elements.score(dot, i, j);
      const bool seen = i < rows.end && !head.elements.hidden_by_bias(score);
      const Slope slope = seen ? element_gradient(head, score, product, i, j) : Slope{0, 0};
      add_rows(dk, slope.score * head.elements.score_slope(dot) * p.score.scale, seen, first, p.dim, [&](int row) { return head.q(row); });
      add_rows(dv, slope.weight, slope.weight != 0, first, p.value_dim, [&](int row) { return head.dout(row); });
    }
  }
  dk.store(static_cast<Element*>(a.dk) + key_offset(p, p.dk, s, j, kv_head), p.dim);
  dv.store(static_cast<Element*>(a.dv) + key_offset(p, p.dv, s, j, kv_head), p.value_dim);
}
}  // namespace

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
    row_gradient(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.heads, [&](const Sequence& s, int head) {
    if (const int i = first_of_warp(); i < s.mask.rows) row_gradient_of(Head(p, a, s, head), i);
  });
}
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
    key_gradient(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.kv_heads, [&](const Sequence& s, int kv_head) {
    if (const int j = first_of_warp(); j < s.mask.keys) key_gradient_of(p, a, s, kv_head, j);
  });
}
}  // namespace fa::cuda
