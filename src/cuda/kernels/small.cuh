// The small kernels around attention proper.
// Tile     a row of one head.
// Who      a warp a row, lanes over its elements; sink_gradient: a block a head; merge: FA_SPLIT warps of a block a row.
// Memory   arrays are read and written in place, once.
// Speed    a few operations an element: bound by memory.
//
//   delta          rowsum(dout * out) - dlse -> delta, 0 for rows with lse -inf; with part_out, float32 sums of dq: zeros there
//   convert        part_out -> dq
//   append         new_k, new_v (rotated) -> caches at length + t, rotated_k; q rotated -> rotated_q (mask.rows: rows of q)
//   merge          part_out, part_lse -> out, lse; a part with lse -inf counts for nothing, whatever it holds
//   sink_gradient  lse, delta -> dsink, summed in a fixed order
//   clear          rows that no query has -> out or dq 0, lse -inf, delta 0; keys that no sequence has -> dk, dv 0
//
// Grids (threads: FA_WARPS * 32):
//   delta, convert   divide_up(longest rows, ROWS * FA_WARPS), heads, batch
//   append           divide_up(max(new rows, rows of q), FA_WARPS), kv heads + heads (kv heads alone without rotated_q), batch
//   merge            divide_up(longest rows, FA_WARPS / FA_SPLIT), heads, batch
//   sink_gradient    heads, 1, 1
//   clear            any, 1 (backward: 2), batch (varlen: batch + 1)
#include "semantics/rotary.h"
#include "semantics/softmax.h"
#include "words/each.cuh"
#include "words/row.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, THREADS = WARPS * 32, ROWS = 4;

// The first row of a warp that has several, WARPS apart.
FA_FN int first_of_rows() { return static_cast<int>(blockIdx.x) * ROWS * WARPS + warp_of(); }
// Row of a float32 dq in part_out, which is contiguous.
FA_FN float* dq_row(const Numbers& p, const Arrays& a, const Sequence& s, int i, int head) {
  const Int64 row = s.batch * p.mask.rows + s.row_base + i;
  return static_cast<float*>(a.part_out) + (row * p.heads + head) * p.dim;
}

FA_FN void delta_of(const Numbers& p, const Arrays& a, const Sequence& s, int head, int i) {
  const Int64 at = lse_offset(p, s, i, head);
  const Interval<int> keys = visible_keys(s.mask, i);
  // what a row that sees nothing holds in dout must not matter, not even a NaN
  const bool counts = static_cast<const Real*>(a.lse)[at] > Real(minus_infinity());
  Real sum = 0;
  if (counts && keys.first < keys.end) {
    const Element* const dout = static_cast<const Element*>(a.dout) + row_offset(p.dout, s, i, head);
    const Out* const out = static_cast<const Out*>(a.out) + row_offset(p.out, s, i, head);
#pragma unroll 4
    for (int d = lane_of(); d < p.value_dim; d += 32) sum = fma(to_real(dout[d]), to_real(out[d]), sum);
  }
  sum = warp_sum(sum);
  if (counts && a.dlse != nullptr) sum -= static_cast<const Real*>(a.dlse)[at];
  if (lane_of() == 0) static_cast<Real*>(a.delta)[at] = sum;
  if (a.part_out != nullptr) {
    float* const dq = dq_row(p, a, s, i, head);
    for (int d = lane_of(); d < p.dim; d += 32) dq[d] = 0;
  }
}

