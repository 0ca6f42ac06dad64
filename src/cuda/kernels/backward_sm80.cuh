// Attention backward since Ampere, every feature: dk, dv, and dq by addition. 16-bit inputs on tensor cores (mma.sync), float32 by
// multiply-adds.
// Tile     FA_BN keys of one key/value head x FA_BM rows a step. Two warps share STEP_KEYS keys, each has half of the rows while it
//          computes P and dS; of dk and dv a warp owns OUT_KEYS keys x 1 / COLUMN_WARPS of the columns.
// Who      one block for a tile of keys; it walks all rows of all heads of the group that see one of them, so dk and dv have one order
//          of additions. dq is added to float32 in memory by red instructions, in any order (FA_DQ 1), or left to the row_gradient
//          of backward_rows_sm80.cuh (0).
// Memory   K and V once, Q and dO in a ring of FA_STAGES; products are transposed (keys x rows), so a warp's own P and dS are left operands
//          of dv and dk as they stand; what others need of them goes through shared memory.
// Speed    docs/performance.md. Loads from shared memory bound it: 608 KB a step of 64 rows x 128 keys at head dim 128.
#include "words/row_sums.cuh"

namespace fa::cuda {
namespace {
constexpr int BN = FA_BN, VALUE_DIM = FA_VALUE_DIM, STAGES = FA_STAGES;
constexpr int STEP_ROWS = BM / 2, STEP_KEYS = BN * 2 / WARPS;                               // of a step, that a warp scores
constexpr int MT = STEP_KEYS / 16, NT = STEP_ROWS / 8, KT = DIM / 16, VT = VALUE_DIM / 16;  // tiles of P, and steps of its products
constexpr int COLUMNS_OF_32 = 16 * WARPS * 32 / BN;                                         // 16 for each of the warps that share 32 keys
constexpr int OUT_KEYS = DIM % COLUMNS_OF_32 == 0 && VALUE_DIM % COLUMNS_OF_32 == 0 ? 32 : 16;
constexpr int COLUMN_WARPS = WARPS * OUT_KEYS / BN;
constexpr int OT = OUT_KEYS / 16, KO = DIM / COLUMN_WARPS / 8, VO = VALUE_DIM / COLUMN_WARPS / 8;  // tiles of a warp's dk and dv
constexpr bool OWN = OUT_KEYS == STEP_KEYS && COLUMN_WARPS == 2;  // a warp computes half of the P and dS that its dv and dk take
constexpr int DQ_PASS = DQ_COLUMNS * DQ_ROWS > 1024 && DQ_COLUMNS % 32 == 0 ? 32 : DQ_COLUMNS;  // columns of dq at a time
static_assert(FA_SPLIT == 2 && STEP_KEYS % 16 == 0 && 32 % STEP_KEYS == 0 && STEP_ROWS % 16 == 0 && NT <= 8);
static_assert(KO % 2 == 0 && VO % 2 == 0 && DQ_COLUMNS % DQ_PASS == 0);

using KPanel = Panel<BN, DIM>;
using VPanel = Panel<BN, VALUE_DIM>;
using QPanel = Panel<BM, DIM>;
using GPanel = Panel<BM, VALUE_DIM>;                                                // dout
using SPanel = Panel<BN, BM>;                                                       // dS and P, keys x rows
constexpr bool EXACT = FA_DTYPE == 3;                                               // what float32 loses of an lse counts
constexpr int STAGE_BYTES = QPanel::BYTES + GPanel::BYTES + BM * (EXACT ? 12 : 8);  // and lse, delta, the loss
constexpr int S_AT = KPanel::BYTES + VPanel::BYTES, P_AT = S_AT + SPanel::BYTES, RING_AT = P_AT + SPanel::BYTES;

FA_FN void copy_4(unsigned to, const float* from, bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(present ? 4 : 0) : "memory");
}
// An lse in shared memory becomes what is subtracted from scores in log2 units, once for all warps.
FA_FN void refer(unsigned address) {
  const float lse = load_float(address);
  store_4(address, __float_as_uint(lse_reference(lse)));
  if constexpr (EXACT) store_4(address + BM * 8, __float_as_uint(lse_remainder(lse)));
}

// What a lane holds of a step's rows besides P: bit 4 n + 2 h + e of `kept[m]` for dropout, the slope of a softcap.
struct Weights {
  unsigned kept[MT];
  float slope[(F & SOFTCAP) != 0 ? MT : 1][NT][4];
};

// score and hide. row, key: of this lane's register [0][0][0]
FA_FN void score_tile(float (&s)[MT][NT][4], Weights& weights, const Elements& elements, int row, int key, bool edge) {
  if constexpr (CHANGED) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          if constexpr ((F & SOFTCAP) != 0) weights.slope[m][n][i] = elements.score_slope(s[m][n][i]);
          s[m][n][i] = elements.score(s[m][n][i], row + n * 8 + i % 2, key + m * 16 + i / 2 * 8);
        }
  }
  if (edge) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const Interval<int> seen = visible_rows(elements.mask, key + m * 16 + h * 8);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int r = row + n * 8 + e;
            s[m][n][2 * h + e] = r >= seen.first && r < seen.end ? s[m][n][2 * h + e] : hidden();
          }
      }
  }
}
// weigh. lse: shared address of this lane's first row, already a reference (see refer)
FA_FN void weigh(float (&s)[MT][NT][4], unsigned lse, float unit) {
#pragma unroll
  for (int n = 0; n < NT; n++) {
    const float2 reference = load_floats(lse + static_cast<unsigned>(n * 32));
    float2 lost = {0, 0};
    if constexpr (EXACT) lost = load_floats(lse + static_cast<unsigned>(BM * 8 + n * 32));
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& x = s[m][n][i];
        const float of_row = i % 2 == 0 ? reference.x : reference.y;
        if constexpr (EXACT)
          x = saved_probability(x, unit, of_row, i % 2 == 0 ? lost.x : lost.y);
        else
          x = probability(x, unit, of_row);
      }
  }
}

