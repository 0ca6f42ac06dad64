// Tile sizes of the CPU kernels and the functions of a call's shape that its planner, its task list and its kernels must agree on.
// Measured on Zen 3 and Zen 5 (docs/performance.md); each line says why the next bigger size does not pay.
#pragma once
#include "semantics/params.h"

namespace fa::cpu {

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
// Backward: keys whose K, V, dK and dV a worker holds at once (16 bytes an element), whole tiles. A task with more goes over its rows
// again.
constexpr int BACKWARD_SPAN = 4032;
// Backward: tasks wanted when heads are few, and the shortest chunk of keys worth a pass over all rows.
constexpr int BACKWARD_TASKS = 16;
constexpr int BACKWARD_CHUNK_MIN = 512;

// Gradient of attn_bias: keys of a task. Its K, V and the tile of sums stay in the L2 cache.
constexpr int BIAS_KEYS = 384;

// Decode: keys of a tile, and rows whose products are made together.
constexpr int DECODE_KEYS = 16;
constexpr int DECODE_BLOCK = 6;
// Decode: taken for at most this many rows of a kv head (position * group): forward fills its lanes with rows, and packs its keys first.
constexpr int DECODE_ROWS = 16;
// Decode: tasks wanted, and keys of a task: the shortest worth a partial result, and the longest, for balance.
constexpr int DECODE_TASKS = 32;
constexpr int DECODE_SPLIT_MIN = 256;
constexpr int DECODE_SPLIT_MAX = 4096;

FA_FN int round_up(int n, int step) { return (n + step - 1) / step * step; }
FA_FN int divide_up(int n, int by) { return (n + by - 1) / by; }

// A decode task takes all kv heads of its keys where a token's heads lie side by side: memory is then read in order (twice as fast).
FA_FN bool decode_all_heads(Strides k, Strides v) { return k.head < k.row && v.head < v.row; }
// Keys of a task, from the longest sequence's keys and the number of tasks if each had all keys: a function of shapes only.
FA_FN int decode_split(int keys, Int64 tasks) {
  const Int64 wanted = keys * tasks / DECODE_TASKS;
  const int split = static_cast<int>(wanted < DECODE_SPLIT_MIN ? DECODE_SPLIT_MIN : wanted > DECODE_SPLIT_MAX ? DECODE_SPLIT_MAX : wanted);
  return round_up(split, DECODE_KEYS);
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