// The first rotary_dim elements turn by the angle of `position`; `to` may be `from`. Positions without an angle take the nearest one's.
FA_FN void rotate_row(const Numbers& p, const Arrays& a, Element* to, const Element* from, int position) {
  const int half = a.positions > 0 ? p.rotary_dim / 2 : 0;
  const Int64 at = static_cast<Int64>(clamp(position, 0, a.positions - 1)) * half;
  for (int t = lane_of(); t < half; t += 32) {
    const int first = rotary_first(t, p.rotary_interleaved), second = rotary_second(t, p.rotary_dim, p.rotary_interleaved);
    const Real cos = to_real(static_cast<const Element*>(a.cos)[at + t]), sin = to_real(static_cast<const Element*>(a.sin)[at + t]);
    const Pair<Real> turned = rotate(to_real(from[first]), to_real(from[second]), cos, sin);
    to[first] = from_real<Element>(turned.x);
    to[second] = from_real<Element>(turned.y);
  }
  for (int d = 2 * half + lane_of(); d < p.dim; d += 32) to[d] = from[d];
}

// Where a slot of a sequence's cache lies, or nothing: a page that does not exist is not written.
struct Slot {
  bool exists;
  Int64 batch, row;
};
FA_FN Slot slot_of_cache(const Numbers& p, const Sequence& s, int position) {
  const bool inside = position < s.key_slots;
  if constexpr (PAGED_KEYS) {
    const int page = inside ? s.pages[page_of(position, p.page_size)] : -1;
    return Slot{page >= 0 && page <= s.last_page, page, slot_of(position, p.page_size)};
  }
  return Slot{inside, s.key_batch, position};
}
FA_FN void append_key(const Numbers& p, const Arrays& a, const Sequence& s, int head, int t, int length) {
  const Element* const k = static_cast<const Element*>(a.new_k) + offset_of(p.new_k, s.index, t, head);
  const Element* const v = static_cast<const Element*>(a.new_v) + offset_of(p.new_v, s.index, t, head);
  const int position = length + t;
  if (a.rotated_k != nullptr) rotate_row(p, a, static_cast<Element*>(a.rotated_k) + offset_of(p.dk, s.index, t, head), k, position);
  const Slot slot = slot_of_cache(p, s, position);
  if (a.k == nullptr || !slot.exists) return;
  rotate_row(p, a, static_cast<Element*>(a.k) + offset_of(p.k, slot.batch, slot.row, head), k, position);
  Element* const to = static_cast<Element*>(a.v) + offset_of(p.v, slot.batch, slot.row, head);
  for (int d = lane_of(); d < p.value_dim; d += 32) to[d] = v[d];
}

// An lse is a score in natural units.
FA_FN Real natural_unit() { return score_unit<NATURAL>(ScoreT<Real>{1, 0}); }

// What the parts of a row weigh: their maximum and sum in log2 units. NaN counts as a number, -inf as no part at all.
FA_FN Softmax<Real> parts_softmax(const Real* lse, Int64 step, int parts) {
  Softmax<Real> state{Real(no_maximum()), 0};
  for (int c = lane_of(); c < parts; c += 32)
    if (const Real x = lse[c * step]; x > Real(minus_infinity())) state.max = max(x * natural_unit(), state.max);
  state.max = warp_max(state.max);
  for (int c = lane_of(); c < parts; c += 32)
    if (const Real x = lse[c * step]; !(x == Real(minus_infinity()))) state.sum += probability(x, natural_unit(), state.max);
  state.sum = warp_sum(state.sum);
  return state;
}
using Part = TypeOf<FA_PART>::Type;

