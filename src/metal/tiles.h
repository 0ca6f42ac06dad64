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

// Tiles of 8 rows that a simdgroup holds, of 8 keys that stream by, and where Q lies. Registers a lane: held_tiles * (columns / 4 + 2 *
// stream_tiles) for Out and
// scores, dim * bytes / 32 for Q in registers.
struct ForwardTile {
  int bytes, dim;  // of an element; of the larger head dimension, at most
  int held_tiles, stream_tiles;
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

// Rows of a simdgroup where tensor operations make the products, as the operation wants them, and the head dim that leaves Q and Out in
// registers: 144 a lane, of those that the GPUs with such operations share out as needed.
constexpr int TENSOR_ROWS = 16;
constexpr int TENSOR_DIM = 128;

// The same for dQ (rows held, keys stream) and for dK and dV (keys held, rows stream). keep: what streams stays in registers for the second
// product. together: dK and dV in one launch.
struct BackwardTile {
  int bytes, dim;
  int held_tiles, stream_tiles;
  bool in_registers, keep, together;
};
constexpr BackwardTile DQ_TILES[] = {
    {2, 64, 2, 1, true, true, true},     // 112 registers
    {2, 128, 1, 1, true, true, true},    // 112
    {2, 512, 1, 2, false, false, true},  // 128 at 256 columns
    {4, 64, 1, 1, true, true, true},     // 88
    {4, 512, 1, 2, false, false, true},  // 88 at 128 columns
};
constexpr BackwardTile DKV_TILES[] = {
    {2, 96, 1, 1, true, true, true},      // 88 registers at 64, 120 at 96
    {2, 128, 1, 1, false, true, true},    // 128
    {2, 512, 1, 2, false, false, false},  // 120 at 256 columns
    {4, 64, 1, 1, true, true, true},      // 120
    {4, 128, 1, 2, false, false, true},   // 120
    {4, 512, 1, 2, false, false, false},
};

// Gradient of a bias: keys of a simdgroup, as many as a word of dropout's decisions, and where Q and dout lie.
constexpr int BIAS_KEYS = 32;
struct BiasTile {
  int bytes, dim;
  bool in_registers;
};
constexpr BiasTile BIAS_TILES[] = {
    {2, 128, true},  // 88 registers
    {2, 512, false},
    {4, 64, true},  // 88
    {4, 512, false},
};

// The same for decode: rows are query positions of all heads of a key/value head; up to 8 of them make one tile.
struct DecodeTile {
  int bytes, dim;
  int held_tiles, stream_tiles;
  bool in_registers;
};
constexpr DecodeTile DECODE_TILES[] = {
    {2, 64, 2, 4, true},    // 112 registers
    {2, 128, 1, 4, true},   // 112
    {2, 512, 1, 4, false},  // 120 at 256 columns
    {4, 64, 1, 4, true},    // 112
    {4, 512, 1, 4, false},
};
// Query rows (position * group) of a key/value head for which decode is the better kernel: more would read K and V as often as forward.
constexpr int DECODE_ROWS = 32;
// Threadgroups wanted, keys of a split at least (loading Q and joining cost little then) and at most.
constexpr int DECODE_GROUPS = 128;
constexpr int DECODE_SPLIT_MIN = 256;
constexpr int DECODE_SPLIT_MAX = 4096;

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
// Threadgroup memory of a simdgroup's results on their way to another.
constexpr int joined_bytes(int tiles, int columns) { return tiles * (columns / FRAGMENT + 2) * SIMD * 8; }
// Keys of a split, a multiple of `step`: a function of shapes and the caller's num_splits (0: none), because it decides the order of sums.
constexpr int decode_split(int64_t keys, int64_t groups, int step, int splits) {
  if (splits > 0) return round_up(std::max(1, divide_up(keys, splits)), step);
  const int64_t split = keys * std::max<int64_t>(groups, 1) / DECODE_GROUPS;
  return round_up(static_cast<int>(std::clamp<int64_t>(split, DECODE_SPLIT_MIN, DECODE_SPLIT_MAX)), step);
}
}  // namespace fa::metal
