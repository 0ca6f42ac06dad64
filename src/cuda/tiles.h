// Tile sizes of the CUDA kernels: rows of tables, the first whose blocks fit a head dim and the device's shared memory wins. Each says what
// was measured and why the next bigger tile fails.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fa::cuda {
constexpr int WARP = 32;           // threads
constexpr int GRID_LIMIT = 65535;  // blocks along y and z
constexpr int PLAIN_WARPS = 4;     // rows a block of the plain kernels
constexpr int SMALL_WARPS = 4;     // warps a block of delta, merge, append, ...
constexpr int SMALL_ROWS = 4;      // rows a warp of delta
constexpr int CLEAR_BLOCKS = 64;   // for the slots of a sequence that nobody owns, which are few
constexpr int PANEL = 32;          // head dims are padded to it: the narrowest swizzled row of shared memory

constexpr int divide_up(int64_t n, int by) { return static_cast<int>((n + by - 1) / by); }
constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

// bm x bn: rows x keys; `split` warps share their rows (backward: keys); blocks: that a multiprocessor holds together. Only for calls of at
// most max_keys keys, where not 0.
struct Tile {
  int max_dim, bm, bn, warps, split, stages, blocks, max_keys = 0;
};
// K and V in stages beside Q, through whose memory out leaves; P, and two floats a row, where warps share rows.
constexpr int forward_bytes(const Tile& t, int dim, int value_dim, int element) {
  const int shared_rows = t.split == 2 ? t.bm * (element * t.bn + 8) : 0;
  return element * (t.bm * std::max(dim, value_dim) + t.stages * t.bn * (dim + value_dim)) + shared_rows;
}
// Measured on an H100 and an H200 (docs/performance.md). Two tiles of 16 rows a warp share each load of K and V, which bounds the kernel;
// out and S then fill the registers. Beyond 128 two warps share rows and columns.
constexpr Tile FORWARD[] = {
    {64, 128, 128, 4, 1, 2, 2},  // bn 64: -10 %
    {64, 128, 64, 4, 1, 2, 2},   // with less memory
    {128, 128, 64, 4, 1, 2, 2},  // 8 warps, bn 128: -18 %; bn 32: -7 %
    {128, 128, 64, 4, 1, 1, 2},  // with less memory
    {128, 128, 32, 4, 1, 1, 2},  // with the least
    {256, 64, 64, 4, 2, 1, 2},   // one block of 128 rows: -6 to -12 %
    {256, 128, 64, 8, 2, 1, 1},  // with less memory
    {256, 64, 64, 4, 1, 1, 1},   // with the least
    {512, 64, 32, 8, 2, 2, 1},   // bn 64 does not fit
    {512, 64, 32, 8, 2, 1, 1},   // with less memory
    {512, 32, 32, 4, 2, 1, 1},   // with the least
};
// float32 by multiply-adds: rows of 16 a warp are loaded for twice as many products.
constexpr Tile FORWARD_F32[] = {
    {64, 128, 64, 4, 1, 2, 2}, {128, 128, 32, 4, 1, 2, 1}, {128, 64, 32, 4, 1, 2, 1}, {256, 64, 16, 4, 1, 2, 1}, {256, 64, 16, 4, 1, 1, 1}};
