// Attention backward since Ampere, every feature: dk, dv, and dq by addition. 16-bit inputs on tensor cores (mma.sync), float32 by
// multiply-adds.
// Tile     FA_BN keys of one key/value head x FA_BM rows a step; a warp owns 16 keys and 1 / FA_SPLIT of the columns of dk and dv, and
//          1 / FA_SPLIT of a step's rows while it computes P and dS.
// Who      one block for a tile of keys; it walks all rows of all heads of the group that see one of them, so dk and dv have one order
//          of additions. dq is added to float32 in memory by red instructions, in any order (FA_DQ 1), or left to backward_dq (0).
// Memory   K and V once, Q and dO in a ring of FA_STAGES; products are transposed (keys x rows), so P and dS are left operands of dv and
//          dk as they stand; dS goes through shared memory for dq, and P too where warps share keys (FA_SPLIT > 1).
// Speed    docs/performance.md
#include "words/row_sums.cuh"

namespace fa::cuda {
namespace {
constexpr int BN = FA_BN, VALUE_DIM = FA_VALUE_DIM, SPLIT = FA_SPLIT, STAGES = FA_STAGES;
constexpr int STEP_ROWS = BM / SPLIT;                                          // rows of a step that a warp scores
constexpr int NT = STEP_ROWS / 8, KT = DIM / 16, VT = VALUE_DIM / 16;          // tiles of P, and steps of its products
constexpr int KO = DIM / SPLIT / 8, VO = VALUE_DIM / SPLIT / 8;                // tiles of a warp's dk and dv
constexpr int DQ_PASS = DQ_COLUMNS * DQ_ROWS > 2048 ? 64 : DQ_COLUMNS;         // columns of dq at a time
static_assert(WARPS / SPLIT * 16 == BN && STEP_ROWS % 16 == 0 && BM % 32 == 0);
static_assert(DIM % (16 * SPLIT) == 0 && VALUE_DIM % (16 * SPLIT) == 0);
static_assert(DQ_COLUMNS % DQ_PASS == 0);

using KPanel = Panel<BN, DIM>;
using VPanel = Panel<BN, VALUE_DIM>;
using QPanel = Panel<BM, DIM>;
using GPanel = Panel<BM, VALUE_DIM>;  // dout
using SPanel = Panel<BN, BM>;         // dS and P, keys x rows
constexpr int STAGE_BYTES = QPanel::BYTES + GPanel::BYTES + BM * 12;  // and lse, what float32 loses of it, delta
constexpr bool EXACT = FA_DTYPE == 3;                                 // the loss counts
constexpr int S_AT = KPanel::BYTES + VPanel::BYTES, P_AT = S_AT + SPanel::BYTES;
constexpr int RING_AT = SPLIT > 1 ? P_AT + SPanel::BYTES : P_AT;

FA_FN void copy_4(unsigned to, const float* from, bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(present ? 4 : 0) : "memory");
}
// An lse in shared memory becomes what is subtracted from scores in log2 units, once for all warps.
FA_FN void refer(unsigned address) {
  const float lse = load_float(address);
  store_4(address, __float_as_uint(lse_reference(lse)));
  if constexpr (EXACT) store_4(address + BM * 8, __float_as_uint(lse_remainder(lse)));
}

// What a lane holds of a step's rows besides P: bit 4 n + 2 h + e of `kept` for dropout, the slope of a softcap.
struct Weights {
  unsigned kept[DROPS ? (NT + 7) / 8 : 1];
  float slope[(F & SOFTCAP) != 0 ? NT : 1][4];
};

// score and hide. row, key: of this lane's register [0][0]
FA_FN void score_tile(float (&s)[1][NT][4], Weights& weights, const Elements& elements, int row, int key, bool edge) {
  if constexpr (CHANGED) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if constexpr ((F & SOFTCAP) != 0) weights.slope[n][i] = elements.score_slope(s[0][n][i]);
        s[0][n][i] = elements.score(s[0][n][i], row + n * 8 + i % 2, key + i / 2 * 8);
      }
  }
  if (edge) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const Interval<int> seen = visible_rows(elements.mask, key + h * 8);
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int r = row + n * 8 + e;
          s[0][n][2 * h + e] = r >= seen.first && r < seen.end ? s[0][n][2 * h + e] : hidden();
        }
    }
  }
}
// weigh. lse: shared address of this lane's first row, already a reference (see refer)
FA_FN void weigh(float (&s)[1][NT][4], unsigned lse, float unit) {
#pragma unroll
  for (int n = 0; n < NT; n++) {
    const float2 reference = load_floats(lse + static_cast<unsigned>(n * 32));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float& x = s[0][n][i];
      if constexpr (EXACT) {
        const float2 lost = load_floats(lse + static_cast<unsigned>(BM * 8 + n * 32));
        x = saved_probability(x, unit, i % 2 == 0 ? reference.x : reference.y, i % 2 == 0 ? lost.x : lost.y);
      } else {
        x = probability(x, unit, i % 2 == 0 ? reference.x : reference.y);
      }
    }
  }
}

