// Metal 4's mpp::tensor_ops::matmul2d for one simdgroup, all operands in registers. Where an element lives is known from MLX's kernels
// (16x16 fragments; a lane holds four neighbours of row r and of row r + 8), not from Apple's documents.
#pragma once

namespace mpp {
namespace tensor_ops {

struct matmul2d_descriptor {
  enum class mode { multiply, multiply_accumulate };
  int m, n, k;
  bool transpose_left, transpose_right, relaxed_precision;
  mode matmul_mode;
  constexpr matmul2d_descriptor(int m, int n, int k, bool transpose_left = false, bool transpose_right = false,
                                bool relaxed_precision = false, mode matmul_mode = mode::multiply)
      : m(m),
        n(n),
        k(k),
        transpose_left(transpose_left),
        transpose_right(transpose_right),
        relaxed_precision(relaxed_precision),
        matmul_mode(matmul_mode) {}
};

template <class T, int CAPACITY>
struct cooperative_tensor {
  using element_type = T;
  T elements[CAPACITY];
  METAL_FUNC T& operator[](short i) { return elements[i]; }
  METAL_FUNC const T& operator[](short i) const { return elements[i]; }
  static constexpr short get_capacity() { return CAPACITY; }
};

namespace emulated {

constexpr int CAPACITY = 16;  // elements a lane: 16x32 over 32 lanes
struct Operands {
  float left[CAPACITY], right[CAPACITY], sum[CAPACITY];
};
static_assert(sizeof(Operands) == 192, "the runtime's slots hold this much");

struct Place {
  int row, column;
};
// Fragments of 16x16 follow each other along the longer side of a matrix of `rows` rows.
constexpr Place place_of(int lane, int element, int rows) {
  const int quad = lane >> 2, fragment = element / 8, inside = element % 8;
  const int row = ((quad & 4) | ((lane >> 1) & 3)) + inside / 4 * 8, column = ((quad & 2) | (lane & 1)) * 4 + inside % 4;
  return rows == 32 ? Place{row + 16 * fragment, column} : Place{row, column + 16 * fragment};
}

template <int ROWS, int COLUMNS>
FA_UNCHECKED inline void gather(float (&matrix)[32][32], const float* elements, int lane, bool transposed) {
  constexpr int count = ROWS * COLUMNS / 32;
  for (int i = 0; i < count; i++) {
    const Place p = place_of(lane, i, ROWS);
    (transposed ? matrix[p.column][p.row] : matrix[p.row][p.column]) = elements[i];
  }
}

template <matmul2d_descriptor D>
FA_UNCHECKED inline void combine(uint32_t, const unsigned char* in, unsigned char* out) {
  constexpr bool accumulates = D.matmul_mode == matmul2d_descriptor::mode::multiply_accumulate;
  constexpr int left_rows = D.transpose_left ? D.k : D.m, right_rows = D.transpose_right ? D.n : D.k;
  float a[32][32], b[32][32], c[32][32];
  for (int lane = 0; lane < 32; lane++) {
    const Operands x = ::metal::emulated::taken<Operands>(in, lane);
    gather<left_rows, D.m * D.k / left_rows>(a, x.left, lane, D.transpose_left);
    gather<right_rows, D.k * D.n / right_rows>(b, x.right, lane, D.transpose_right);
    gather<D.m, D.n>(c, x.sum, lane, false);
  }
  for (int row = 0; row < D.m; row++) {
    for (int column = 0; column < D.n; column++) {
      float sum = accumulates ? c[row][column] : 0.0f;
      for (int k = 0; k < D.k; k++) sum = __builtin_fmaf(a[row][k], b[k][column], sum);
      c[row][column] = sum;
    }
  }
  constexpr int count = D.m * D.n / 32;
  struct Result {
    float elements[count];
  };
  for (int lane = 0; lane < 32; lane++) {
    Result result;
    for (int i = 0; i < count; i++) {
      const Place p = place_of(lane, i, D.m);
      result.elements[i] = c[p.row][p.column];
    }
    ::metal::emulated::give(out, lane, result);
  }
}

}  // namespace emulated

template <matmul2d_descriptor D, class SCOPE>
struct matmul2d {
  static_assert(::metal::is_same_v<SCOPE, ::metal::execution_simdgroup>, "the emulator knows matmul2d of one simdgroup only");
  static constexpr int LEFT = D.m * D.k / 32, RIGHT = D.k * D.n / 32, SUM = D.m * D.n / 32;
  static_assert(LEFT <= emulated::CAPACITY && RIGHT <= emulated::CAPACITY && SUM <= emulated::CAPACITY);
  template <class A, class B, class C>
  METAL_FUNC auto get_left_input_cooperative_tensor() const {
    return cooperative_tensor<A, LEFT>();
  }
  template <class A, class B, class C>
  METAL_FUNC auto get_right_input_cooperative_tensor() const {
    return cooperative_tensor<B, RIGHT>();
  }
  template <class L, class R, class C>
  METAL_FUNC auto get_destination_cooperative_tensor() const {
    return cooperative_tensor<C, SUM>();
  }
  template <class L, class R, class C>
  FA_UNCHECKED inline void run(L& left, R& right, C& sum, FA_SITE) const {
    emulated::Operands x;
    for (int i = 0; i < LEFT; i++) x.left[i] = static_cast<float>(left[i]);
    for (int i = 0; i < RIGHT; i++) x.right[i] = static_cast<float>(right[i]);
    for (int i = 0; i < SUM; i++) x.sum[i] = static_cast<float>(sum[i]);
    float result[SUM];
    emulator_matrix_exchange(site, &x, sizeof x, result, sizeof result, &emulated::combine<D>, D.m * D.n * D.k / 512);
    for (int i = 0; i < SUM; i++) sum[i] = static_cast<typename C::element_type>(result[i]);
  }
};

}  // namespace tensor_ops
}  // namespace mpp
