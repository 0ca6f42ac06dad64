// Attention of few query rows against many keys: a task writes the result of a range of keys, a merge launch joins them.
// Tile     16 keys x all rows of the task, in blocks of at most 6 rows. Rows of a kv head are position * group + member of the group.
// Who      one worker a task: keys [first, end) of one kv head, or of all of them (task.head = -1) where a token's heads lie side by
//          side, because memory is then read in order. The products are in decode_products.h.
// Memory   K and V are read in place, once; a tile that cannot be (last keys, two pages, padded dim) is copied first. Scratch: Q and O
//          of the rows, the scores of a tile.
// Speed    bound by memory while rows are few, by FMA from then on (docs/performance.md). A tile of V is prefetched while scores are
//          made, the next tile of K while V is summed, a few lines at a time: a tile prefetched at one go stops the loads behind it or is
//          dropped in part, so that the time of memory adds to that of arithmetic instead of hiding behind it (1.6 times as long).
// Per tile: the scores of all rows, their softmax against a reference that moves lazily (forward.h), then O += P V. The sink enters in
// part 0 alone.
#pragma once
#include "cpu/kernels/decode_products.h"
#include "cpu/kernels/panel.h"

namespace fa::cpu {
namespace {

// One row of the task.
struct DecodeRow {
  int position, head;  // of its query
  Interval<int> keys;  // that it sees among those of the task
  float reference;     // what exponents are relative to, in log2 units
  float *sum, *out;    // of probabilities, lane by lane; O
  int out_step;        // from half to half
};
// What a task holds while it runs.
template <class T>
struct DecodeScratch {
  DecodeRow* rows;
  DecodeBlock* blocks;
  float *q, *out, *scores, *sums, *dots, *bias;
  T *k, *v;                                        // copied tiles
  int blocks_of_head, q_rows, q_width, out_width;  // q_rows: of a block, in pairs
  size_t bytes;
};
template <class S, class T>
static DecodeScratch<T> decode_scratch(const Params& p, int kv_heads, int rows, void* base) {
  const Int64 all = static_cast<Int64>(kv_heads) * rows;
  DecodeScratch<T> r;
  r.blocks_of_head = divide_up(rows, DECODE_BLOCK);
  r.q_rows = round_up(divide_up(rows, max(r.blocks_of_head, 1)), 2);
  r.q_width = round_up(p.dim, 2 * S::W);
  r.out_width = round_up(p.value_dim, 2 * S::W);
  Scratch memory{static_cast<char*>(base)};
  r.rows = memory.take<DecodeRow>(all);
  r.blocks = memory.take<DecodeBlock>(kv_heads * r.blocks_of_head);
  r.q = memory.take<float>(static_cast<Int64>(kv_heads) * r.blocks_of_head * r.q_rows * r.q_width);
  r.out = memory.take<float>(all * r.out_width);
  r.scores = memory.take<float>(all * DECODE_KEYS);
  r.sums = memory.take<float>(all * S::W);
  r.dots = memory.take<float>(DECODE_KEYS * DECODE_BLOCK * S::W);
  r.bias = memory.take<float>(DECODE_KEYS);
  r.k = memory.take<T>(DECODE_KEYS * r.q_width);
  r.v = memory.take<T>(DECODE_KEYS * r.out_width);
  r.bytes = memory.used;
  return r;
}

template <class S>
FA_FN typename S::I lanes_from(int first) {
  typename S::I r;
  UNROLL
  for (int i = 0; i < S::W; i++) r.x[i] = first + i;
  return r;
}

template <class S, class B>
static void decode_bias(const B* bias, Int64 step, int n, float* to) {
  B tile[DECODE_KEYS] = {};
  for (int i = 0; i < n; i++) tile[i] = bias[i * step];
  for (int i = 0; i < DECODE_KEYS; i += S::W) S::store(to + i, S::widen(tile + i));
}
// attn_bias of keys [key, key + n) for one row, as floats.
template <class S>
static void load_bias_row(const Job& job, const Sequence& s, const DecodeRow& row, int key, int n, float* to) {
  const BiasStrides b = job.params.bias;
  const Int64 at = s.index * b.batch + row.head * b.head + row.position * b.row + key * b.key;
  switch (job.bias_dtype) {
    case DType::f16: return decode_bias<S>(array_of<const Half>(job, Role::bias) + at, b.key, n, to);
    case DType::bf16: return decode_bias<S>(array_of<const Bf16>(job, Role::bias) + at, b.key, n, to);
    case DType::f32: return decode_bias<S>(array_of<const float>(job, Role::bias) + at, b.key, n, to);
    default: return decode_bias<S>(array_of<const Bool>(job, Role::bias) + at, b.key, n, to);
  }
}

template <class S, unsigned F, int N>
FA_FN void score_row(typename S::F (&x)[N], const Job& job, const Sequence& s, const DecodeRow& row, int key, const float* bias) {
  using V = typename S::F;
  using I = typename S::I;
  const V slope((F & ALIBI) != 0 ? array_of<const float>(job, Role::slopes)[s.index * job.params.slopes_batch + row.head] : 0.0f);
  UNROLL
  for (int i = 0; i < N; i++) {
    const V distance = to_float(abs(I(row.position + s.mask.shift) - lanes_from<S>(key + i * S::W)));
    x[i] = score<F>(x[i], job.params.score, slope, distance, (F & BIAS) != 0 ? S::load(bias + i * S::W) : V(0.0f));
  }
}
template <class S, int N>
__attribute__((noinline)) static void change_scores(typename S::F (&x)[N], const Job& job, const Sequence& s, const DecodeRow& row, int key,
                                                    int n, float* bias) {
  if ((job.features & BIAS) != 0) load_bias_row<S>(job, s, row, key, n, bias);
  switch (job.features & (SOFTCAP | ALIBI | BIAS)) {
    case 0: return score_row<S, NATURAL>(x, job, s, row, key, bias);
    case 1: return score_row<S, 1>(x, job, s, row, key, bias);
    case 2: return score_row<S, 2>(x, job, s, row, key, bias);
    case 3: return score_row<S, 3>(x, job, s, row, key, bias);
    case 4: return score_row<S, 4>(x, job, s, row, key, bias);
    case 5: return score_row<S, 5>(x, job, s, row, key, bias);
    case 6: return score_row<S, 6>(x, job, s, row, key, bias);
    default: return score_row<S, 7>(x, job, s, row, key, bias);
  }
}
template <class S, int N>
__attribute__((noinline)) static void drop_row(typename S::F (&x)[N], const Job& job, const Sequence& s, const DecodeRow& row, int key) {
  using U = typename S::U;
  const Params& p = job.params;
  const U head(static_cast<unsigned>(s.index * p.heads + row.head)), position(static_cast<unsigned>(row.position + p.q_offset));
  UNROLL
  for (int i = 0; i < N; i++) {
    const U here = to_unsigned(lanes_from<S>(key + p.k_offset + i * S::W));
    x[i] = select(keeps(p.dropout, job.seed, head, position, here), x[i], typename S::F(0.0f));
  }
}
// The reference becomes the highest lane of `top`; what has been summed shrinks.
template <class S>
__attribute__((noinline)) static void raise_reference(DecodeRow& row, int out_width, typename S::F top) {
  float highest = top.x[0];
  for (int i = 1; i < S::W; i++) highest = max(highest, top.x[i]);
  const typename S::F factor = rescale(typename S::F(row.reference), typename S::F(highest));  // scalar exp2 is slow where it is 0
  row.reference = highest;
  S::store(row.sum, factor * S::load(row.sum));
  float* out = row.out;
  for (int t = 0; t < out_width; t += S::W, out += row.out_step) S::store(out, factor * S::load(out));
}

// Products of R rows and keys [key, key + n) of a tile become probabilities: several rows at once hide the latency of exp2.
template <class S, int R>
static void weigh_rows(DecodeRow* rows, const Job& job, const Sequence& s, int key, int n, int out_width, float* scores, float* bias) {
  using F = typename S::F;
  using I = typename S::I;
  constexpr int W = S::W, N = DECODE_KEYS / W;
  F x[R][N], top[R];
  UNROLL
  for (int r = 0; r < R; r++) {
    UNROLL
    for (int i = 0; i < N; i++) x[r][i] = S::load(scores + r * DECODE_KEYS + i * W);
  }
  F unit(score_unit<0>(job.params.score));
  if ((job.features & CHANGES_SCORE) != 0) {
    UNROLL
    for (int r = 0; r < R; r++) change_scores<S>(x[r], job, s, rows[r], key, n, bias);
    unit = F(score_unit<NATURAL>(job.params.score));
  }
  bool edge = n < DECODE_KEYS;
  for (int r = 0; r < R; r++) edge = edge || rows[r].keys.first > key || rows[r].keys.end < key + DECODE_KEYS;
  if (edge) {
    UNROLL
    for (int r = 0; r < R; r++) {
      const I before(rows[r].keys.first - 1), end(min(rows[r].keys.end, key + n));
      UNROLL
      for (int i = 0; i < N; i++) {
        const I here = lanes_from<S>(key + i * W);
        x[r][i] = select((here > before) & (end > here), x[r][i] * unit, F(hidden()));
      }
    }
    unit = F(1.0f);
  }
  Flags<W> high = {};
  UNROLL
  for (int r = 0; r < R; r++) {
    top[r] = x[r][0];
    UNROLL
    for (int i = 1; i < N; i++) top[r] = max(top[r], x[r][i]);
    top[r] = top[r] * unit;
    high = high | (top[r] > F(rows[r].reference + 16.0f));
  }
  if (__builtin_expect(any(high), 0)) {
    UNROLL
    for (int r = 0; r < R; r++) {
      if (any(top[r] > F(rows[r].reference + 16.0f))) raise_reference<S>(rows[r], out_width, top[r]);
    }
  }
  F e[R * N];
  UNROLL
  for (int r = 0; r < R; r++) {
    UNROLL
    for (int i = 0; i < N; i++) e[r * N + i] = fma(x[r][i], unit, F(0.0f - rows[r].reference));
  }
  exp2_of(e);
  UNROLL
  for (int r = 0; r < R; r++) {
    F sum = S::load(rows[r].sum);
    UNROLL
    for (int i = 0; i < N; i++) {
      x[r][i] = e[r * N + i];
      sum = sum + x[r][i];
    }
    S::store(rows[r].sum, sum);
    if ((job.features & DROPOUT) != 0) drop_row<S>(x[r], job, s, rows[r], key);
    UNROLL
    for (int i = 0; i < N; i++) S::store(scores + r * DECODE_KEYS + i * W, x[r][i]);
  }
}
template <class S>
static void weigh_tile(DecodeRow* rows, int n_rows, const Job& job, const Sequence& s, int key, int n, int out_width, float* scores,
                       float* bias) {
  constexpr int R = 4 * S::W / DECODE_KEYS;  // four vectors
  int r = 0;
  for (; r + R <= n_rows; r += R) weigh_rows<S, R>(rows + r, job, s, key, n, out_width, scores + r * DECODE_KEYS, bias);
  for (; r < n_rows; r++) weigh_rows<S, 1>(rows + r, job, s, key, n, out_width, scores + r * DECODE_KEYS, bias);
}

// Row g of a block's Q as floats, in the order of part_of().
template <class S, class T, int R>
static void load_query(const DecodeBlock& block, int g, const T* row, int dim) {
  constexpr int W = S::W;
  float* to = block.q + g / R * W + g % R * (W / 2);
  for (int t = 0; t < block.q_width; t += 2 * W) {
    const T* from = row + t;
    T tail[2 * W] = {};
    if (t + 2 * W > dim) {
      __builtin_memcpy(tail, from, sizeof(T) * static_cast<size_t>(dim - t));
      from = tail;
    }
    for (int part = 0; part < 2 * R; part++, to += divide_up(block.rows, R) * W) {
      const typename S::F x = part_of<S, R>(from, part);
      S::store_half(to, x, 0);
      if (R == 1) S::store_half(to + W / 2, x, 1);
    }
  }
}
// O of a row times `factor`, into the caller's array.
template <class S, class T, class Out>
static void store_output(const DecodeRow& row, float factor, int dim, Out* to) {
  using F = typename S::F;
  constexpr int W = S::W;
  const float* out = row.out;
  for (int t = 0; t < dim; t += 2 * W) {
    float halves[2 * W];
    alignas(64) float piece[2 * W];
    for (int side = 0; side < 2; side++, out += row.out_step) store_any(halves + side * W, F(factor) * S::load(out));
    UNROLL
    for (int l = 0; l < W; l++) {
      piece[element_of<S>(static_cast<const T*>(nullptr), 0, l)] = halves[l];
      piece[element_of<S>(static_cast<const T*>(nullptr), 1, l)] = halves[W + l];
    }
    for (int side = 0; side < 2; side++) narrow_lanes<S>(to, t + side * W, dim, S::load(piece + side * W));
  }
}

// Rows and blocks of kv heads [head0, head0 + kv_heads), Q loaded, O and sums zero.
template <class S, class T>
static void begin_rows(const DecodeScratch<T>& w, const Job& job, const Sequence& s, int head0, int kv_heads, Interval<int> keys) {
  const Params& p = job.params;
  const int rows = s.mask.rows * p.group;
  const T* queries = array_of<const T>(job, Role::q);
  __builtin_memset(w.q, 0, sizeof(float) * static_cast<size_t>(kv_heads * w.blocks_of_head * w.q_rows * w.q_width));
  __builtin_memset(w.out, 0, sizeof(float) * static_cast<size_t>(kv_heads * rows * w.out_width));
  __builtin_memset(w.sums, 0, sizeof(float) * static_cast<size_t>(kv_heads * rows * S::W));
  for (int b = 0; b < kv_heads * w.blocks_of_head; b++) {
    const int kv_head = b / w.blocks_of_head, part = b % w.blocks_of_head;
    const int first = rows * part / w.blocks_of_head, end = rows * (part + 1) / w.blocks_of_head;  // as equal as they come
    const int row = kv_head * rows + first, step = (end - first) * S::W;
    const DecodeBlock block{
        w.q + b * w.q_rows * w.q_width, w.out + row * w.out_width, w.scores + row * DECODE_KEYS, w.q_width, w.out_width, end - first};
    w.blocks[b] = block;
    for (int g = 0; g < block.rows; g++) {
      const int position = (first + g) / p.group, head = (head0 + kv_head) * p.group + (first + g) % p.group;
      const Interval<int> seen = visible_keys(s.mask, position);
      w.rows[row + g] = DecodeRow{position,
                                  head,
                                  {max(seen.first, keys.first), min(seen.end, keys.end)},
                                  no_maximum(),
                                  w.sums + (row + g) * S::W,
                                  block.out + g * S::W,
                                  step};
      if (keys.first < keys.end) {
        const T* query = queries + row_offset(p.q, s, position, head);
        if (rows_together<S, T>(block.rows) == 1) {
          load_query<S, T, 1>(block, g, query, p.dim);
        } else {
          load_query<S, T, 2>(block, g, query, p.dim);
        }
      }
    }
  }
}

// O = O / sum and the log-sum-exp of each row, as a partial result or, without part_out, as the result itself.
template <class S, class T>
static void finish_rows(const DecodeScratch<T>& w, const Job& job, const Task& task, const Sequence& s, int rows) {
  const Params& p = job.params;
  float* part_out = array_of<float>(job, Role::part_out);
  float* lse = array_of<float>(job, part_out != nullptr ? Role::part_lse : Role::lse);
  const Int64 part = part_out != nullptr ? task.part * job.part_rows : 0;
  const void* sinks = (job.features & SINK) != 0 && task.part == 0 ? array_of<const void>(job, Role::sink) : nullptr;
  for (int r = 0; r < rows; r++) {
    const DecodeRow& row = w.rows[r];
    float sum = row.sum[0];
    for (int l = 1; l < S::W; l++) sum += row.sum[l];
    Softmax<float> state{row.reference, sum};
    float factor = 1.0f;
    if (sinks != nullptr) {
      state = add_sink(state, element<S>(sinks, job.sink_dtype, row.head));
      factor = rescale(row.reference, state.max);
    }
    factor *= inverse_sum(state);
    if ((job.features & DROPOUT) != 0) factor *= p.keep_scale;
    // NaN stays NaN: a part whose lse is -inf counts for nothing.
    if (lse != nullptr) lse[part + s.lse_base + row.head * p.lse_head + row.position] = sum == sum ? log_sum_exp(state) : sum;
    const Int64 at = row_offset(p.out, s, row.position, row.head);
    if (part_out != nullptr) {
      if (state.sum != 0.0f) store_output<S, T>(row, factor, p.value_dim, part_out + part * p.value_dim + at);
    } else if (job.out_dtype == job.dtype) {
      store_output<S, T>(row, factor, p.value_dim, array_of<T>(job, Role::out) + at);
    } else {
      store_output<S, T>(row, factor, p.value_dim, array_of<float>(job, Role::out) + at);
    }
  }
}

// K or V of all kv heads of a task.
template <class T>
struct DecodeSource {
  KeyRows<T> rows;
  Int64 head;      // from kv head to kv head
  int dim, width;  // elements of a row, without and with padding
  T* copy;         // room for a tile
};
template <class T>
FA_FN int slots_after(const KeyRows<T>& rows, int key) {  // in the page of `key`, from it on
  return rows.page_size == 0 ? 1 << 30 : rows.page_size - slot_of(rows.first + key, rows.page_size);
}
template <class E>
struct DecodeTile {
  const E* data;
  Int64 row;
};
// Keys [key, key + n) of a kv head: where they are if that can be, else a copy, with zeros in all that is padding and in rows whose bit
// of `skipped` is set.
template <class T>
static DecodeTile<T> tile_of(const DecodeSource<T>& source, int kv_head, int key, int n, unsigned skipped) {
  if (n == DECODE_KEYS && source.dim == source.width && skipped == 0 && slots_after(source.rows, key) >= n) {
    return {source.rows.at(key) + kv_head * source.head, source.rows.row};
  }
  T* to = source.copy;
  __builtin_memset(to, 0, sizeof(T) * static_cast<size_t>(DECODE_KEYS * source.width));
  for (int i = 0; i < n; i++) {
    const T* row = source.rows.at(key + i) + kv_head * source.head;
    if ((skipped >> i & 1u) == 0) __builtin_memcpy(to + i * source.width, row, sizeof(T) * static_cast<size_t>(source.dim));
  }
  return {to, source.width};
}
// Brings keys [key, key + n), as far as they lie in one page, near within `calls` calls of fetch().
template <class T>
FA_FN void aim(Ahead& ahead, const DecodeSource<T>& source, int kv_heads, int key, int n, int calls) {
  ahead.lines = 0;
  if (n <= 0) return;
  const KeyRows<T>& rows = source.rows;
  const Int64 bytes = ((kv_heads - 1) * source.head + source.dim) * static_cast<Int64>(sizeof(T));
  ahead.step = rows.row * static_cast<Int64>(sizeof(T));
  ahead.rows = min(n, slots_after(rows, key));
  Int64 run = bytes;
  if (ahead.step == bytes) {  // rows without gaps are one long row
    run *= ahead.rows;
    ahead.rows = 1;
  }
  ahead.at = reinterpret_cast<const char*>(rows.at(key));
  ahead.end = ahead.at + run;
  ahead.gap = ahead.step - run;
  ahead.lines = divide_up(divide_up(static_cast<int>(run), 64) * ahead.rows, calls);
}

// Keys of a tile that no row of a kv head gives any weight: their V may be anything.
FA_FN unsigned weightless(const float* p, int rows, int n) {
  unsigned r = 0;
  for (int i = 0; i < n; i++) {
    bool some = false;
    for (int g = 0; g < rows; g++) some = some || p[g * DECODE_KEYS + i] != 0.0f;
    if (!some) r |= 1u << i;
  }
  return r;
}

template <class S, class T>
static void decode_keys(const DecodeScratch<T>& w, const Job& job, const Sequence& s, int head0, int kv_heads, Interval<int> keys) {
  const Params& p = job.params;
  const int rows = s.mask.rows * p.group, most = divide_up(rows, w.blocks_of_head), blocks = kv_heads * w.blocks_of_head;
  const DecodeProducts<T> few = decode_products<S, T>(rows / w.blocks_of_head), many = decode_products<S, T>(most);
  const DecodeSource<T> k{key_rows<T>(job, s, Role::k, p.k, head0), p.k.head, p.dim, w.q_width, w.k};
  const DecodeSource<T> v{key_rows<T>(job, s, Role::v, p.v, head0), p.v.head, p.value_dim, w.out_width, w.v};
  const int k_calls = blocks * output_calls<S>(most, w.out_width);
  const int v_calls = blocks * score_calls<S, T>(most, w.q_width);
  Ahead ahead_k{}, ahead_v{};
  DecodeTile<T> tile{};
  for (int key = keys.first, n; key < keys.end; key += n) {
    if (stopped(job)) return;
    // Tiles begin at multiples of their size among the rows of the array, so that pages of such sizes hold whole ones.
    n = min(DECODE_KEYS - (k.rows.first + key) % DECODE_KEYS, keys.end - key);
    aim(ahead_v, v, kv_heads, key, n, v_calls);
    for (int b = 0; b < blocks; b++) {
      const DecodeBlock& block = w.blocks[b];
      if (b % w.blocks_of_head == 0) tile = tile_of(k, b / w.blocks_of_head, key, n, 0u);
      (block.rows == most ? many : few).scores(block, tile.data, tile.row, w.dots, ahead_v);
    }
    weigh_tile<S>(w.rows, kv_heads * rows, job, s, key, n, w.out_width, w.scores, w.bias);
    aim(ahead_k, k, kv_heads, key + n, min(DECODE_KEYS, keys.end - key - n), k_calls);
    for (int b = 0; b < blocks; b++) {
      const DecodeBlock& block = w.blocks[b];
      if (b % w.blocks_of_head == 0) {
        const unsigned skipped = (job.features & BIAS) != 0 ? weightless(block.scores, rows, n) : 0u;
        tile = tile_of(v, b / w.blocks_of_head, key, n, skipped);
      }
      (block.rows == most ? many : few).output(block, tile.data, tile.row, n, ahead_k);
    }
  }
}

template <class S, class T>
static void decode(const Job& job, const Task& task, void* memory) {
  const Sequence& s = job.sequences[task.sequence];
  const int head0 = max(task.head, 0), kv_heads = task.head < 0 ? job.params.kv_heads : 1, rows = s.mask.rows * job.params.group;
  if (rows <= 0) return;
  const Interval<int> any = any_visible(s.mask, 0, s.mask.rows - 1), keys{max(task.first, any.first), min(task.end, any.end)};
  const DecodeScratch<T> w = decode_scratch<S, T>(job.params, kv_heads, rows, memory);
  begin_rows<S>(w, job, s, head0, kv_heads, keys);
  decode_keys<S, T>(w, job, s, head0, kv_heads, keys);
  finish_rows<S>(w, job, task, s, kv_heads * rows);
}

template <class S, class T>
static size_t decode_scratch_bytes(const Job& job) {
  const Params& p = job.params;
  return decode_scratch<S, T>(p, p.kv_heads, p.mask.rows * p.group, nullptr).bytes;
}
// Keys of a task.
static int decode_task_keys(const Job& job, int) { return job.params.split_keys; }
}  // namespace
}  // namespace fa::cpu
