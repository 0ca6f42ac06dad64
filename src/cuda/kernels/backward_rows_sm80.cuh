// dq alone, for calls that must repeat bit by bit: as backward_sm80, but walking keys, so that each row has one order of additions.
// Tile     FA_BM query rows x FA_BN keys; a warp owns 16 rows.
// Who      one block for a tile of rows of one head; its warps walk the visible blocks of keys in order.
// Memory   Q and dO once; K and V in a ring of two stages; S, dP and dS in registers only.
// Speed    three products a tile, of which backward_sm80 has made two before: the price of the order.
#include "words/products.cuh"

namespace fa::cuda {
namespace {
constexpr int BM = FA_BM, BN = FA_BN, DIM = FA_DIM, VALUE_DIM = FA_VALUE_DIM, WARPS = FA_WARPS, THREADS = WARPS * 32;
constexpr int NT = BN / 8;
static_assert(BM == WARPS * 16 && BN % 16 == 0);
using QPanel = Panel<BM, DIM>;
using GPanel = Panel<BM, VALUE_DIM>;  // dout
using KPanel = Panel<BN, DIM>;
using VPanel = Panel<BN, VALUE_DIM>;
constexpr int RING_AT = QPanel::BYTES + GPanel::BYTES, STAGE_BYTES = KPanel::BYTES + VPanel::BYTES;
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, FA_BLOCKS)
    row_gradient(const __grid_constant__ Params p, const __grid_constant__ Arrays a) {
  extern __shared__ __align__(128) unsigned char shared[];
  const unsigned base = shared_address(shared);

  // where: the longest rows of a causal mask first
  const Sequence sequence = sequence_of(p, a, static_cast<int>(blockIdx.z));
  const Mask mask = mask_of(sequence);
  const int head = static_cast<int>(blockIdx.y), kv_head = kv_head_of(head, p.group);
  const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * BM;
  if (row0 >= mask.rows) return;
  const int rows = min(mask.rows - row0, BM), warp_row = warp_of() * 16;
  const int lane_row = warp_row + lane_of() / 4, lane_column = lane_of() % 4 * 2;
  const Elements elements(p, a, sequence, head);

  // range
  const Interval<int> any = any_visible(mask, row0, row0 + rows - 1), all = all_visible(mask, row0, row0 + rows - 1);
  const int first_block = max(any.first, 0) / BN, end_block = any.end > any.first ? divide_up(any.end, BN) : first_block;

  const QPanel q_panel{base};
  const GPanel g_panel{base + QPanel::BYTES};
  const auto k_panel = [&](int stage) { return KPanel{base + RING_AT + static_cast<unsigned>(stage * STAGE_BYTES)}; };
  const auto v_panel = [&](int stage) { return VPanel{base + RING_AT + static_cast<unsigned>(stage * STAGE_BYTES + KPanel::BYTES)}; };
  const int k_width = copy_width(a.k, p.k), v_width = copy_width(a.v, p.v);
  const auto fetch = [&](int block, int stage) {
    const Interval<int> keys{0, mask.keys - block * BN};
    fill<THREADS>(k_panel(stage), keys, p.dim, k_width, keys_from(p, sequence, a.k, p.k, block * BN, kv_head));
    fill<THREADS>(v_panel(stage), keys, p.value_dim, v_width, keys_from(p, sequence, a.v, p.v, block * BN, kv_head));
  };
  fill<THREADS>(q_panel, Interval<int>{0, rows}, p.dim, copy_width(a.q, p.q), rows_from(sequence, a.q, p.q, row0, head));
  fill<THREADS>(g_panel, Interval<int>{0, rows}, p.value_dim, copy_width(a.dout, p.dout), rows_from(sequence, a.dout, p.dout, row0, head));
  if (end_block > first_block) fetch(first_block, 0);
  commit();

  float reference[2], lost[2], delta[2], dq[1][DIM / 8][4];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int r = lane_row + h * 8;
    const Int64 at = lse_offset(p, sequence, row0 + min(r, rows - 1), head);
    reference[h] = lse_reference(static_cast<const float*>(a.lse)[at]);
    lost[h] = FA_DTYPE == 3 ? lse_remainder(static_cast<const float*>(a.lse)[at]) : 0.f;
    delta[h] = static_cast<const float*>(a.delta)[at];
  }
  zero(dq);
  const Tiles<QPanel> q_left = Tiles<QPanel>::straight(q_panel, warp_row);
  const Tiles<GPanel> g_left = Tiles<GPanel>::straight(g_panel, warp_row);
  int stage = 0;
#pragma unroll 1
  for (int block = first_block; block < end_block; block++, stage ^= 1) {
    wait<0>();
    __syncthreads();  // this block is there, and everybody has left the one before, whose stage is free
    if (block + 1 < end_block) fetch(block + 1, stage ^ 1);
    commit();

    const int key0 = block * BN;
    float s[1][NT][4], dp[1][NT][4], slope[(F & SOFTCAP) != 0 ? NT : 1][4];
    products<DIM / 16>(s, q_left, Tiles<KPanel>::crossed(k_panel(stage), 0));
    products<VALUE_DIM / 16>(dp, g_left, Tiles<VPanel>::crossed(v_panel(stage), 0));
    if constexpr ((F & SOFTCAP) != 0) {
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) slope[n][i] = elements.score_slope(s[0][n][i]);
    }
    score_rows(s, elements, row0 + lane_row, key0 + lane_column, key0 < all.first || key0 + BN > all.end);
    if constexpr (DROPS)
      decide_rows<1, NT>(elements, row0 + lane_row, key0 + lane_column,
                         [&](int, int n, int i, bool kept) { dp[0][n][i] *= kept ? elements.keep_scale : 0.f; });
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float probable = saved_probability(s[0][n][i], elements.unit(), reference[i / 2], lost[i / 2]);
        s[0][n][i] = score_gradient(probable, 1.f, dp[0][n][i], delta[i / 2]);
        if constexpr ((F & SOFTCAP) != 0) s[0][n][i] *= slope[n][i];
      }
#pragma unroll
    for (int step = 0; step < BN / 16; step++) {
      Operand ds[1];
      operand(ds[0], s[0][2 * step], s[0][2 * step + 1]);
      accumulate(dq, ds, Tiles<KPanel>::straight(k_panel(stage), 0), step * 16, 0);
    }
  }

  // finish: Q's memory becomes that of dq
  wait<0>();
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
      store_pair(q_panel, lane_row + h * 8, n, dq[0][n][2 * h] * p.score.scale, dq[0][n][2 * h + 1] * p.score.scale);
  __syncthreads();
  drain<THREADS>(q_panel, rows, p.dim, copy_width(a.dq, p.dq), rows_from(sequence, a.dq, p.dq, row0, head));
}
}  // namespace fa::cuda
