// S_dmask: the normalised probabilities of every row and key, negative where dropout dropped them; rows and keys that no sequence has: 0.
// Tile     one row and 32 keys: lane l has key l.
// Who      a warp alone; a block is FA_WARPS neighbours.
// Memory   registers; written once, 32 neighbours at a time.
// Speed    bound by loads from L1; for tests.
//
//   probabilities    q, k, lse -> probabilities    grid: divide_up(longest rows, FA_WARPS), heads, batch; see each_head()
#include "words/head.cuh"

namespace fa::cuda {
namespace {
FA_FN void probabilities_of_row(const Numbers& p, const Arrays& a, const Sequence& s, int query_head, int i) {
  Element* const to = static_cast<Element*>(a.probabilities) +
                      ((static_cast<Int64>(s.index) * p.heads + query_head) * p.mask.rows + i) * static_cast<Int64>(p.mask.keys);
  const bool exists = i < s.mask.rows;
  const Head head(p, a, s, query_head);
  const Interval<int> keys = exists ? visible_keys(s.mask, i) : Interval<int>{0, 0};
  const Real lse = exists ? static_cast<const Real*>(a.lse)[lse_offset(p, s, i, query_head)] : Real(0);
  Row<FA_DIM> q;
  q.clear();
  if (keys.first < keys.end) q.load(head.q(i), p.dim);
  for (int first = 0; first < p.mask.keys; first += 32) {
    const int j = first + lane_of();
    Real weight = 0;
    if (first < keys.end && first + 32 > keys.first) {
      const Real score = head.elements.score(products(q, first, keys, p.dim, [&](int key) { return head.k(key); }), i, j);
      if (j >= keys.first && j < keys.end && !head.elements.hidden_by_bias(score)) weight = head.probability(score, lse);
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
