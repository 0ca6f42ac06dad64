// Products of tiles in shared memory and registers, 16 x 16 at a time. Register [m][n][2 h + e] of a result is row m * 16 + g + 8 h,
// column n * 8 + 2 t + e, with g = lane / 4, t = lane % 4.
#pragma once
#include "panel.cuh"
#include "score.cuh"
namespace fa::cuda {
// s = left (16 MT rows of a panel) * right^T (8 NT rows of a panel), over 16 STEPS columns
template <int STEPS, int MT, int NT, class Left, class Right>
FA_FN void products(float (&s)[MT][NT][4], const Tiles<Left>& left, const Tiles<Right>& right) {
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    unsigned a[MT][4];
#pragma unroll
    for (int m = 0; m < MT; m++) load_matrices(a[m], left.at(m * 16, step * 2));
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      unsigned b[4];
      load_matrices(b, right.at(n * 8, step * 2));
#pragma unroll
      for (int m = 0; m < MT; m++) {
        if (step == 0) {
          multiply(s[m][n], a[m], b[0], b[1]);
          multiply(s[m][n + 1], a[m], b[2], b[3]);
        } else {
          multiply_add(s[m][n], a[m], b[0], b[1]);
          multiply_add(s[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
}
// The left operand of 16 columns of a result: what lanes hold of it is what they must hold.
FA_FN void operand(unsigned (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack(left[0], left[1]), a[1] = pack(left[2], left[3]);
  a[2] = pack(right[0], right[1]), a[3] = pack(right[2], right[3]);
}
// sum += a (16 MT rows x 16) * right (16 rows of a panel from `row` on, columns from chunk on)
template <int MT, int N, class Right>
FA_FN void accumulate(float (&sum)[MT][N][4], const unsigned (&a)[MT][4], const Tiles<Right>& right, int row, int chunk) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    unsigned b[4];
    load_transposed(b, right.at(row, chunk + n));
#pragma unroll
    for (int m = 0; m < MT; m++) {
      multiply_add(sum[m][n], a[m], b[0], b[1]);
      multiply_add(sum[m][n + 1], a[m], b[2], b[3]);
    }
  }
}
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
// for eight registers.
template <int MT, int NT, class Keep>
FA_FN void decide_rows(const Elements& elements, int row, int key, Keep keep) {
  const bool aligned = elements.dropout_aligned() && NT % 4 == 0;
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
            keep(m, n, 2 * h + e, aligned ? elements.keeps_in(words, h * 8, (n - tile) * 8)
                                          : elements.keeps(row + m * 16 + h * 8, key + n * 8 + e));
      }
}
}  // namespace fa::cuda