// The warps of a row have every FA_SPLIT-th part each, whose weighted sums are added in order: 128 elements at a time.
constexpr int SPLIT = FA_SPLIT, MERGED = WARPS / SPLIT, PIECE = 128;
FA_FN void merge_row(const Numbers& p, const Arrays& a, const Sequence& s, int head, int i) {
  __shared__ Real shares[WARPS][PIECE];
  const int mine = warp_of() % SPLIT, parts = p.split_keys > 0 ? clamp(divide_up(s.mask.keys, p.split_keys), 1, p.splits) : p.splits;
  const bool exists = i < s.mask.rows;
  const Int64 at = lse_offset(p, s, exists ? i : 0, head), step = a.total_rows * p.heads;
  const Real* const lse = static_cast<const Real*>(a.part_lse) + at;
  const Part* const from = static_cast<const Part*>(a.part_out) + row_offset(p.q, s, exists ? i : 0, head);
  const Softmax<Real> state = parts_softmax(lse, step, exists ? parts : 0);
  const Real inverse = inverse_sum(state);
  for (int first = 0; first < p.value_dim; first += PIECE) {
    Real sums[PIECE / 32] = {};
#pragma unroll 4
    for (int c = mine; c < (exists ? parts : 0); c += SPLIT) {
      const Real x = lse[c * step];
      if (x == Real(minus_infinity())) continue;
      const Real weight = probability(x, natural_unit(), state.max) * inverse;
#pragma unroll
      for (int t = 0; t < PIECE / 32; t++)
        if (const int d = first + t * 32 + lane_of(); d < p.value_dim)
          sums[t] = fma(weight, to_real(from[c * step * p.value_dim + d]), sums[t]);
    }
    if constexpr (SPLIT > 1) {
#pragma unroll
      for (int t = 0; t < PIECE / 32; t++) shares[warp_of()][t * 32 + lane_of()] = sums[t];
      __syncthreads();
#pragma unroll
      for (int t = 0; t < PIECE / 32; t++) {
        sums[t] = 0;
        for (int w = 0; w < SPLIT; w++) sums[t] += shares[warp_of() - mine + w][t * 32 + lane_of()];
      }
      __syncthreads();
    }
    if (!exists || mine != 0) continue;
    Out* const to = static_cast<Out*>(a.out) + row_offset(p.out, s, i, head);
#pragma unroll
    for (int t = 0; t < PIECE / 32; t++)
      if (const int d = first + t * 32 + lane_of(); d < p.value_dim) to[d] = from_real<Out>(sums[t]);
  }
  if (exists && mine == 0 && lane_of() == 0 && a.lse != nullptr) static_cast<Real*>(a.lse)[at] = log_sum_exp(state);
}

FA_FN double sum_of_block(double mine) {
  __shared__ double sums[THREADS];
  sums[threadIdx.x] = mine;
  for (int step = THREADS / 2; step > 0; step /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < step) sums[threadIdx.x] += sums[threadIdx.x + static_cast<unsigned>(step)];
  }
  return sums[0];  // thread 0's
}

