// What nobody owns: rows that no query has and keys that no sequence has, behind the end of a sequence or of all of them.
// Tile     a row of all heads.
// Who      a block a row.
// Memory   written once.
// Speed    bound by memory.
//
//   clear    forward: out 0, lse -inf; backward (dq is given): dq 0, delta 0, and dk, dv 0
//            grid: any, 1 (backward: 2), batch (varlen: batch + 1)
#include "words/where.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, THREADS = WARPS * 32;

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
