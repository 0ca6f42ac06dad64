// Tile sizes of the CPU kernels and the functions of a call's shape that its planner, its task list and its kernels must agree on.
// Measured on Zen 3 and Zen 5 (docs/performance.md); each line says why the next bigger size does not pay.
#pragma once
#include "semantics/params.h"

namespace fa::cpu {

// Scores: how many products are summed one after the other before such sums are added. A chain of 128 has twice the error, and three times
// that of a library which adds the lanes of dot products; chains of 32 cost forward 0.5 % (AVX2) to 2 % (AVX-512).
constexpr int SCORE_CHAIN = 32;
// Forward: keys of a tile. 48: 1-10 % slower (fewer keys share a pass over O); 192: equal.
constexpr int FORWARD_KEYS = 96;
// Forward: elements of Q (rows * dim) of a task, and panels of rows at most. Half: 1-10 % slower; more: Q and O leave the L2 cache.
constexpr int FORWARD_ELEMENTS = 32768;
constexpr int FORWARD_PANELS = 16;
// Forward: so that every worker finds this many tasks, they are cut smaller, but not below this many rows.
constexpr int FORWARD_ROWS_MIN = 64;
constexpr int FORWARD_TASKS_PER_WORKER = 4;
// Forward: bytes of packed K and V that a worker keeps. Longer heads are packed again for each task (8 % slower with strided rows).
constexpr Int64 FORWARD_PACKED_BYTES = 16 << 20;

// Backward: keys of a tile, elements of Q of a row block, panels of a row block. More: P, dS, Q, dO and dQ leave the L2 cache.
constexpr int BACKWARD_KEYS = 48;
constexpr int BACKWARD_ELEMENTS = 8192;
constexpr int BACKWARD_PANELS = 8;
// Backward: keys whose K, V, dK and dV a worker holds at once (at most 16 bytes an element), whole tiles. A task with more goes over its
// rows again.
constexpr int BACKWARD_SPAN = 4032;
// Backward: tasks wanted when heads are few, and the shortest chunk of keys worth a pass over all rows.
constexpr int BACKWARD_TASKS = 16;
constexpr int BACKWARD_CHUNK_MIN = 512;

// Gradient of attn_bias: keys of a task. Its K, V and the tile of sums stay in the L2 cache.
constexpr int BIAS_KEYS = 384;

// Decode: keys of a tile, and rows whose products are made together. 32 keys: equal with 16 bits, 13 - 15 % slower with float32
// (tiles of all heads leave the L2 cache); more than 6 rows do not fit the registers.
constexpr int DECODE_KEYS = 16;
constexpr int DECODE_BLOCK = 6;
// Decode: rows of a kv head (position * group). Forward takes the same time for 16 rows as for one (32, 64 with wider vectors); with AVX2
// it needs 1.1 - 1.7 times as long as decode at 24 rows, 0.75 - 1.25 at 32. It cannot cut keys, so where there are few heads to share out
// decode takes more of a cache. Without one it takes a single position only (kernels.cpp): a backward pass repeats the scores of forward
// with the same rounding, not those of decode.
constexpr int DECODE_ROWS = 24;
constexpr int DECODE_ROWS_ALONE = 128;
constexpr int DECODE_HEADS_ALONE = 2;
// Decode: tasks wanted; keys of a task at least, and at least so many products (100 us of one core), so that loading Q and merging cost
// little (256 keys of 8 heads of 128 and a group of 4: 5 %); at most, for balance.
constexpr int DECODE_TASKS = 32;
constexpr int DECODE_SPLIT_MIN = 64;
constexpr Int64 DECODE_SPLIT_WORK = 1 << 21;
constexpr int DECODE_SPLIT_MAX = 4096;

FA_FN int round_up(int n, int step) { return (n + step - 1) / step * step; }
FA_FN int divide_up(int n, int by) { return (n + by - 1) / by; }

// A decode task takes all kv heads of its keys where a token's heads lie side by side: memory is then read in order (twice as fast).
FA_FN bool decode_all_heads(Strides k, Strides v) { return k.head < k.row && v.head < v.row; }
// Rows of a kv head and pairs of a sequence and a kv head for which decode is the better kernel.
FA_FN bool decode_suits(Int64 rows, Int64 pairs, bool cached) {
  return rows <= DECODE_ROWS || (cached && rows <= DECODE_ROWS_ALONE && pairs <= DECODE_HEADS_ALONE);
}
// Keys of a decode task: a function of shapes and the caller's num_splits (0: none), because it decides the order of sums.
template <class Real>
FA_FN int decode_split(const ParamsT<Real>& p, int splits) {
  if (splits > 0) return round_up(max(1, divide_up(p.mask.keys, splits)), DECODE_KEYS);
  const Int64 heads = decode_all_heads(p.k, p.v) ? p.kv_heads : 1, tasks = static_cast<Int64>(p.batch) * p.kv_heads / heads;
  Int64 span = p.mask.keys;  // that the rows see: other tasks are empty
  if (p.mask.left < no_limit() && p.mask.right < no_limit()) {
    const Int64 window = static_cast<Int64>(p.mask.left) + p.mask.right + p.mask.rows;
    span = window < span ? window : span;
  }
  const Int64 work = heads * (p.mask.rows * p.group + 2) * (p.dim + p.value_dim);  // of a key; reading it counts as 2 rows
  Int64 split = span * tasks / DECODE_TASKS;
  if (split * work < DECODE_SPLIT_WORK) split = DECODE_SPLIT_WORK / (work > 0 ? work : 1);
  if (split < DECODE_SPLIT_MIN) split = DECODE_SPLIT_MIN;
  if (split > DECODE_SPLIT_MAX) split = DECODE_SPLIT_MAX;
  return round_up(static_cast<int>(split), DECODE_KEYS);
}
// Keys of a chunk of the backward pass, from the longest sequence's keys and the number of (sequence, kv head) pairs: a function of
// shapes only, because it decides the order in which dQ is summed. Part i of a sequence is keys [i * chunk, min((i + 1) * chunk, keys)).
FA_FN int backward_chunk(int keys, Int64 pairs) {
  const int wanted = pairs >= BACKWARD_TASKS ? 1 : divide_up(BACKWARD_TASKS, max(static_cast<int>(pairs), 1));
  const int parts = max(1, min(wanted, keys / BACKWARD_CHUNK_MIN));
  return round_up(max(1, divide_up(keys, parts)), BACKWARD_KEYS);
}
// Parts of a sequence (at least one task must exist for each: it also zeroes dQ of rows that see nothing).
FA_FN int backward_parts(int keys, int chunk) { return max(1, divide_up(keys, chunk)); }
// True when the kernel writes dQ itself; otherwise it writes float32 partials (Role::part_out), which a later launch adds up in order.
// One task a head can add to a float32 dQ in place; 16-bit gradients must not be rounded between two spans of keys.
FA_FN bool backward_direct(int keys, Int64 pairs, bool is_float) {
  const int chunk = backward_chunk(keys, pairs);
  return backward_parts(keys, chunk) == 1 && (is_float || chunk <= BACKWARD_SPAN);
}
// Where a partial lies: dq_parts[packed row][part][head][dim], `parts` being those of the longest sequence. A sequence with fewer keys
// has backward_parts(its keys, chunk) of them; the rest is not written and must not be read.
FA_FN Int64 partial_offset(Int64 packed_row, int part, int parts, int head, int heads, int dim) {
  return ((packed_row * parts + part) * heads + head) * dim;
}
}  // namespace fa::cpu
