// S_dmask: the normalised probabilities of every row and key, negative where dropout dropped them; rows and keys that no sequence has: 0.
// By a softmax of its own: the lse of another kernel has its own roundings, which the exponential of a large score shows.
// Tile     one row and 32 keys: lane l has key l.
// Who      a warp alone; a block is FA_WARPS neighbours.
// Memory   registers; a warp's 4 KB of shared memory (8 for float64), through which lanes read their keys; written once, 32
//          neighbours at a time.
// Speed    bound by loads from L1, each key read twice; for tests.
//
//   probabilities    q, k -> probabilities    grid: divide_up(longest rows, FA_WARPS), heads, batch; see each_head()
#include "words/head.cuh"

namespace fa::cuda {
namespace {
FA_FN void probabilities_of_row(const Numbers& p, const Arrays& a, const Sequence& s, int query_head, int i) {
  Element* const to = static_cast<Element*>(a.probabilities) +
                      ((static_cast<Int64>(s.index) * p.heads + query_head) * p.mask.rows + i) * static_cast<Int64>(p.mask.keys);
  const bool exists = i < s.mask.rows;
  const Head head(p, a, s, query_head);
  const Interval<int> keys = exists ? visible_keys(s.mask, i) : Interval<int>{0, 0};
  const Real unit = head.elements.unit();
  Row<FA_DIM> q;
  q.clear();
  if (keys.first < keys.end) q.load(head.q(i), p.dim);
  // of this lane's key of the 32 from `first` on; a key that the row does not see: hidden()
  const auto score_of = [&](int first) {
    const int j = first + lane_of();
    const Real score = head.elements.score(products(q, first, keys, p.dim, [&](int key) { return head.k(key); }), i, j);
    return j >= keys.first && j < keys.end && !head.elements.hidden_by_bias(score) ? score : Real(hidden());
  };
  Softmax<Real> state{Real(no_maximum()), 0};
  for (int first = keys.first / 32 * 32; first < keys.end; first += 32) {
    const Real score = score_of(first);
    const bool seen = score != Real(hidden());
    state = advance(state, warp_max(seen ? score * unit : Real(no_maximum())));
    state.sum += warp_sum(seen ? probability(score, unit, state.max) : Real(0));
  }
  if constexpr ((F & SINK) != 0) state = add_sink(state, sink_of(a, query_head));
  for (int first = 0; first < p.mask.keys; first += 32) {
    const int j = first + lane_of();
    Real weight = 0;
    if (first < keys.end && first + 32 > keys.first) {
      const Real score = score_of(first);
      if (score != Real(hidden())) weight = probability(score, unit, state.max) * inverse_sum(state);
    }
    const bool dropped = exists && j < s.mask.keys && head.kept(i, j) == 0;
    if (j < p.mask.keys) to[j] = from_real<Element>(dropped ? -weight : weight);
  }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(FA_WARPS * 32, 1)
    probabilities(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.heads, [&](const Sequence& s, int head) {
    if (const int i = first_of_warp(); i < p.mask.rows) probabilities_of_row(p, a, s, head, i);
  });
}
}  // namespace fa::cuda
