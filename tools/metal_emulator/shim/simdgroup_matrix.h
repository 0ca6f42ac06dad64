// 8x8 matrices spread over a simdgroup, two elements a lane.
#pragma once

namespace metal {
namespace emulated {

// The first of a lane's two elements; the second is its right neighbour. Not documented by Apple, relied on by MLX.
struct Position {
  int row, column;
};
METAL_FUNC Position matrix_position() {
  const int quad = lane() / 4;
  return {(quad & 4) + lane() / 2 % 4, (quad & 2) * 2 + lane() % 2 * 2};
}

}  // namespace emulated

template <class T, int COLUMNS = 8, int ROWS = 8>
struct simdgroup_matrix {
  static_assert(COLUMNS == 8 && ROWS == 8, "Metal has 8x8 matrices only");
  using storage_type = vec<T, 2>;
  storage_type elements;
  simdgroup_matrix() {}
  explicit simdgroup_matrix(T diagonal) {
    const emulated::Position p = emulated::matrix_position();
    for (int i = 0; i < 2; i++) elements[i] = p.row == p.column + i ? diagonal : T(0);
  }
  METAL_FUNC storage_type& thread_elements() { return elements; }
  METAL_FUNC const storage_type& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int COLUMNS = 8, int ROWS = 8>
METAL_FUNC simdgroup_matrix<T, COLUMNS, ROWS> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, COLUMNS, ROWS> matrix;
  matrix.elements = value;
  return matrix;
}

template <class D, class A, class B, class C>
METAL_FUNC void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                              const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c, FA_SITE) {
  const float left[2] = {float(a.elements[0]), float(a.elements[1])}, right[2] = {float(b.elements[0]), float(b.elements[1])};
  const float sum[2] = {float(c.elements[0]), float(c.elements[1])};
  float result[2];
  emulator_multiply(site, left, right, sum, result);
  for (int i = 0; i < 2; i++) d.elements[i] = static_cast<D>(result[i]);
}
template <class D, class A, class B>
METAL_FUNC void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b,
                                   FA_SITE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), site);
}

// origin: (column, row) of the matrix in memory.
#define FA_MATRIX_MEMORY(SPACE)                                                                                   \
  template <class T>                                                                                              \
  METAL_FUNC void simdgroup_load(simdgroup_matrix<T, 8, 8>& matrix, const SPACE T* memory, ulong row_stride = 8,  \
                                 ulong2 origin = ulong2(0), bool transposed = false) {                            \
    const emulated::Position p = emulated::matrix_position();                                                     \
    for (int i = 0; i < 2; i++) {                                                                                 \
      const ulong row = transposed ? p.column + i : p.row, column = transposed ? p.row : p.column + i;            \
      const ulong x = transposed ? origin.y : origin.x, y = transposed ? origin.x : origin.y;                     \
      matrix.elements[i] = memory[(y + row) * row_stride + x + column];                                           \
    }                                                                                                             \
  }                                                                                                               \
  template <class T>                                                                                              \
  METAL_FUNC void simdgroup_store(const simdgroup_matrix<T, 8, 8>& matrix, SPACE T* memory, ulong row_stride = 8, \
                                  ulong2 origin = ulong2(0), bool transposed = false) {                           \
    const emulated::Position p = emulated::matrix_position();                                                     \
    for (int i = 0; i < 2; i++) {                                                                                 \
      const ulong row = transposed ? p.column + i : p.row, column = transposed ? p.row : p.column + i;            \
      const ulong x = transposed ? origin.y : origin.x, y = transposed ? origin.x : origin.y;                     \
      memory[(y + row) * row_stride + x + column] = matrix.elements[i];                                           \
    }                                                                                                             \
  }
FA_MATRIX_MEMORY(FA_DEVICE)
FA_MATRIX_MEMORY(FA_THREADGROUP)
#undef FA_MATRIX_MEMORY

}  // namespace metal
