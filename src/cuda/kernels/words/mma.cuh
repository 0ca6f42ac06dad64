// Products of matrices of 16-bit elements on tensor cores since Ampere: mma m16n8k16 with float32 sums, and the shared memory loads that
// bring fragments in its layout. Lane l holds, with g = l / 4 and t = l % 4, of a 16 x 8 result: rows g, g + 8, columns 2 t, 2 t + 1.
#pragma once
#include "copy.cuh"
#include "lanes.cuh"
namespace fa::cuda {

#if FA_DTYPE == 1
#define FA_MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define FA_MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
// c += a * b. a: rows g / g + 8 at k = 2 t / 2 t + 8, two a register; b: k = 2 t / 2 t + 8 of column g.
FA_FN void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm(FA_MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c = a * b
FA_FN void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm(FA_MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}
// Two neighbours of a row in one register, the left one in the low half.
FA_FN unsigned pack(float left, float right) {
  unsigned pair;
#if FA_DTYPE == 1
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(right), "f"(left));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(right), "f"(left));
#endif
  return pair;
}
// Four 8 x 8 matrices whose rows lanes 0-7, 8-15, 16-23, 24-31 point at (shared addresses, 16 bytes a row).
FA_FN void load_matrices(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
FA_FN void load_transposed(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// One lane's part in the loads of 16 x 16 tiles. Tiles lie a multiple of 8 rows apart, so the permutation hangs on the lane alone; and as
// rows are aligned to their size, an exclusive or with the address itself brings a chunk to its place.
template <class P>
struct Tiles {
  unsigned start;  // of this lane's chunk of the tile's two

  // By load_matrices the left operand, its rows being the panel's; by load_transposed the right one, its k being the panel's rows.
  static FA_MEMBER Tiles straight(P panel, int row) { return Tiles{panel.address(row + (lane_of() & 15), lane_of() >> 4)}; }
  // By load_matrices the right operand, its columns being the panel's rows; by load_transposed the left one, its k being the panel's rows.
  static FA_MEMBER Tiles crossed(P panel, int row) {
    return Tiles{panel.address(row + (lane_of() & 7) + ((lane_of() >> 4) << 3), (lane_of() >> 3) & 1)};
  }
  // of the tile `rows` below and `chunk` (even) chunks to the right
  FA_MEMBER unsigned at(int rows, int chunk) const {
    return (start ^ static_cast<unsigned>(chunk % P::CHUNKS << 4)) +
           static_cast<unsigned>((chunk / P::CHUNKS * P::COUNT + rows) * P::ROW_BYTES);
  }
};

struct Operand {
  unsigned a[4];
};

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
FA_FN void operand(Operand& x, const float (&left)[4], const float (&right)[4]) {
  x.a[0] = pack(left[0], left[1]), x.a[1] = pack(left[2], left[3]);
  x.a[2] = pack(right[0], right[1]), x.a[3] = pack(right[2], right[3]);
}
// sum += a (16 MT rows x 16) * right (16 rows of a panel from `row` on, columns from 8 * tile on)
template <int MT, int N, class Right>
FA_FN void accumulate(float (&sum)[MT][N][4], const Operand (&a)[MT], const Tiles<Right>& right, int row, int tile) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    unsigned b[4];
    load_transposed(b, right.at(row, tile + n));
#pragma unroll
    for (int m = 0; m < MT; m++) {
      multiply_add(sum[m][n], a[m].a, b[0], b[1]);
      multiply_add(sum[m][n + 1], a[m].a, b[2], b[3]);
    }
  }
}
// The same from a panel: its rows are those of the operand (16 from `row` on, columns from 8 * tile on), or its columns are (transposed).
template <class P>
FA_FN void load_operand(Operand& x, const Tiles<P>& straight, int row, int tile) {
  load_matrices(x.a, straight.at(row, tile));
}
template <class P>
FA_FN void load_transposed_operand(Operand& x, const Tiles<P>& crossed, int row, int tile) {
  load_transposed(x.a, crossed.at(row, tile));
}
// Registers of a result into a panel: a pair of neighbours, and the two tiles of an operand. row: this lane's
template <class P>
FA_FN void store_pair(P panel, int row, int tile, float left, float right) {
  store_4(panel.address(row, tile) + static_cast<unsigned>(lane_of() % 4 * 4), pack(left, right));
}
template <class P>
FA_FN void store_operand(P panel, int row, int tile, const Operand& x) {
#pragma unroll
  for (int i = 0; i < 4; i++) store_4(panel.address(row + i % 2 * 8, tile + i / 2) + static_cast<unsigned>(lane_of() % 4 * 4), x.a[i]);
}
}  // namespace fa::cuda
