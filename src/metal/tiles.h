// Tile sizes of the Metal kernels. No Apple GPU was at hand: they follow from registers a lane (about 128 of 32 bits keep enough
// simdgroups resident) and 32 KB of threadgroup memory, see docs/performance.md; each line says what the next bigger tile would need.
#pragma once
#include <algorithm>

namespace fa::metal {
constexpr int SIMD = 32;             // lanes of a simdgroup
constexpr int FRAGMENT = 8;          // rows and columns of a simdgroup matrix
constexpr int PLAIN_SIMDGROUPS = 4;  // rows a threadgroup of the plain kernels
constexpr int MOST_SIMDGROUPS = 4;   // of the others: they share nothing but what the cache keeps

// Threadgroup memory that a threadgroup takes at most: two of them fit a core. More would leave one.
constexpr int MEMORY_BYTES = 16384;
// Columns of a result that a simdgroup adds up at once: 64 registers a lane for 8 rows. More are cut into parts, for each of which the
// scores are made again.
constexpr int PART_COLUMNS = 256;
constexpr int PART_STEP = 32;  // of columns where a part may begin: whole 16-byte words of a fragment group

// 8-row tiles of rows, 8-key tiles of keys, and where Q lies. Registers a lane: row_tiles * (columns / 4 + 2 * key_tiles) for Out and
// scores, dim * bytes / 32 for Q in registers.
struct ForwardTile {
  int bytes, dim;  // of an element; of the larger head dimension, at most
  int row_tiles, key_tiles;
  bool in_registers;
};
constexpr ForwardTile FORWARD_TILES[] = {
    {2, 64, 2, 4, true},    // 112 registers; 8 key tiles: 144
    {2, 96, 2, 2, true},    // 120; 4 key tiles: 136
    {2, 128, 2, 2, false},  // 120; Q in registers: 184
    {2, 512, 1, 4, false},  // 120 at 256 columns
    {4, 64, 2, 4, false},   // 112; Q in registers: 176
    {4, 128, 2, 2, false},  // 120
    {4, 512, 1, 4, false},  // 120
};

constexpr int divide_up(int64_t n, int by) { return static_cast<int>((n + by - 1) / by); }
constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }
// Threadgroup memory of a simdgroup that holds `tiles` * 8 rows of `dim` elements.
constexpr int held_bytes(int tiles, int dim, int bytes) { return tiles * FRAGMENT * dim * bytes; }
// As many simdgroups a threadgroup as the memory has room for.
constexpr int simdgroups(int bytes_each, int most) {
  while (most > 1 && most * bytes_each > MEMORY_BYTES) most /= 2;
  return most;
}
constexpr int parts(int columns) { return divide_up(columns, PART_COLUMNS); }
constexpr int part_columns(int columns) { return parts(columns) == 1 ? columns : round_up(divide_up(columns, parts(columns)), PART_STEP); }
}  // namespace fa::metal
