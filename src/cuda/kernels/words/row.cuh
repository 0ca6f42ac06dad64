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
  // this lane's share of a product
  template <class T>
  FA_MEMBER Real share(const T* row, int dim) const {
    Real sum = 0;
#pragma unroll
    for (int t = 0; t < DIM / 32; t++)
      if (const int d = t * 32 + lane_of(); d < dim) sum = fma(x[t], to_real(row[d]), sum);
    return sum;
  }

 private:
  template <class At>
  FA_MEMBER void fill(At at) {
#pragma unroll
    for (int t = 0; t < DIM / 32; t++) x[t] = at(t * 32 + lane_of());
  }
};

// Lane l gets the product of `row` and row_at(first + l), if that is inside `rows`, which alone are read. Eight sums at a time: each of
// three steps halves the sums and the lanes that a sum is spread over, the rest is added up as it is.
template <int DIM, class RowAt>
FA_FN Real products(const Row<DIM>& row, int first, Interval<int> rows, int dim, RowAt row_at) {
  Real mine = 0;
#pragma unroll 1
  for (int group = 0; group < 32; group += 8) {
    Real sums[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int other = first + group + j;
      sums[j] = other >= rows.first && other < rows.end ? row.share(row_at(other), dim) : Real(0);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) {
      const bool upper = (lane_of() & step) != 0;
#pragma unroll
      for (int j = 0; j < step; j++)
        sums[j] = (upper ? sums[j + step] : sums[j]) + __shfl_xor_sync(WARP, upper ? sums[j] : sums[j + step], step);
    }
    Real sum = sums[0] + __shfl_xor_sync(WARP, sums[0], 8);
    sum += __shfl_xor_sync(WARP, sum, 16);
    if (group == (lane_of() & 24)) mine = sum;
  }
  return mine;
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
