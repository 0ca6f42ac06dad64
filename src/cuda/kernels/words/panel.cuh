// A matrix of elements in shared memory: ROWS x DIM, cut into panels whose rows are 128 (or, of 16-bit elements, 64) bytes. The 16-byte
// chunks of a row are permuted by an exclusive or with the row, so that the eight rows of an 8 x 8 matrix, and the chunks of one
// row, lie in different banks: loads and fills run without conflicts and without padding.
#pragma once
#include "copy.cuh"
#include "where.cuh"
#if FA_DTYPE == 3
#include "fma.cuh"
#else
#include "mma.cuh"
#endif
namespace fa::cuda {
template <int ROWS, int DIM>
struct Panel {
  static constexpr int COUNT = ROWS, ROW_BYTES = DIM * ELEMENT_BYTES % 128 == 0 ? 128 : 64, CHUNKS = ROW_BYTES / 16;
  static constexpr int BYTES = ROWS * DIM * ELEMENT_BYTES;
  static_assert(DIM % 32 == 0 && ROWS % 8 == 0);
  unsigned base;  // shared address

  static FA_MEMBER unsigned twist(int row) { return static_cast<unsigned>(ROW_BYTES == 128 ? row & 7 : (row >> 1) & 3); }
  static FA_MEMBER unsigned offset(int row, int chunk) {
    const unsigned c = static_cast<unsigned>(chunk), panel = c / CHUNKS;
    return (panel * ROWS + static_cast<unsigned>(row)) * ROW_BYTES + ((c % CHUNKS ^ twist(row)) << 4);
  }
  FA_MEMBER unsigned address(int row, int chunk) const { return base + offset(row, chunk); }
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

// Fills a panel with the `present` rows of a matrix and zeros around them; columns from `dim` on become 0. row_at(row): pointer to a row's
// first element. All THREADS threads of the block take part; the caller commits.
template <int THREADS, int ROWS, int DIM, class RowAt>
FA_FN void fill(Panel<ROWS, DIM> panel, Interval<int> present, int dim, int width, RowAt row_at) {
  // a thread keeps its column: neighbours copy one row's chunks (those of a panel where they do not divide the threads)
  constexpr unsigned ACROSS = THREADS % (DIM / CHUNK) == 0 ? DIM / CHUNK : Panel<ROWS, DIM>::CHUNKS;
  constexpr int CHUNKS = DIM / CHUNK, DOWN = THREADS / ACROSS;
  const int top = static_cast<int>(threadIdx.x / ACROSS), left = static_cast<int>(threadIdx.x % ACROSS);
  if (LINEAR<RowAt> && width == 16 && present.first <= 0 && present.end >= ROWS && dim == DIM) {
    const Element* from = row_at(top) + left * CHUNK;
    const Int64 step = row_at(DOWN) - row_at(0);
#pragma unroll
    for (int row = 0; row < ROWS; row += DOWN, from += step)
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; chunk += static_cast<int>(ACROSS))
        if (ROWS % DOWN == 0 || row + top < ROWS) copy_16(panel.address(row + top, chunk + left), from + chunk * CHUNK);
  } else {
#pragma unroll 1
    for (int row = top; row < ROWS; row += DOWN) {
      const bool exists = row >= present.first && row < present.end;
      const Element* const from = row_at(exists ? row : 0);
#pragma unroll 1
      for (int chunk = left; chunk < CHUNKS; chunk += static_cast<int>(ACROSS)) {
        const int valid = exists ? min(max(dim - chunk * CHUNK, 0), CHUNK) * ELEMENT_BYTES : 0;
        const unsigned to = panel.address(row, chunk);
        if (width == 16)
          copy_16(to, from + (valid > 0 ? chunk * CHUNK : 0), valid);
        else
          copy_narrow(to, from + (valid > 0 ? chunk * CHUNK : 0), valid, width);
      }
    }
  }
}

// The way back: rows [0, count) of a panel, columns below `dim`, to an array that the launch writes.
template <int THREADS, int ROWS, int DIM, class RowAt>
FA_FN void drain(Panel<ROWS, DIM> panel, int count, int dim, int width, RowAt row_at) {
  constexpr int CHUNKS = DIM / CHUNK;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < ROWS * CHUNKS; i += THREADS) {
    const int row = i / CHUNKS, column = i % CHUNKS * CHUNK;
    if (row >= count || column >= dim) continue;
    const uint4 words = load_16(panel.address(row, column / CHUNK));
    Element* const to = const_cast<Element*>(row_at(row)) + column;
    if (width == 16 && column + CHUNK <= dim) {
      *reinterpret_cast<uint4*>(to) = words;
    } else {
      const unsigned parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int c = 0; c < CHUNK; c++)
        if (column + c < dim) to[c] = element_of(parts, c);
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