// One Philox call decides the rows r and r + 8 for all keys of a lane, where tiles are aligned.
FA_FN void decide(Weights& weights, const Elements& elements, int row, int key) {
  const bool aligned = elements.dropout_aligned();
#pragma unroll
  for (int m = 0; m < MT; m++) weights.kept[m] = 0;
#pragma unroll
  for (int pair = 0; pair < NT; pair += 2)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const Words<unsigned> words = elements.dropout_tile(row + pair * 8 + e, key);
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = pair; n < pair + 2; n++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const int r = row + n * 8 + e, k = key + m * 16 + h * 8;
            const bool keep = aligned ? elements.keeps_in(words, r, k) : elements.keeps(r, k);
            weights.kept[m] |= static_cast<unsigned>(keep) << (n * 4 + 2 * h + e);
          }
    }
}
// what dropout leaves of element [m][n][i]
FA_FN float kept(const Weights& weights, int m, int n, int i, float x) {
  if constexpr (DROPS) return (weights.kept[m] >> (n * 4 + i) & 1u) != 0 ? x : 0.f;
  return x;
}

// dS from P and the products of dout and V. delta: shared address of this lane's first row
FA_FN void differentiate(float (&dp)[MT][NT][4], const float (&s)[MT][NT][4], const Weights& weights, unsigned delta, float keep_scale) {
#pragma unroll
  for (int n = 0; n < NT; n++) {
    const float2 d = load_floats(delta + static_cast<unsigned>(n * 32));
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& x = dp[m][n][i];
        x = score_gradient(s[m][n][i], DROPS ? kept(weights, m, n, i, keep_scale) : 1.f, x, i % 2 == 0 ? d.x : d.y);
        if constexpr ((F & SOFTCAP) != 0) x *= weights.slope[m][n][i];
      }
  }
}
// What the rows that a warp has scored add to its dv or dk.
template <int OWNED, int N, int SCORED, class Rows>
FA_FN void accumulate_own(float (&sum)[OWNED][N][4], const Operand (&a)[SCORED], const Tiles<Rows>& right, int row, int tile) {
  if constexpr (OWNED == SCORED && OWN) accumulate(sum, a, right, row, tile);
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
  const int warp_key = warp_of() / 2 * STEP_KEYS, part = warp_of() % 2, warp_row = part * STEP_ROWS, other_row = STEP_ROWS - warp_row;
  const int lane_key = warp_key + lane_of() / 4, lane_row = warp_row + lane_of() % 4 * 2;
  const int out_key = warp_of() / COLUMN_WARPS * OUT_KEYS, column_part = warp_of() % COLUMN_WARPS;

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

  float dk[OT][KO][4], dv[OT][VO][4];
  zero(dk);
  zero(dv);
  const Tiles<KPanel> k_left = Tiles<KPanel>::straight(k_panel, warp_key);
  const Tiles<VPanel> v_left = Tiles<VPanel>::straight(v_panel, warp_key);
  const Tiles<SPanel> p_left = Tiles<SPanel>::straight(p_panel, out_key), ds_left = Tiles<SPanel>::straight(ds_panel, out_key);

#pragma unroll 1
  while (row_steps > 0 && head <= last_head) {
    wait<0>();
    if (threadIdx.x < BM) refer(lse_at(stage) + threadIdx.x * 4);  // this thread copied it
    __syncthreads();                                               // this step's rows are there, and everybody has left the step before
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
    float s[MT][NT][4], dp[MT][NT][4];
    Weights weights;
    products<KT>(s, k_left, Tiles<QPanel>::crossed(q_panel(stage), warp_row));
    score_tile(s, weights, elements, row0 + lane_row, key0 + lane_key, edge);
    weigh(s, lse, elements.unit());
    if constexpr (DROPS) decide(weights, elements, row0 + lane_row, key0 + lane_key);

    // P and dS of the warp's own rows are operands as they stand
    const Tiles<GPanel> g_own = Tiles<GPanel>::straight(g_panel(stage), warp_row);
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      Operand of_p[MT];
#pragma unroll
      for (int m = 0; m < MT; m++) {
        float left[4], right[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = kept(weights, m, n, i, s[m][n][i]), right[i] = kept(weights, m, n + 1, i, s[m][n + 1][i]);
        operand(of_p[m], left, right);
        store_operand(p_panel, lane_key + m * 16, part * NT + n, of_p[m]);
      }
      accumulate_own(dv, of_p, g_own, n * 8, column_part * VO);
    }
    products<VT>(dp, v_left, Tiles<GPanel>::crossed(g_panel(stage), warp_row));
    differentiate(dp, s, weights, lse + BM * 4, elements.keep_scale);
    const Tiles<QPanel> q_own = Tiles<QPanel>::straight(q_panel(stage), warp_row);
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      Operand of_ds[MT];
#pragma unroll
      for (int m = 0; m < MT; m++) {
        operand(of_ds[m], dp[m][n], dp[m][n + 1]);
        store_operand(ds_panel, lane_key + m * 16, part * NT + n, of_ds[m]);
      }
      accumulate_own(dk, of_ds, q_own, n * 8, column_part * KO);
    }
    __syncthreads();

    // the rows of others
    const int row_of_others = OWN ? other_row : 0;
    const Tiles<GPanel> g_right = Tiles<GPanel>::straight(g_panel(stage), row_of_others);
    const Tiles<QPanel> q_right = Tiles<QPanel>::straight(q_panel(stage), row_of_others);
#pragma unroll
    for (int row = 0; row < (OWN ? STEP_ROWS : BM); row += 16) {
      Operand of_p[OT], of_ds[OT];
#pragma unroll
      for (int m = 0; m < OT; m++) load_operand(of_p[m], p_left, m * 16, (row_of_others + row) / 8);
      accumulate(dv, of_p, g_right, row, column_part * VO);
#pragma unroll
      for (int m = 0; m < OT; m++) load_operand(of_ds[m], ds_left, m * 16, (row_of_others + row) / 8);
      accumulate(dk, of_ds, q_right, row, column_part * KO);
    }

    if constexpr (FA_DQ != 0) {
      const Tiles<SPanel> ds_rows = Tiles<SPanel>::crossed(ds_panel, 0);
      const Tiles<KPanel> k_right = Tiles<KPanel>::straight(k_panel, 0);
      float* const sums = sums_of_lane(tile_of_sums(p, a, sequence, row0, head));
#pragma unroll 1
      for (int pass = 0; pass < DQ_COLUMNS; pass += DQ_PASS) {
        float dq[DQ_TILES][DQ_PASS / 8][4];
        zero(dq);
#pragma unroll
        for (int key = 0; key < BN; key += 16) {
          Operand ds[DQ_TILES];
#pragma unroll
          for (int m = 0; m < DQ_TILES; m++) load_transposed_operand(ds[m], ds_rows, key, (dq_row() + m * 16) / 8);
          accumulate(dq, ds, k_right, key, (dq_column() + pass) / 8);
        }
#pragma unroll
        for (int m = 0; m < DQ_TILES; m++)
#pragma unroll
          for (int o = 0; o < DQ_PASS / 8; o++) add_sums(sums + sum_at(m, pass / 8 + o, 0), dq[m][o]);
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
  for (int m = 0; m < OT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int key = out_key + m * 16 + h * 8 + lane_of() / 4;
#pragma unroll
      for (int n = 0; n < KO; n++)
        store_pair(k_panel, key, column_part * KO + n, dk[m][n][2 * h] * k_factor, dk[m][n][2 * h + 1] * k_factor);
#pragma unroll
      for (int n = 0; n < VO; n++)
        store_pair(v_panel, key, column_part * VO + n, dv[m][n][2 * h] * v_factor, dv[m][n][2 * h + 1] * v_factor);
    }
  __syncthreads();
  drain<THREADS>(k_panel, keys, p.dim, copy_width(a.dk, p.dk), keys_from(p, sequence, a.dk, p.dk, key0, kv_head));
  drain<THREADS>(v_panel, keys, p.value_dim, copy_width(a.dv, p.dv), keys_from(p, sequence, a.dv, p.dv, key0, kv_head));
}
}  // namespace fa::cuda
