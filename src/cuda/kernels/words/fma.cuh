// Products of matrices of float32 elements, by multiply-adds: every sum is one of float32, as exact as a plain loop. The same registers and
// words as mma.cuh: lane l holds, with g = l / 4 and t = l % 4, of a 16 x 8 result: rows g, g + 8, columns 2 t, 2 t + 1.
#pragma once
#include "copy.cuh"
#include "lanes.cuh"
namespace fa::cuda {
// Rows of a panel from a multiple of 8 on.
template <class P>
struct Tiles {
  unsigned start;
  static FA_MEMBER Tiles straight(P panel, int row) { return Tiles{panel.base + static_cast<unsigned>(row * P::ROW_BYTES)}; }
  static FA_MEMBER Tiles crossed(P panel, int row) { return straight(panel, row); }
  // chunk `chunk` of row `rows` (a multiple of 8) + `row` (below 8). within: bytes from there on, below 32 where the chunk is even.
  FA_MEMBER unsigned at(int rows, int row, int chunk, int within = 0) const {
    return ((start + static_cast<unsigned>(within)) ^ static_cast<unsigned>((chunk % P::CHUNKS ^ row) << 4)) +
           static_cast<unsigned>((chunk / P::CHUNKS * P::COUNT + rows + row) * P::ROW_BYTES);
  }
};
FA_FN void load_four(float (&x)[4], unsigned from) {
  const uint4 words = load_16(from);
  x[0] = __uint_as_float(words.x), x[1] = __uint_as_float(words.y), x[2] = __uint_as_float(words.z), x[3] = __uint_as_float(words.w);
}

// s = left (16 MT rows of a panel) * right^T (8 NT rows of a panel), over 16 STEPS columns
template <int STEPS, int MT, int NT, class Left, class Right>
FA_FN void products(float (&s)[MT][NT][4], const Tiles<Left>& left, const Tiles<Right>& right) {
  const int g = lane_of() / 4, t = lane_of() % 4;
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[m][n][i] = 0;
#pragma unroll 2
  for (int chunk = 0; chunk < STEPS * 4; chunk++) {
    float a[MT][2][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) load_four(a[m][h], left.at(m * 16 + h * 8, g, chunk));
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float b[4];
        load_four(b, right.at(n * 8, 2 * t + e, chunk));
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
          for (int h = 0; h < 2; h++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[m][n][2 * h + e] = fma(a[m][h][c], b[c], s[m][n][2 * h + e]);
      }
  }
}

// The left operand of 16 columns: [4 * (column / 8) + 2 h + e], as a result's two tiles hold it.
struct Operand {
  float a[8];
};
FA_FN void operand(Operand& x, const float (&left)[4], const float (&right)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) x.a[i] = left[i], x.a[4 + i] = right[i];
}
// sum += a (16 MT rows x 16) * right (16 rows of a panel from `row` on, columns from 8 * tile on)
template <int MT, int N, class Right>
FA_FN void accumulate(float (&sum)[MT][N][4], const Operand (&a)[MT], const Tiles<Right>& right, int row, int tile) {
  const int t = lane_of() % 4, home = lane_of() & ~3;
#pragma unroll
  for (int k = 0; k < 16; k++) {
    float weight[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) weight[m][h] = __shfl_sync(0xffffffffu, a[m].a[k / 8 * 4 + 2 * h + k % 2], home + k % 8 / 2);
#pragma unroll
    for (int n = 0; n < N; n++) {
      const float2 b = load_floats(right.at(row + k / 8 * 8, k % 8, (tile + n) * 2, t * 8));  // column 8 (tile + n) + 2 t
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          sum[m][n][2 * h] = fma(weight[m][h], b.x, sum[m][n][2 * h]);
          sum[m][n][2 * h + 1] = fma(weight[m][h], b.y, sum[m][n][2 * h + 1]);
        }
    }
  }
}
// The same from a panel: its rows are those of the operand (16 from `row` on, columns from 8 * tile on), or its columns are (transposed).
template <class P>
FA_FN void load_operand(Operand& x, const Tiles<P>& straight, int row, int tile) {
  const int g = lane_of() / 4, t = lane_of() % 4;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = load_floats(straight.at(row + i % 2 * 8, g, (tile + i / 2) * 2, t * 8));
    x.a[i / 2 * 4 + i % 2 * 2] = pair.x, x.a[i / 2 * 4 + i % 2 * 2 + 1] = pair.y;
  }
}
template <class P>
FA_FN void load_transposed_operand(Operand& x, const Tiles<P>& crossed, int row, int tile) {
  const int g = lane_of() / 4, t = lane_of() % 4;
#pragma unroll
  for (int i = 0; i < 8; i++) x.a[i] = load_float(crossed.at(row + i / 4 * 8, 2 * t + i % 2, (tile + i / 2 % 2) * 2, g * 4));
}
// Registers of a result into a panel: a pair of neighbours, and the two tiles of an operand. row: this lane's
template <class P>
FA_FN void store_pair(P panel, int row, int tile, float left, float right) {
  const int t = lane_of() % 4;
  store_8(panel.address(row, tile * 2 + t / 2) + static_cast<unsigned>(t % 2 * 8), left, right);
}
template <class P>
FA_FN void store_operand(P panel, int row, int tile, const Operand& x) {
#pragma unroll
  for (int i = 0; i < 4; i++) store_pair(panel, row + i % 2 * 8, tile + i / 2, x.a[i / 2 * 4 + i % 2 * 2], x.a[i / 2 * 4 + i % 2 * 2 + 1]);
}
}  // namespace fa::cuda
