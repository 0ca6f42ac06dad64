// Products of 16-bit matrices on tensor cores since Ampere: mma m16n8k16 with float32 sums, and the shared memory loads that bring
// fragments in its layout. Lane l holds, with g = l / 4 and t = l % 4, of a 16 x 8 result: rows g, g + 8, columns 2 t, 2 t + 1.
#pragma once
#include "element.cuh"
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
}  // namespace fa::cuda
