// A matrix of 16-bit elements in shared memory: ROWS x DIM, cut into panels of 64 (or 32) columns whose rows are 128 (64) bytes. The
// 16-byte chunks of a row are permuted by an exclusive or with the row, so that the eight rows of an 8 x 8 matrix, and the chunks of one
// row, lie in different banks: loads and fills run without conflicts and without padding.
#pragma once
#include "copy.cuh"
#include "mma.cuh"
#include "where.cuh"
namespace fa::cuda {
template <int ROWS, int DIM>
struct Panel {
  static constexpr int COUNT = ROWS, WIDTH = DIM % 64 == 0 ? 64 : 32, CHUNKS = WIDTH / 8, ROW_BYTES = WIDTH * 2, BYTES = ROWS * DIM * 2;
  static_assert(DIM % 32 == 0 && ROWS % 8 == 0);
  unsigned base;  // shared address

  static FA_MEMBER unsigned twist(int row) { return static_cast<unsigned>(WIDTH == 64 ? row & 7 : (row >> 1) & 3); }
  static FA_MEMBER unsigned offset(int row, int chunk) {
    const unsigned c = static_cast<unsigned>(chunk), panel = c / CHUNKS;
    return (panel * ROWS + static_cast<unsigned>(row)) * ROW_BYTES + ((c % CHUNKS ^ twist(row)) << 4);
  }
  FA_MEMBER unsigned address(int row, int chunk) const { return base + offset(row, chunk); }
};

// One lane's part in the loads of 16 x 16 tiles. Tiles lie a multiple of 8 rows apart, so the permutation hangs on the lane alone and
// the rest of an address is a constant.
template <class P>
struct Tiles {
  unsigned start, twist;
  int half;  // this lane's chunk of the tile's two

  // By load_matrices the left operand, its rows being the panel's; by load_transposed the right one, its k being the panel's rows.
  static FA_MEMBER Tiles straight(P panel, int row) { return make(panel, row + (lane_of() & 15), lane_of() >> 4); }
  // By load_matrices the right operand, its columns being the panel's rows; by load_transposed the left one, its k being the panel's rows.
  static FA_MEMBER Tiles crossed(P panel, int row) {
    return make(panel, row + (lane_of() & 7) + ((lane_of() >> 4) << 3), (lane_of() >> 3) & 1);
  }
  // of the tile `rows` below and `chunk` (even) chunks to the right
  FA_MEMBER unsigned at(int rows, int chunk) const {
    return start + static_cast<unsigned>((chunk / P::CHUNKS * P::COUNT + rows) * P::ROW_BYTES) +
           ((static_cast<unsigned>(chunk % P::CHUNKS + half) ^ twist) << 4);
  }

 private:
  static FA_MEMBER Tiles make(P panel, int row, int half) {
    return Tiles{panel.base + static_cast<unsigned>(row * P::ROW_BYTES), P::twist(row), half};
  }
};

// Rows of a matrix that lie a stride apart; paged keys come as a function of the row instead.
struct LinearRows {
  const Element* first;
  Int64 stride;
  FA_MEMBER const Element* operator()(int row) const { return first + row * stride; }
};
template <class T>
constexpr bool LINEAR = false;
template <>
constexpr bool LINEAR<LinearRows> = true;

// Fills a panel with the `present` rows of a matrix and zeros around them; columns from `dim` on become 0. row_at(row): pointer to a row's first
// element. All THREADS threads of the block take part; the caller commits.
template <int THREADS, int ROWS, int DIM, class RowAt>
FA_FN void fill(Panel<ROWS, DIM> panel, Interval<int> present, int dim, int width, RowAt row_at) {
  // a thread keeps its column: neighbours copy one row's chunks (those of a panel where they do not divide the threads)
  constexpr unsigned ACROSS = THREADS % (DIM / 8) == 0 ? DIM / 8 : Panel<ROWS, DIM>::CHUNKS;
  constexpr int CHUNKS = DIM / 8, DOWN = THREADS / ACROSS;
  const int top = static_cast<int>(threadIdx.x / ACROSS), left = static_cast<int>(threadIdx.x % ACROSS);
  if (LINEAR<RowAt> && width == 16 && present.first <= 0 && present.end >= ROWS && dim == DIM) {
    const Element* from = row_at(top) + left * 8;
    const Int64 step = row_at(DOWN) - row_at(0);
#pragma unroll
    for (int row = 0; row < ROWS; row += DOWN, from += step)
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; chunk += static_cast<int>(ACROSS))
        if (ROWS % DOWN == 0 || row + top < ROWS) copy_16(panel.address(row + top, chunk + left), from + chunk * 8);
  } else {
#pragma unroll 1
    for (int row = top; row < ROWS; row += DOWN) {
      const bool exists = row >= present.first && row < present.end;
      const Element* const from = row_at(exists ? row : 0);
#pragma unroll 1
      for (int chunk = left; chunk < CHUNKS; chunk += static_cast<int>(ACROSS)) {
        const int valid = exists ? min(max(dim - chunk * 8, 0), 8) * 2 : 0;
        const unsigned to = panel.address(row, chunk);
        if (width == 16)
          copy_16(to, from + (valid > 0 ? chunk * 8 : 0), valid);
        else
          copy_narrow(to, from + (valid > 0 ? chunk * 8 : 0), valid, width);
      }
    }
  }
}

// The way back: rows [0, count) of a panel, columns below `dim`, to an array that the launch writes.
template <int THREADS, int ROWS, int DIM, class RowAt>
FA_FN void drain(Panel<ROWS, DIM> panel, int count, int dim, int width, RowAt row_at) {
  constexpr int CHUNKS = DIM / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < ROWS * CHUNKS; i += THREADS) {
    const int row = i / CHUNKS, column = i % CHUNKS * 8;
    if (row >= count || column >= dim) continue;
    const uint4 words = load_16(panel.address(row, column / 8));
    Element* const to = const_cast<Element*>(row_at(row)) + column;
    if (width == 16 && column + 8 <= dim) {
      *reinterpret_cast<uint4*>(to) = words;
    } else {
      const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int c = 0; c < 8; c++)
        if (column + c < dim) reinterpret_cast<unsigned short*>(to)[c] = static_cast<unsigned short>(pairs[c / 2] >> (16 * (c % 2)));
    }
  }
}
// Rows of keys from `key` on, for fill().
FA_FN auto keys_from(const Numbers& p, const Sequence& s, const void* array, Strides strides, int key, int kv_head) {
  const Element* const first = static_cast<const Element*>(array);
  if constexpr (PAGED_KEYS)
    return [=, &p, &s](int j) { return first + key_offset(p, strides, s, key + j, kv_head); };
  else
    return LinearRows{first + key_offset(p, strides, s, key, kv_head), strides.row};
}
FA_FN LinearRows rows_from(const Sequence& s, const void* array, Strides strides, int row, int head) {
  return LinearRows{static_cast<const Element*>(array) + row_offset(strides, s, row, head), strides.row};
}
}  // namespace fa::cuda
