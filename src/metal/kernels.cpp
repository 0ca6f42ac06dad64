// The table of the Metal kernels: best first, the first row that takes a call wins.
#include "metal/kernels.h"

#include <iterator>

#include "metal/plan.h"

namespace fa::metal {
namespace {
constexpr unsigned FLOATS = dtype_bit(DType::f16) | dtype_bit(DType::bf16) | dtype_bit(DType::f32);
constexpr unsigned ALL = ~0u;
constexpr unsigned NO_CACHE = ALL & ~(CACHED | PAGED);

constexpr Kernel KERNELS[] = {
    // name, pass, architectures, dtypes, head dim, features, needs, other rules
    {"forward", Pass::forward, 0, 0, FLOATS, 512, ALL, ALL, nullptr},
    {"forward_plain", Pass::forward, 0, 0, FLOATS, 512, ALL, ALL, nullptr},
    {"backward_plain", Pass::backward, 0, 0, FLOATS, 512, ALL, NO_CACHE, nullptr},
    {"append", Pass::append, 0, 0, FLOATS, 512, ALL, ALL, nullptr},
    {"merge", Pass::merge, 0, 0, FLOATS, 512, ALL, ALL, nullptr},
};

Device device(Place) { return Device{DeviceKind::metal, 0, 0, 32768}; }
}  // namespace

const Backend BACKEND{"metal", KERNELS, static_cast<int>(std::size(KERNELS)), plan, device, nullptr, false};
}  // namespace fa::metal
