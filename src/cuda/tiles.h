// Tile sizes of the CUDA kernels: rows of tables, the first that fits a head dim and the device's shared memory wins. Each says what was
// measured and why the next bigger tile fails.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fa::cuda {
constexpr int WARP = 32;           // threads
constexpr int GRID_LIMIT = 65535;  // blocks along y and z
constexpr int PLAIN_WARPS = 4;     // rows a block of the plain kernels
constexpr int SMALL_WARPS = 4;     // warps a block of delta, merge, append, ...
constexpr int SMALL_ROWS = 4;      // rows a warp of delta and convert
constexpr int CLEAR_BLOCKS = 64;   // for the slots of a sequence that nobody owns, which are few
constexpr int PANEL = 32;          // head dims are padded to it: the narrowest swizzled row of shared memory

constexpr int divide_up(int64_t n, int by) { return static_cast<int>((n + by - 1) / by); }
constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

// bm x bn: rows x keys; a warp has bm * split / warps rows (backward: 16 keys) and 1 / split of the columns; blocks: of a multiprocessor.
struct Tile {
  int max_dim, bm, bn, warps, split, stages, blocks;
};
// Two stages of K and V beside Q; out leaves through Q's memory.
constexpr int forward_bytes(const Tile& t, int dim, int value_dim) {
  return 2 * (t.bm * std::max(dim, value_dim) + t.stages * t.bn * (dim + value_dim));
}
constexpr Tile FORWARD[] = {
    {64, 128, 64, 4, 1, 2, 2}, {128, 128, 64, 4, 1, 2, 1}, {256, 64, 64, 4, 1, 2, 1}, {256, 64, 32, 4, 1, 2, 1},  // 99 KB of shared memory
    {512, 32, 32, 4, 2, 2, 1}, {512, 32, 16, 4, 2, 2, 1},                                                         // 99 KB
};
// K and V, dS (and P where warps share keys), and the ring of Q, dO, lse and delta.
constexpr int backward_bytes(const Tile& t, int dim, int value_dim) {
  const int score = 2 * t.bn * t.bm * (t.split > 1 ? 2 : 1);
  return 2 * t.bn * (dim + value_dim) + score + t.stages * (2 * t.bm * (dim + value_dim) + 8 * t.bm);
}
constexpr Tile BACKWARD[] = {
    {64, 64, 128, 8, 1, 2, 1}, {128, 64, 64, 8, 2, 2, 1}, {128, 64, 64, 8, 2, 1, 1},  // 99 KB
    {256, 32, 64, 8, 2, 2, 1}, {256, 32, 32, 4, 2, 1, 1},                             // 99 KB
};
// null where none fits
template <int N>
constexpr const Tile* choose(const Tile (&tiles)[N], int (*bytes)(const Tile&, int, int), int dim, int value_dim, int shared_bytes) {
  for (const Tile& t : tiles)
    if (std::max(dim, value_dim) <= t.max_dim && bytes(t, dim, value_dim) <= shared_bytes) return &t;
  return nullptr;
}

// Decode: rows (position * group) of a key/value head that one block holds, keys of a step; more rows than this are forward's.
constexpr int DECODE_BM = 16;
constexpr int DECODE_BN = 64;
constexpr int DECODE_WARPS = 4;
constexpr int DECODE_ROWS = 64;
constexpr int DECODE_SPLIT_MIN = 256;  // keys of a split: fewer cost more in merging than the multiprocessors gain
constexpr int DECODE_BLOCKS = 2;       // a multiprocessor, wanted
// Keys of a split: enough splits to give every multiprocessor its blocks. A function of shapes and the caller's hint (0: none).
constexpr int decode_split(int keys, int64_t blocks, int cores, int hint) {
  const int64_t wanted = hint > 0 ? hint : std::max<int64_t>(1, int64_t{cores} * DECODE_BLOCKS / std::max<int64_t>(blocks, 1));
  const int split = divide_up(keys, static_cast<int>(std::min<int64_t>(wanted, std::max(keys, 1))));
  return round_up(std::max({split, hint > 0 ? 1 : DECODE_SPLIT_MIN, 1}), DECODE_BN);
}
}  // namespace fa::cuda