// K and V, dS and P, and the ring of Q, dO, lse, delta (and what float32 loses of an lse).
constexpr int backward_bytes(const Tile& t, int dim, int value_dim, int element) {
  const int row = element * (dim + value_dim) + (element == 4 ? 12 : 8);
  return element * t.bn * (dim + value_dim + 2 * t.bm) + t.stages * t.bm * row;
}
// Small blocks fill a GPU better where there are few keys: causal +10 % at 512, -2 to -5 % from 2048 on.
constexpr Tile BACKWARD[] = {
    {64, 64, 64, 4, 2, 2, 3, 1024},  // few keys
    {64, 64, 64, 4, 2, 2, 2, 1024},  // with less memory
    {64, 128, 128, 8, 2, 2, 1},      // bm 64, bn 64: -4 %
    {64, 64, 128, 8, 2, 2, 1},       // with less memory
    {128, 64, 64, 4, 2, 2, 2, 512},  // few keys
    {128, 64, 128, 8, 2, 2, 1},      // bn 64: -4 %
    {128, 64, 64, 8, 2, 2, 1},       // with less memory
    {256, 64, 64, 8, 2, 2, 1},       // dq in passes of 64 columns: -3 %
    {256, 64, 64, 8, 2, 1, 1},       // with less memory
    {256, 32, 32, 4, 2, 1, 1},       // with the least
};
constexpr Tile BACKWARD_F32[] = {
    {64, 32, 64, 4, 2, 2, 2},
    {128, 32, 64, 4, 2, 2, 1},
    {128, 32, 64, 4, 2, 1, 1},
    {128, 32, 32, 4, 2, 1, 1},  // beyond 128 registers spill
};
// dq by rows: Q and dO, and a ring of two stages of K and V. A warp has 16 rows.
constexpr int backward_rows_bytes(const Tile& t, int dim, int value_dim, int element) {
  return element * (t.bm + t.stages * t.bn) * (dim + value_dim);
}
constexpr Tile BACKWARD_ROWS[] = {{128, 64, 64, 4, 1, 2, 2}, {256, 64, 32, 4, 1, 2, 1}, {256, 32, 32, 2, 1, 2, 1}};
constexpr Tile BACKWARD_ROWS_F32[] = {{64, 64, 64, 4, 1, 2, 1}, {128, 64, 32, 4, 1, 2, 1}, {128, 32, 32, 2, 1, 2, 1}};
constexpr int row_sums_bytes(const Tile& t, int dim, int, int element) { return element * t.bm * dim; }
// Room for the sums of dq, which lie in tiles of bm rows of every sequence: see kernels/words/row_sums.cuh.
constexpr int64_t tiles_of_sums(const Tile& t, bool packed, int batch, int64_t max_rows, int64_t total_rows) {
  return packed ? total_rows / t.bm + batch : batch * int64_t{divide_up(max_rows, t.bm)};
}
// Null where none fits. A multiprocessor has BLOCK_RESERVES more than a block may have, and takes as much for each of its blocks.
constexpr int BLOCK_RESERVES = 1024;
template <int N>
constexpr const Tile* choose(const Tile (&tiles)[N], int (*bytes)(const Tile&, int, int, int), int dim, int value_dim, int element,
                             int64_t keys, int shared_bytes) {
  for (const Tile& t : tiles) {
    if (t.max_keys != 0 && keys > t.max_keys) continue;
    const int taken = t.blocks * (bytes(t, dim, value_dim, element) + BLOCK_RESERVES);
    if (std::max(dim, value_dim) <= t.max_dim && taken <= shared_bytes + BLOCK_RESERVES) return &t;
  }
  return nullptr;
}

// Decode: rows (position * group) of a key/value head that one block holds; keys of a tile; warps. More rows than DECODE_ROWS are
// forward's.
constexpr int DECODE_BM = 16;
constexpr int DECODE_BN = 16;
constexpr int DECODE_WARPS = 4;
constexpr int DECODE_ROWS = 64;
constexpr int DECODE_SPLIT_MIN = 256;   // keys of a split: fewer cost more in merging than the multiprocessors gain
constexpr int DECODE_BLOCKS = 2;        // a multiprocessor, wanted: one reads while the other begins or ends
constexpr int DECODE_BLOCKS_PLAIN = 8;  // of the plain kernel, which has nothing under way but what its warps wait for
constexpr int DECODE_STAGES_MAX = 6;
// split: warps that share the columns of V, 128 each at most (64 registers); dims are padded so that they divide.
struct DecodeTile {
  int split, dim, value_dim, stages;
  constexpr int teams() const { return DECODE_WARPS / split; }
  // Q and the rings; in the end their memory holds what the teams found
  constexpr int bytes() const {
    const int ring = 2 * DECODE_BM * dim + teams() * stages * 2 * DECODE_BN * (dim + value_dim);
    return std::max(ring, teams() * DECODE_BM * 4 * (3 + value_dim));
  }
};
// The most stages with which DECODE_BLOCKS fit a multiprocessor (whose memory is little more than what one block may have), or one does;
// at least two.
constexpr DecodeTile decode_tile(int dim, int value_dim, int shared_bytes) {
  const int split = value_dim <= 128 ? 1 : value_dim <= 256 ? 2 : 4;
  DecodeTile t{split, round_up(dim, PANEL), round_up(value_dim, split == 4 ? 2 * PANEL : PANEL), DECODE_STAGES_MAX};
  for (int blocks = DECODE_BLOCKS; blocks > 0; blocks--)
    for (t.stages = DECODE_STAGES_MAX; t.stages >= 2; t.stages--)
      if (blocks * (t.bytes() + BLOCK_RESERVES) <= shared_bytes + BLOCK_RESERVES) return t;
  t.stages = 2;
  return t;
}
// Splits of the longest sequence: enough to give the multiprocessors `wanted` blocks; `hint`: the caller's (0: none).
constexpr int decode_parts(int keys, int64_t blocks, int64_t wanted, int hint) {
  const int64_t parts = hint > 0 ? hint : wanted / std::max<int64_t>(blocks, 1);
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(parts, divide_up(keys, hint > 0 ? 1 : DECODE_SPLIT_MIN))));
}
}  // namespace fa::cuda
