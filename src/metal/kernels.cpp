// The table of the Metal kernels: best first, the first row that takes a call wins.
#include "metal/kernels.h"

#include <iterator>

#include "metal/plan.h"
#include "metal/tiles.h"

namespace fa::metal {
namespace {
constexpr unsigned FLOATS = dtype_bit(DType::f16) | dtype_bit(DType::bf16) | dtype_bit(DType::f32);
constexpr unsigned ALL = ~0u;
constexpr unsigned NO_CACHE = ALL & ~(CACHED | PAGED);

static_assert(DECODE_ROWS == 32, "say so below");
const char* decode_refuses(const Problem& p, const Device&) {
  if ((p.needs & (CACHED | PAGED)) == 0 && p.max_rows > 1)
    return "takes one query position without a cache: a backward pass repeats the rounding of forward, not of decode";
  if (p.max_rows * p.params.group > DECODE_ROWS) return "takes at most 32 query rows (position * group) of a key/value head";
  return nullptr;
}

constexpr Kernel KERNELS[] = {
    // name, pass, architectures, dtypes, head dim, features, needs, other rules
    {"decode", Pass::forward, 0, 0, FLOATS, 512, ALL & ~(BIAS | DROPOUT), ALL, decode_refuses},
    {"forward", Pass::forward, 0, 0, FLOATS, 512, ALL, ALL, nullptr},
    {"forward_plain", Pass::forward, 0, 0, FLOATS, 512, ALL, ALL, nullptr},
    {"backward", Pass::backward, 0, 0, FLOATS, 512, ALL, NO_CACHE, nullptr},
    {"backward_plain", Pass::backward, 0, 0, FLOATS, 512, ALL, NO_CACHE, nullptr},
    {"append", Pass::append, 0, 0, FLOATS, 512, ALL, ALL, nullptr},
    {"merge", Pass::merge, 0, 0, FLOATS, 512, ALL, ALL, nullptr},
};

Device device(Place) { return Device{DeviceKind::metal, 0, 0, 32768}; }
}  // namespace

const Backend BACKEND{"metal", KERNELS, static_cast<int>(std::size(KERNELS)), plan, device, nullptr, false};
}  // namespace fa::metal
