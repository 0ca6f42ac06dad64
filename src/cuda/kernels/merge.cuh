// Joins results of the same rows over different keys: out and lse of all keys together.
// Tile     a row of one head.
// Who      FA_SPLIT warps of a block a row.
// Memory   each part is read once, 128 elements of all parts at a time.
// Speed    bound by memory; where there are few rows by the time of a read, so that several warps share a row.
//
//   merge    part_out, part_lse -> out, lse; a part with lse -inf counts for nothing, whatever it holds
//            grid: divide_up(longest rows, FA_WARPS / FA_SPLIT), heads, batch; see each_head()
//            parts: those that splits_of() says where split_keys is not 0, else `splits` of every row; strides q are part_out's
#include "semantics/softmax.h"
#include "words/each.cuh"
#include "words/row.cuh"
#include "words/splits.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, THREADS = WARPS * 32;

// An lse is a score in natural units.
FA_FN Real natural_unit() { return score_unit<NATURAL>(ScoreT<Real>{1, 0}); }

// What the parts of a row weigh: their maximum and sum in log2 units. NaN counts as a number, -inf as no part at all.
FA_FN Softmax<Real> parts_softmax(const Real* lse, Int64 step, int parts) {
  Softmax<Real> state{Real(no_maximum()), 0};
  for (int c = lane_of(); c < parts; c += 32)
    if (const Real x = lse[c * step]; x > Real(minus_infinity())) state.max = max(x * natural_unit(), state.max);
  state.max = warp_max(state.max);
  for (int c = lane_of(); c < parts; c += 32)
    if (const Real x = lse[c * step]; !(x == Real(minus_infinity()))) state.sum += probability(x, natural_unit(), state.max);
  state.sum = warp_sum(state.sum);
  return state;
}
using Part = TypeOf<FA_PART>::Type;

// The warps of a row have every FA_SPLIT-th part each, whose weighted sums are added in order: 128 elements at a time.
constexpr int SPLIT = FA_SPLIT, MERGED = WARPS / SPLIT, PIECE = 128;
FA_FN void merge_row(const Numbers& p, const Arrays& a, const Sequence& s, int head, int i) {
  __shared__ Real shares[WARPS][PIECE];
  const int mine = warp_of() % SPLIT, parts = p.split_keys > 0 ? splits_of(p, s.mask).count : p.splits;
  const bool exists = i < s.mask.rows;
  const Int64 at = lse_offset(p, s, exists ? i : 0, head), step = a.total_rows * p.heads;
  const Real* const lse = static_cast<const Real*>(a.part_lse) + at;
  const Part* const from = static_cast<const Part*>(a.part_out) + row_offset(p.q, s, exists ? i : 0, head);
  const Softmax<Real> state = parts_softmax(lse, step, exists ? parts : 0);
  const Real inverse = inverse_sum(state);
  for (int first = 0; first < p.value_dim; first += PIECE) {
    Real sums[PIECE / 32] = {};
#pragma unroll 4
    for (int c = mine; c < (exists ? parts : 0); c += SPLIT) {
      const Real x = lse[c * step];
      if (x == Real(minus_infinity())) continue;
      const Real weight = probability(x, natural_unit(), state.max) * inverse;
#pragma unroll
      for (int t = 0; t < PIECE / 32; t++)
        if (const int d = first + t * 32 + lane_of(); d < p.value_dim)
          sums[t] = fma(weight, to_real(from[c * step * p.value_dim + d]), sums[t]);
    }
    if constexpr (SPLIT > 1) {
#pragma unroll
      for (int t = 0; t < PIECE / 32; t++) shares[warp_of()][t * 32 + lane_of()] = sums[t];
      __syncthreads();
#pragma unroll
      for (int t = 0; t < PIECE / 32; t++) {
        sums[t] = 0;
        for (int w = 0; w < SPLIT; w++) sums[t] += shares[warp_of() - mine + w][t * 32 + lane_of()];
      }
      __syncthreads();
    }
    if (!exists || mine != 0) continue;
    Out* const to = static_cast<Out*>(a.out) + row_offset(p.out, s, i, head);
#pragma unroll
    for (int t = 0; t < PIECE / 32; t++)
      if (const int d = first + t * 32 + lane_of(); d < p.value_dim) to[d] = from_real<Out>(sums[t]);
  }
  if (exists && mine == 0 && lane_of() == 0 && a.lse != nullptr) static_cast<Real*>(a.lse)[at] = log_sum_exp(state);
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) merge(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.heads,
            [&](const Sequence& s, int head) { merge_row(p, a, s, head, static_cast<int>(blockIdx.x) * MERGED + warp_of() / SPLIT); });
}
}  // namespace fa::cuda