template <class T>
FA_FN void clear_rows(void* array, Strides strides, int heads, int dim, Int64 batch, Int64 base, int first, int end) {
  for (int row = first + static_cast<int>(blockIdx.x); row < end; row += static_cast<int>(gridDim.x))
    for (int n = static_cast<int>(threadIdx.x); n < heads * dim; n += THREADS)
      static_cast<T*>(array)[offset_of(strides, batch, base + row, n / dim) + n % dim] = T{};
}
FA_FN void clear_numbers(const Numbers& p, void* array, const Sequence& s, Real value) {
  for (int row = s.mask.rows + static_cast<int>(blockIdx.x); row < s.row_slots; row += static_cast<int>(gridDim.x))
    for (int head = static_cast<int>(threadIdx.x); head < p.heads; head += THREADS)
      static_cast<Real*>(array)[lse_offset(p, s, row, head)] = value;
}
// Of a packed call: what lies behind the last sequence, as an empty one.
FA_FN Sequence behind_the_last(const Numbers& p, const Arrays& a) {
  const int rows = as_length(a.total_rows), keys = as_length(a.total_keys);
  const int first_row = clamp(int_at(a.cu_rows, p.batch, 0), 0, rows), first_key = clamp(int_at(a.cu_keys, p.batch, 0), 0, keys);
  return Sequence{
      p.batch,  sequence_mask(p.mask, p.aligned, 0, 0), rows - first_row, keys - first_key, first_row, 0, first_key, 0, nullptr, 0,
      first_row};
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) delta(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.heads, [&](const Sequence& s, int head) {
    for (int n = 0, i = first_of_rows(); n < ROWS && i < s.mask.rows; n++, i += WARPS) delta_of(p, a, s, head, i);
  });
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) convert(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.heads, [&](const Sequence& s, int head) {
    for (int n = 0, i = first_of_rows(); n < ROWS && i < s.mask.rows; n++, i += WARPS) {
      const float* const from = dq_row(p, a, s, i, head);
      Element* const to = static_cast<Element*>(a.dq) + row_offset(p.dq, s, i, head);
#pragma unroll 4
      for (int d = lane_of(); d < p.dim; d += 32) to[d] = from_float(from[d]);
    }
  });
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) append(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  const int count = p.kv_heads + (a.rotated_q != nullptr ? p.heads : 0), t = first_of_warp();
  each_head(p, a, count, [&](const Sequence& s, int head) {
    const int length = clamp(int_at(a.lengths, s.index, p.cache_length), 0, no_limit());
    if (head < p.kv_heads) {
      if (t < a.new_rows) append_key(p, a, s, head, t, length);
    } else if (t < p.mask.rows) {
      const int query_head = head - p.kv_heads;
      rotate_row(p, a, static_cast<Element*>(a.rotated_q) + offset_of(p.dq, s.index, t, query_head),
                 static_cast<const Element*>(a.q) + offset_of(p.q, s.index, t, query_head), length + (p.rotary_fixed != 0 ? 0 : t));
    }
  });
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) merge(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  each_head(p, a, p.heads,
            [&](const Sequence& s, int head) { merge_row(p, a, s, head, static_cast<int>(blockIdx.x) * MERGED + warp_of() / SPLIT); });
}
#if FA_SINK != 0
// Warps take sequences, lanes their rows.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sink_gradient(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  const int head = static_cast<int>(blockIdx.x);
  const Real sink = sink_of(a, head);
  double sum = 0;
  for (int b = warp_of(); b < p.batch; b += WARPS) {
    const Sequence s = sequence_of(p, a, b);
    for (int i = lane_of(); i < s.mask.rows; i += 32) {
      const Int64 at = lse_offset(p, s, i, head);
      sum += static_cast<double>(fa::sink_gradient(sink, static_cast<const Real*>(a.lse)[at], static_cast<const Real*>(a.delta)[at]));
    }
  }
  sum = sum_of_block(sum);
  using Sink = TypeOf<FA_SINK>::Type;
  if (threadIdx.x == 0) static_cast<Sink*>(a.dsink)[head] = from_real<Sink>(static_cast<Real>(sum));
}
#endif
extern "C" __global__ void __launch_bounds__(THREADS, 1) clear(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  const int sequences = p.batch + (PACKED_ROWS ? 1 : 0);
  for (int b = static_cast<int>(blockIdx.z); b < sequences; b += static_cast<int>(gridDim.z)) {
    const Sequence s = b < p.batch ? sequence_of(p, a, b) : behind_the_last(p, a);
    if (blockIdx.y == 1) {
      clear_rows<Element>(a.dk, p.dk, p.kv_heads, p.dim, s.key_batch, s.key_base, s.mask.keys, s.key_slots);
      clear_rows<Element>(a.dv, p.dv, p.kv_heads, p.value_dim, s.key_batch, s.key_base, s.mask.keys, s.key_slots);
      continue;
    }
    const bool backward = a.dq != nullptr;
    if (backward)
      clear_rows<Element>(a.dq, p.dq, p.heads, p.dim, s.batch, s.row_base, s.mask.rows, s.row_slots);
    else
      clear_rows<Out>(a.out, p.out, p.heads, p.value_dim, s.batch, s.row_base, s.mask.rows, s.row_slots);
    if (a.delta != nullptr) clear_numbers(p, a.delta, s, 0);
    if (a.lse != nullptr && !backward) clear_numbers(p, a.lse, s, Real(minus_infinity()));
  }
}
}  // namespace fa::cuda
