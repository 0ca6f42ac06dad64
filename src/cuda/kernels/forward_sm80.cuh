// Attention forward since Ampere, every feature: 16-bit inputs on tensor cores (mma.sync), float32 by multiply-adds.
// Tile     FA_BM query rows x FA_BN keys; a warp owns FA_BM / (warps / FA_SPLIT) rows. With FA_SPLIT 2 (16 bits, large head dims) two
//          warps share their rows: each scores half of the keys and owns half of the columns.
// Who      one block for a tile of rows of one head; all its warps walk the same keys, from the last visible block to the first.
// Memory   Q once; K and V by cp.async: in a ring of two stages one block ahead, one barrier a block, or in one stage, where V comes during
//          the first product and the next K during the second, two barriers a block. S and P in registers; warps that share rows find the
//          other half of P in shared memory.
// Speed    docs/performance.md. The maximum moves only when a score exceeds it by LAZY (log2 units): the sums stay exact, and the
//          output is rarely rescaled.
#include "words/barrier.cuh"
#include "words/products.cuh"

namespace fa::cuda {
namespace {
constexpr int BM = FA_BM, BN = FA_BN, DIM = FA_DIM, VALUE_DIM = FA_VALUE_DIM, WARPS = FA_WARPS, SPLIT = FA_SPLIT, THREADS = WARPS * 32;
constexpr int STAGES = FA_STAGES;
constexpr int ROWS = BM / (WARPS / SPLIT), KEYS = BN / SPLIT, COLUMNS = VALUE_DIM / SPLIT;  // of one warp
constexpr int MT = ROWS / 16, NT = KEYS / 8, KT = DIM / 16, OT = COLUMNS / 8;               // tiles of its products
static_assert(SPLIT <= 2 && ROWS % 16 == 0 && KEYS % 16 == 0 && COLUMNS % 16 == 0);
constexpr float LAZY = 8;
constexpr unsigned ALL_LANES = 0xffffffffu;

using QPanel = Panel<BM, DIM>;
using KPanel = Panel<BN, DIM>;
using VPanel = Panel<BN, VALUE_DIM>;
using OutPanel = Panel<BM, VALUE_DIM>;
using PPanel = Panel<BM, SPLIT == 2 ? BN : 32>;
constexpr int Q_BYTES = BM * (DIM > VALUE_DIM ? DIM : VALUE_DIM) * ELEMENT_BYTES, STAGE_BYTES = KPanel::BYTES + VPanel::BYTES;
constexpr int P_AT = Q_BYTES + STAGES * STAGE_BYTES, NOTES_AT = P_AT + BM * BN * ELEMENT_BYTES;  // of warps that share rows

// The state of a warp's rows. Register [m][n][2 h + e] of a product belongs to row m * 16 + g + 8 h, column n * 8 + 2 t + e.
struct State {
  float out[MT][OT][4];
  Softmax<float> softmax[MT][2];
};

FA_FN float quad_max(float x) {
  x = max(x, __shfl_xor_sync(ALL_LANES, x, 1));
  return max(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
FA_FN float quad_sum(float x) {
  x += __shfl_xor_sync(ALL_LANES, x, 1);
  return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Two warps that share rows, which have a barrier of their own.
FA_FN int pair_barrier() { return warp_of() / 2 + 1; }
FA_FN void sync_pair() { sync_some<64>(pair_barrier()); }
FA_FN bool any_of_rows(bool yes) {
  if constexpr (SPLIT == 1)
    return __any_sync(ALL_LANES, yes);
  else
    return any_of_some<64>(pair_barrier(), yes);
}
// Of each row, this warp's number and the other's, joined; the lanes of a quad hold the same. base: of shared memory
template <class Join>
FA_FN void join_rows(float (&x)[MT][2], unsigned base, Join join) {
  if constexpr (SPLIT == 2) {
    const auto note = [&](int warp, int m, int h) {
      return base + static_cast<unsigned>(NOTES_AT + (warp * ROWS + m * 16 + h * 8 + lane_of() / 4) * 4);
    };
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (lane_of() % 4 == 0) store_4(note(warp_of(), m, h), __float_as_uint(x[m][h]));
    sync_pair();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) x[m][h] = join(x[m][h], load_float(note(warp_of() ^ 1, m, h)));
  }
}

// weigh: scores become probabilities relative to the running maximum. base: shared memory's
FA_FN void weigh(float (&s)[MT][NT][4], State& state, float unit, unsigned base) {
  float top[MT][2];
  bool moved = false;
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float t = s[m][0][2 * h];
#pragma unroll
      for (int n = 0; n < NT; n++) t = max(max(t, s[m][n][2 * h]), s[m][n][2 * h + 1]);
      top[m][h] = t * unit;
      moved = moved || top[m][h] > state.softmax[m][h].max + LAZY;
    }
  if (any_of_rows(moved)) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) top[m][h] = quad_max(top[m][h]);
    join_rows(top, base, [](float x, float y) { return max(x, y); });
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const Softmax<float> before = state.softmax[m][h];
        state.softmax[m][h] = advance(before, top[m][h]);
        const float factor = rescale(before.max, state.softmax[m][h].max);
#pragma unroll
        for (int o = 0; o < OT; o++) state.out[m][o][2 * h] *= factor, state.out[m][o][2 * h + 1] *= factor;
      }
  }
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& x = s[m][n][2 * h + e];
          x = probability(x, unit, state.softmax[m][h].max);
          state.softmax[m][h].sum += x;
        }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, FA_BLOCKS)
    forward(const __grid_constant__ Params p, const __grid_constant__ Arrays a) {
  extern __shared__ __align__(128) unsigned char shared[];
  const unsigned base = shared_address(shared);

  // where: the longest rows of a causal mask first
  const Sequence sequence = sequence_of(p, a, static_cast<int>(blockIdx.z));
  const Mask mask = mask_of(sequence);
  const int head = static_cast<int>(blockIdx.y), kv_head = kv_head_of(head, p.group);
  const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * BM;
  if (row0 >= mask.rows) return;
  const int rows = min(mask.rows - row0, BM);
  const int warp_row = warp_of() / SPLIT * ROWS, part = warp_of() % SPLIT, warp_key = part * KEYS, first_tile = part * OT;
  const int lane_row = warp_row + lane_of() / 4, lane_column = lane_of() % 4 * 2;
  const Elements elements(p, a, sequence, head);

  // range: blocks of keys that a row sees, and keys that all of this warp's rows see. (A warp that skips blocks none of its rows see
  // costs 10 % at head dim 256: the branch parts loads from products.)
  const Interval<int> any = any_visible(mask, row0, row0 + rows - 1);
  const int warp_first = row0 + min(warp_row, rows - 1), warp_last = row0 + min(warp_row + ROWS, rows) - 1;
  const Interval<int> all = all_visible(mask, warp_first, warp_last);
  const int first_block = max(any.first, 0) / BN, end_block = any.end > any.first ? divide_up(any.end, BN) : first_block;

  const auto k_panel = [&](int stage) { return KPanel{base + Q_BYTES + static_cast<unsigned>(stage * STAGE_BYTES)}; };
  const auto v_panel = [&](int stage) { return VPanel{base + Q_BYTES + static_cast<unsigned>(stage * STAGE_BYTES + KPanel::BYTES)}; };
  const int k_width = copy_width(a.k, p.k), v_width = copy_width(a.v, p.v);
  // keys that nobody sees are not read: an unused part of a cache may hold anything, and 0 times NaN is NaN
  const auto keys_in = [&](int block) { return Interval<int>{any.first - block * BN, any.end - block * BN}; };
  const auto fill_keys = [&](int block, int stage) {
    fill<THREADS>(k_panel(stage), keys_in(block), p.dim, k_width, keys_from(p, sequence, a.k, p.k, block * BN, kv_head));
  };
  const auto fill_values = [&](int block, int stage) {
    fill<THREADS>(v_panel(stage), keys_in(block), p.value_dim, v_width, keys_from(p, sequence, a.v, p.v, block * BN, kv_head));
  };

  const QPanel q_panel{base};
  const PPanel p_panel{base + P_AT};
  const Tiles<PPanel> p_rows = Tiles<PPanel>::straight(p_panel, warp_row);
  if (end_block > first_block) {
    fill<THREADS>(q_panel, Interval<int>{0, rows}, p.dim, copy_width(a.q, p.q), rows_from(sequence, a.q, p.q, row0, head));
    fill_keys(end_block - 1, 0);
    commit();
    fill_values(end_block - 1, 0);
  }
  commit();

  State state;
  zero(state.out);
#pragma unroll
  for (int m = 0; m < MT; m++) state.softmax[m][0] = state.softmax[m][1] = Softmax<float>{no_maximum(), 0};
  const float unit = elements.unit();
  const Tiles<QPanel> q = Tiles<QPanel>::straight(q_panel, warp_row);
  int stage = 0;
#pragma unroll 1
  for (int block = end_block - 1; block >= first_block; block--) {
    const bool begins = block == end_block - 1;
    if (begins)
      wait<1>();  // the first V may come during the first products
    else
      wait<0>();
    __syncthreads();  // what is needed is there, and everybody has left the block before, whose memory is free
    if constexpr (STAGES == 1) {
      if (!begins) fill_values(block, 0);
    } else if (block > first_block) {
      fill_keys(block - 1, stage ^ 1);
      fill_values(block - 1, stage ^ 1);
    }
    commit();

    const int key0 = block * BN;
    float s[MT][NT][4];
    products<KT>(s, q, Tiles<KPanel>::crossed(k_panel(stage), warp_key));
    if constexpr (STAGES == 1) {
      wait<0>();
      __syncthreads();
      if (block > first_block) fill_keys(block - 1, 0);
      commit();
    } else if (begins) {
      wait<1>();
      __syncthreads();
    }
    const int lane_key = key0 + warp_key + lane_column;
    score_rows(s, elements, row0 + lane_row, lane_key, key0 < all.first || key0 + BN > all.end);
    weigh(s, state, unit, base);
    if constexpr (DROPS)
      decide_rows<MT, NT>(elements, row0 + lane_row, lane_key,
                          [&](int m, int n, int i, bool kept) { s[m][n][i] = kept ? s[m][n][i] : 0.f; });
    const Tiles<VPanel> v = Tiles<VPanel>::straight(v_panel(stage), warp_key);
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
      Operand weights[MT];
#pragma unroll
      for (int m = 0; m < MT; m++) {
        operand(weights[m], s[m][2 * step], s[m][2 * step + 1]);
        if constexpr (SPLIT == 2) store_operand(p_panel, lane_row + m * 16, part * NT + 2 * step, weights[m]);
      }
      accumulate(state.out, weights, v, step * 16, first_tile);
    }
    if constexpr (SPLIT == 2) {
      sync_pair();
      const int other_key = KEYS - warp_key;
      const Tiles<VPanel> other_v = Tiles<VPanel>::straight(v_panel(stage), other_key);
#pragma unroll
      for (int step = 0; step < KEYS / 16; step++) {
        Operand weights[MT];
#pragma unroll
        for (int m = 0; m < MT; m++) load_operand(weights[m], p_rows, m * 16, other_key / 8 + 2 * step);
        accumulate(state.out, weights, other_v, step * 16, first_tile);
      }
    }
    if constexpr (STAGES == 2) stage ^= 1;
  }

  // finish
  float sums[MT][2], factor[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) sums[m][h] = quad_sum(state.softmax[m][h].sum);
  join_rows(sums, base, [](float x, float y) { return x + y; });
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      Softmax<float> sum{state.softmax[m][h].max, sums[m][h]};
      if constexpr ((F & SINK) != 0) {
        const float before = sum.max;
        sum = add_sink(sum, sink_of(a, head));
        factor[m][h] = rescale(before, sum.max) * inverse_sum(sum) * elements.keep_scale;
      } else {
        factor[m][h] = inverse_sum(sum) * elements.keep_scale;
      }
      const int r = lane_row + m * 16 + h * 8;
      if (lane_column == 0 && part == 0 && r < rows) static_cast<float*>(a.lse)[lse_offset(p, sequence, row0 + r, head)] = log_sum_exp(sum);
    }
  if constexpr (FA_OUT == 3 && FA_DTYPE != 3) {
    float* const out_rows = static_cast<float*>(a.out);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = lane_row + m * 16 + h * 8;
        if (r >= rows) continue;
        float* const out = out_rows + row_offset(p.out, sequence, row0 + r, head);
#pragma unroll
        for (int o = 0; o < OT; o++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int column = (first_tile + o) * 8 + lane_column + e;
            if (column < p.value_dim) out[column] = state.out[m][o][2 * h + e] * factor[m][h];
          }
      }
  } else {
    __syncthreads();  // Q's memory becomes the output's: whole rows leave in wide stores
    const OutPanel out_panel{base};
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int o = 0; o < OT; o++)
          store_pair(out_panel, lane_row + m * 16 + h * 8, first_tile + o, state.out[m][o][2 * h] * factor[m][h],
                     state.out[m][o][2 * h + 1] * factor[m][h]);
    __syncthreads();
    drain<THREADS>(out_panel, rows, p.value_dim, copy_width(a.out, p.out), rows_from(sequence, a.out, p.out, row0, head));
  }
}
}  // namespace fa::cuda
