// A row of a matrix spread over the lanes of a warp: lane l holds elements l, l + 32, ... And products of one such row with 32 others.
#pragma once
#include "lanes.cuh"
#include "where.cuh"
namespace fa::cuda {
constexpr unsigned WARP = 0xffffffffu;

FA_FN Real warp_sum(Real x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(WARP, x, step);
  return x;
}
FA_FN Real warp_max(Real x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(WARP, x, step));
  return x;
}

// DIM: a multiple of 32; elements from the row's own end on are 0.
template <int DIM>
struct Row {
  Real x[DIM / 32];

  FA_MEMBER void clear() {
    fill([](int) { return Real(0); });
  }
  template <class T>
  FA_MEMBER void load(const T* row, int dim) {
    fill([&](int d) { return d < dim ? to_real(row[d]) : Real(0); });
  }
  template <class T>
  FA_MEMBER void store(T* row, int dim) const {
#pragma unroll
    for (int t = 0; t < DIM / 32; t++)
      if (const int d = t * 32 + lane_of(); d < dim) row[d] = from_real<T>(x[t]);
  }
  FA_MEMBER void scale(Real factor) {
#pragma unroll
    for (int t = 0; t < DIM / 32; t++) x[t] *= factor;
  }
  template <class T>
  FA_MEMBER void add(Real weight, const T* row, int dim) {
#pragma unroll
    for (int t = 0; t < DIM / 32; t++)
      if (const int d = t * 32 + lane_of(); d < dim) x[t] = fma(weight, to_real(row[d]), x[t]);
  }

 private:
  template <class At>
  FA_MEMBER void fill(At at) {
#pragma unroll
    for (int t = 0; t < DIM / 32; t++) x[t] = at(t * 32 + lane_of());
  }
};

// A warp's corner of shared memory: 32 pieces of rows. Their length is odd, so that lanes which read a column meet different banks.
using Corner = Real[32][33];
FA_FN Corner& corner() {
  __shared__ Corner corners[FA_WARPS];
  return corners[warp_of()];
}
// Lane l gets the product of `row` and row_at(first + l), if that is inside `rows`, which alone are read. Every sum goes from element 0 on,
// as in the float32 tiles (fma.cuh): a gradient whose scores had other roundings than those of the lse would lose digits of P.
template <int DIM, class RowAt>
FA_FN Real products(const Row<DIM>& row, int first, Interval<int> rows, int dim, RowAt row_at) {
  Corner& pieces = corner();
  const int lane = lane_of();
  Real sum = 0;
#pragma unroll
  for (int t = 0; t < DIM / 32; t++) {
    const int d = t * 32 + lane;
    __syncwarp();
#pragma unroll 8
    for (int j = 0; j < 32; j++)
      pieces[j][lane] = first + j >= rows.first && first + j < rows.end && d < dim ? to_real(row_at(first + j)[d]) : Real(0);
    __syncwarp();
#pragma unroll
    for (int c = 0; c < 32; c++) sum = fma(__shfl_sync(WARP, row.x[t], c), pieces[lane][c], sum);
  }
  return sum;
}
// sum += weight of lane l * row_at(first + l), for the lanes that count, in their order; other rows are not read
template <int DIM, class RowAt>
FA_FN void add_rows(Row<DIM>& sum, Real weight, bool counts, int first, int dim, RowAt row_at) {
  for (unsigned left = __ballot_sync(WARP, counts); left != 0; left &= left - 1) {
    const int lane = __ffs(static_cast<int>(left)) - 1;
    sum.add(__shfl_sync(WARP, weight, lane), row_at(first + lane), dim);
  }
}
}  // namespace fa::cuda