FA_FN void decide(Weights& weights, const Elements& elements, int row, int key) {
  const bool aligned = elements.dropout_aligned();
#pragma unroll
  for (int n = 0; n < NT; n++) {
    if (n % 8 == 0) weights.kept[n / 8] = 0;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int r = row + n * 8 + e;
      const Words<unsigned> words = elements.dropout_tile(r, key);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const bool keep = aligned ? elements.keeps_in(words, r, key + h * 8) : elements.keeps(r, key + h * 8);
        weights.kept[n / 8] |= static_cast<unsigned>(keep) << (n % 8 * 4 + 2 * h + e);
      }
    }
  }
}
// what dropout leaves of element [n][i]
FA_FN float kept(const Weights& weights, int n, int i, float x) {
  if constexpr (DROPS) return (weights.kept[n / 8] >> (n % 8 * 4 + i) & 1u) != 0 ? x : 0.f;
  return x;
}

// dS from P and the products of dout and V. delta: shared address of this lane's first row
FA_FN void differentiate(float (&dp)[1][NT][4], const float (&s)[1][NT][4], const Weights& weights, unsigned delta, float keep_scale) {
#pragma unroll
  for (int n = 0; n < NT; n++) {
    const float2 d = load_floats(delta + static_cast<unsigned>(n * 32));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float& x = dp[0][n][i];
      x = score_gradient(s[0][n][i], DROPS ? kept(weights, n, i, keep_scale) : 1.f, x, i % 2 == 0 ? d.x : d.y);
      if constexpr ((F & SOFTCAP) != 0) x *= weights.slope[n][i];
    }
  }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, FA_BLOCKS)
    backward(const __grid_constant__ Params p, const __grid_constant__ Arrays a) {
  extern __shared__ __align__(128) unsigned char shared[];
  const unsigned base = shared_address(shared);

  // where
  const Sequence sequence = sequence_of(p, a, static_cast<int>(blockIdx.z));
  const Mask mask = mask_of(sequence);
  const int kv_head = static_cast<int>(blockIdx.y), key0 = static_cast<int>(blockIdx.x) * BN;
  if (key0 >= mask.keys) return;
  const int keys = min(mask.keys - key0, BN);
  const int warp_key = warp_of() / SPLIT * 16, part = warp_of() % SPLIT;
  const int lane_key = warp_key + lane_of() / 4, lane_row = part * STEP_ROWS + lane_of() % 4 * 2;

  // range: the rows that see one of the keys, for each head of the group
  const int first_row = max(visible_rows(mask, key0).first, 0), end_row = visible_rows(mask, key0 + keys - 1).end;
  const int first_step = first_row / BM, row_steps = end_row > first_row ? divide_up(end_row, BM) - first_step : 0;
  const int last_head = kv_head * p.group + p.group - 1;

  const KPanel k_panel{base};
  const VPanel v_panel{base + KPanel::BYTES};
  const SPanel ds_panel{base + S_AT}, p_panel{base + P_AT};
  const auto q_panel = [&](int stage) { return QPanel{base + RING_AT + static_cast<unsigned>(stage * STAGE_BYTES)}; };
  const auto g_panel = [&](int stage) { return GPanel{q_panel(stage).base + QPanel::BYTES}; };
  const auto lse_at = [&](int stage) { return q_panel(stage).base + QPanel::BYTES + GPanel::BYTES; };
  const int q_width = copy_width(a.q, p.q), g_width = copy_width(a.dout, p.dout);
  const auto fetch = [&](int head, int row0, int stage) {
    const int count = mask.rows - row0;
    fill<THREADS>(q_panel(stage), Interval<int>{0, count}, p.dim, q_width, rows_from(sequence, a.q, p.q, row0, head));
    fill<THREADS>(g_panel(stage), Interval<int>{0, count}, p.value_dim, g_width, rows_from(sequence, a.dout, p.dout, row0, head));
    const int i = static_cast<int>(threadIdx.x);
    if (i < 2 * BM) {
      const int r = i % BM;
      const float* const numbers = static_cast<const float*>(i < BM ? a.lse : a.delta);
      copy_4(lse_at(stage) + static_cast<unsigned>(i * 4), numbers + (r < count ? lse_offset(p, sequence, row0 + r, head) : 0), r < count);
    }
  };
  static_assert(2 * BM <= THREADS);

  fill<THREADS>(k_panel, Interval<int>{0, keys}, p.dim, copy_width(a.k, p.k), keys_from(p, sequence, a.k, p.k, key0, kv_head));
  fill<THREADS>(v_panel, Interval<int>{0, keys}, p.value_dim, copy_width(a.v, p.v), keys_from(p, sequence, a.v, p.v, key0, kv_head));
  int head = kv_head * p.group, row0 = first_step * BM, stage = 0;
  if (row_steps > 0) fetch(head, row0, 0);
  commit();

  float dk[1][KO][4], dv[1][VO][4];
  zero(dk);
  zero(dv);
  const Tiles<KPanel> k_left = Tiles<KPanel>::straight(k_panel, warp_key);
  const Tiles<VPanel> v_left = Tiles<VPanel>::straight(v_panel, warp_key);

#pragma unroll 1
  while (row_steps > 0 && head <= last_head) {
    wait<0>();
    if (threadIdx.x < BM) refer(lse_at(stage) + threadIdx.x * 4);  // this thread copied it
    __syncthreads();  // this step's rows are there, and everybody has left the step before
    const bool same_head = row0 + BM < (first_step + row_steps) * BM;
    const int next_head = same_head ? head : head + 1, next_row = same_head ? row0 + BM : first_step * BM;
    if constexpr (STAGES == 2) {
      if (next_head <= last_head) fetch(next_head, next_row, stage ^ 1);
      commit();
    }
    const Elements elements(p, a, sequence, head);
    const int rows = min(mask.rows - row0, BM);
    const Interval<int> all = all_visible(mask, row0, row0 + rows - 1);
    const bool edge = rows < BM || key0 < all.first || key0 + BN > all.end;

    const unsigned lse = lse_at(stage) + static_cast<unsigned>(lane_row * 4);
    const Tiles<GPanel> g_right = Tiles<GPanel>::straight(g_panel(stage), 0);
    const Tiles<QPanel> q_right = Tiles<QPanel>::straight(q_panel(stage), 0);
    float s[1][NT][4], dp[1][NT][4];
    Weights weights;
    products<KT>(s, k_left, Tiles<QPanel>::crossed(q_panel(stage), part * STEP_ROWS));
    score_tile(s, weights, elements, row0 + lane_row, key0 + lane_key, edge);
    weigh(s, lse, elements.unit());
    if constexpr (DROPS) decide(weights, elements, row0 + lane_row, key0 + lane_key);

    // P is the left operand of dv; for lanes of other warps it goes through shared memory
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      Operand weights_of[1];
      float left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; i++) left[i] = kept(weights, n, i, s[0][n][i]), right[i] = kept(weights, n + 1, i, s[0][n + 1][i]);
      operand(weights_of[0], left, right);
      if constexpr (SPLIT > 1) store_operand(p_panel, lane_key, part * NT + n, weights_of[0]);
      if constexpr (SPLIT == 1) accumulate(dv, weights_of, g_right, n * 8, 0);
    }
    products<VT>(dp, v_left, Tiles<GPanel>::crossed(g_panel(stage), part * STEP_ROWS));
    differentiate(dp, s, weights, lse + BM * 4, elements.keep_scale);
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      Operand ds[1];
      operand(ds[0], dp[0][n], dp[0][n + 1]);
      if constexpr (SPLIT > 1 || FA_DQ != 0) store_operand(ds_panel, lane_key, part * NT + n, ds[0]);
      if constexpr (SPLIT == 1) accumulate(dk, ds, q_right, n * 8, 0);
    }
    if constexpr (SPLIT > 1 || FA_DQ != 0) __syncthreads();
    if constexpr (SPLIT > 1) {
      const Tiles<SPanel> p_left = Tiles<SPanel>::straight(p_panel, warp_key), ds_left = Tiles<SPanel>::straight(ds_panel, warp_key);
#pragma unroll
      for (int row = 0; row < BM; row += 16) {
        Operand weights_of[1], ds[1];
        load_operand(weights_of[0], p_left, row / 8);
        accumulate(dv, weights_of, g_right, row, part * VO);
        load_operand(ds[0], ds_left, row / 8);
        accumulate(dk, ds, q_right, row, part * KO);
      }
    }

    if constexpr (FA_DQ != 0) {
      const Tiles<SPanel> ds_left = Tiles<SPanel>::crossed(ds_panel, 0);
      const Tiles<KPanel> k_right = Tiles<KPanel>::straight(k_panel, 0);
      float* const sums = sums_of_lane(tile_of_sums(p, a, sequence, row0, head));
      constexpr int OT = DQ_PASS / 8;
#pragma unroll 1
      for (int pass = 0; pass < DQ_COLUMNS; pass += DQ_PASS) {
        float dq[DQ_TILES][OT][4];
        zero(dq);
#pragma unroll
        for (int key = 0; key < BN; key += 16) {
          Operand ds[DQ_TILES];
#pragma unroll
          for (int m = 0; m < DQ_TILES; m++) load_transposed_operand(ds[m], ds_left, key, (dq_row() + m * 16) / 8);
          accumulate(dq, ds, k_right, key, (dq_column() + pass) / 8);
        }
#pragma unroll
        for (int m = 0; m < DQ_TILES; m++)
#pragma unroll
          for (int o = 0; o < OT; o++) add_sums(sums + sum_at(m, pass / 8 + o, 0), dq[m][o]);
      }
    }
    if constexpr (STAGES == 1) {
      __syncthreads();
      if (next_head <= last_head) fetch(next_head, next_row, 0);
      commit();
    }
    head = next_head, row0 = next_row;
    if constexpr (STAGES == 2) stage ^= 1;
  }

  // finish
  wait<0>();
  __syncthreads();
  const float k_factor = p.score.scale, v_factor = DROPS ? p.keep_scale : 1.f;
#pragma unroll
  for (int h = 0; h < 2; h++) {
#pragma unroll
    for (int n = 0; n < KO; n++)
      store_pair(k_panel, lane_key + h * 8, part * KO + n, dk[0][n][2 * h] * k_factor, dk[0][n][2 * h + 1] * k_factor);
#pragma unroll
    for (int n = 0; n < VO; n++)
      store_pair(v_panel, lane_key + h * 8, part * VO + n, dv[0][n][2 * h] * v_factor, dv[0][n][2 * h + 1] * v_factor);
  }
  __syncthreads();
  drain<THREADS>(k_panel, keys, p.dim, copy_width(a.dk, p.dk), keys_from(p, sequence, a.dk, p.dk, key0, kv_head));
  drain<THREADS>(v_panel, keys, p.value_dim, copy_width(a.dv, p.dv), keys_from(p, sequence, a.dv, p.dv, key0, kv_head));
}
}  // namespace fa::cuda
