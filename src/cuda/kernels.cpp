// The table of the CUDA kernels: best first, the first row that takes a call wins.
#include "cuda/kernels.h"

#include <iterator>

#include "cuda/plan.h"
#include "cuda/run.h"

namespace fa::cuda {
namespace {
constexpr unsigned HALF = dtype_bit(DType::f16) | dtype_bit(DType::bf16);
constexpr unsigned ALL_FLOATS = HALF | dtype_bit(DType::f32) | dtype_bit(DType::f64);
constexpr unsigned ALL = ~0u;
constexpr unsigned NO_CACHE = ALL & ~(CACHED | PAGED);
constexpr int AMPERE = 80;  // bfloat16 needs it
constexpr int ANY = 999;    // architectures that do not exist yet

constexpr Kernel KERNELS[] = {
    // name, pass, architectures, dtypes, head dim, features, needs, other rules
    {"decode", Pass::forward, AMPERE, ANY, HALF, 512, ALL, ALL, decode_refuses},
    {"decode_plain", Pass::forward, AMPERE, ANY, ALL_FLOATS, 512, ALL, ALL, decode_refuses},
    {"forward_sm80", Pass::forward, AMPERE, ANY, HALF | dtype_bit(DType::f32), 512, ALL, ALL, forward_refuses},
    {"forward_plain", Pass::forward, AMPERE, ANY, ALL_FLOATS, 512, ALL, ALL, nullptr},
    {"backward_sm80", Pass::backward, AMPERE, ANY, HALF | dtype_bit(DType::f32), 256, ALL, NO_CACHE, backward_refuses},
    {"backward_plain", Pass::backward, AMPERE, ANY, ALL_FLOATS, 512, ALL, NO_CACHE, nullptr},
    {"append", Pass::append, AMPERE, ANY, ALL_FLOATS, 512, ALL, ALL, nullptr},
    {"merge", Pass::merge, AMPERE, ANY, ALL_FLOATS, 512, ALL, ALL, nullptr},
};
}  // namespace

const Backend BACKEND{"cuda", KERNELS, static_cast<int>(std::size(KERNELS)), plan, device, run, false, read};
}  // namespace fa::cuda
