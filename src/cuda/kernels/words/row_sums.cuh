// Sums of dq while several blocks add to them: float32 in the order in which lanes hold them, so that an addition of a warp touches whole
// cache lines. backward_sm80 adds, row_sums_sm80 clears them before and brings them into rows afterwards.
#pragma once
#include "products.cuh"
namespace fa::cuda {
constexpr int BM = FA_BM, DIM = FA_DIM, WARPS = FA_WARPS, THREADS = WARPS * 32;
// A warp's part of a tile of BM rows: two tiles of 16 rows share a load of K where the columns then divide into tiles.
constexpr int DQ_ROWS = DIM * BM % (16 * 32 * WARPS) == 0 ? 32 : 16, DQ_GROUPS = BM / DQ_ROWS;
constexpr int DQ_COLUMNS = DIM / (WARPS / DQ_GROUPS), DQ_TILES = DQ_ROWS / 16;
static_assert(BM * DIM % (4 * THREADS) == 0);
static_assert(WARPS % DQ_GROUPS == 0 && DQ_COLUMNS % 16 == 0);
constexpr bool WIDE_SUMS = __CUDA_ARCH__ >= 900;  // red of four floats

FA_FN int dq_row() { return warp_of() % DQ_GROUPS * DQ_ROWS; }
FA_FN int dq_column() { return warp_of() / DQ_GROUPS * DQ_COLUMNS; }

// The sums of a tile of rows that begins at row0 (a multiple of BM). Packed sequences have room for a tile that the next one shares.
FA_FN float* tile_of_sums(const Params& p, const Arrays& a, const Sequence& s, int row0, int head) {
  const Int64 first = PACKED_ROWS ? s.row_base / BM + s.index : static_cast<Int64>(s.index) * divide_up(p.mask.rows, BM);
  return static_cast<float*>(a.part_out) + ((first + row0 / BM) * p.heads + head) * (BM * DIM);
}
// this lane's first
FA_FN float* sums_of_lane(float* tile) { return tile + warp_of() * (DQ_ROWS * DQ_COLUMNS) + lane_of() * (WIDE_SUMS ? 4 : 1); }
// Of the 16 x 8 tile m, o of the warp's part: how far its four sums are from the first.
FA_FN int sum_at(int m, int o, int i) { return (m * (DQ_COLUMNS / 8) + o) * 128 + i * (WIDE_SUMS ? 1 : 32); }

FA_FN void add_sums(float* to, const float (&x)[4]) {
  if constexpr (WIDE_SUMS) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + i * 32), "f"(x[i]) : "memory");
  }
}
}  // namespace fa::cuda
