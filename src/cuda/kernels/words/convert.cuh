// The 16-bit floats as bits, and the instructions that convert them: to nearest, ties to even; NaN stays NaN.
#pragma once
#include "semantics/platform.h"
namespace fa::cuda {
struct Half {
  unsigned short bits;
};
struct Bfloat {
  unsigned short bits;
};
FA_FN float widen(float x) { return x; }
FA_FN double widen(double x) { return x; }
FA_FN float widen(Bfloat x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
FA_FN float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
FA_FN void narrow(float x, float& to) { to = x; }
FA_FN void narrow(double x, double& to) { to = x; }
FA_FN void narrow(float x, Bfloat& to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
FA_FN void narrow(float x, Half& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
FA_FN void narrow(double x, float& to) { to = static_cast<float>(x); }
}  // namespace fa::cuda
