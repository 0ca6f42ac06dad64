// What kernels do with the products of tiles (mma.cuh on tensor cores, fma.cuh in float32), whose registers are the same: [m][n][2 h + e]
// of a result is row m * 16 + g + 8 h, column n * 8 + 2 t + e, with g = lane / 4, t = lane % 4.
#pragma once
#include "panel.cuh"
#include "score.cuh"
namespace fa::cuda {
template <int MT, int N>
FA_FN void zero(float (&x)[MT][N][4]) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) x[m][n][i] = 0;
}

// Stations score and hide of rows x keys. row, key: of this lane's register [0][0][0]
template <int MT, int NT>
FA_FN void score_rows(float (&s)[MT][NT][4], const Elements& elements, int row, int key, bool edge) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = row + m * 16 + h * 8;
      if constexpr (CHANGED) {
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) s[m][n][2 * h + e] = elements.score(s[m][n][2 * h + e], r, key + n * 8 + e);
      }
      if (edge) {
        const Interval<int> seen = visible_keys(elements.mask, r);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int j = key + n * 8 + e;
            s[m][n][2 * h + e] = j >= seen.first && j < seen.end ? s[m][n][2 * h + e] : hidden();
          }
      }
    }
}
// Station weigh, dropout: keep(m, n, i, kept) for each register. A tile of 32 keys that begins at a multiple of 32 takes one Philox call
// for eight registers, half of one for four.
template <int MT, int NT, class Keep>
FA_FN void decide_rows(const Elements& elements, int row, int key, Keep keep) {
  const bool aligned = elements.dropout_aligned() && (NT % 4 == 0 || NT == 2);
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int e = 0; e < 2; e++)
#pragma unroll
      for (int tile = 0; tile < NT; tile += 4) {
        const Words<unsigned> words = elements.dropout_tile(row + m * 16, key + tile * 8 + e);
#pragma unroll
        for (int n = tile; n < tile + 4 && n < NT; n++)
#pragma unroll
          for (int h = 0; h < 2; h++)
            keep(m, n, 2 * h + e,
                 aligned ? elements.keeps_in(words, h * 8, NT % 4 == 0 ? (n - tile) * 8 : key + n * 8)
                         : elements.keeps(row + m * 16 + h * 8, key + n * 8 + e));
      }
}
}  // namespace fa::cuda
