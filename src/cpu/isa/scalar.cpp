// The kernels for any machine: no instruction beyond the compiler's baseline.
#include "cpu/simd/scalar.h"

#include "cpu/kernels/table.h"

namespace fa::cpu {
static bool always() { return true; }
constinit const Isa SCALAR = make_isa<Scalar>("scalar", always);
}  // namespace fa::cpu
