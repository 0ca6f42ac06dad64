// The table of the Metal kernels: best first, the first row that takes a call wins.
#include "metal/kernels.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>

#include "metal/plan.h"
#include "metal/tiles.h"

namespace fa::metal {
namespace {
constexpr unsigned FLOATS = dtype_bit(DType::f16) | dtype_bit(DType::bf16) | dtype_bit(DType::f32);
constexpr unsigned HALVES = FLOATS & ~dtype_bit(DType::f32);  // for float32, MLX may compute with fewer bits
constexpr unsigned ALL = ~0u;
constexpr unsigned NO_CACHE = ALL & ~(CACHED | PAGED);
constexpr int TENSORS = 17;  // the first generation with tensor operations (M5)
constexpr int ANY = 999;     // generations that do not exist yet

static_assert(DECODE_ROWS == 32, "say so below");
const char* decode_refuses(const Problem& p, const Device&) {
  if ((p.needs & (CACHED | PAGED)) == 0 && p.max_rows > 1)
    return "takes one query position without a cache: a backward pass repeats the rounding of forward, not of decode";
  if (p.max_rows * p.params.group > DECODE_ROWS) return "takes at most 32 query rows (position * group) of a key/value head";
  return nullptr;
}

// MLX's own attention, where it is fused, means what ours means, and gives all that is asked for: not the lse, which gradients need, nor
// rows that see no key, for which it gives the mean of V.
const char* mlx_refuses(const Problem& p, const Device&) {
  const auto one_of = [&](std::initializer_list<int> dims) { return std::find(dims.begin(), dims.end(), p.params.dim) != dims.end(); };
  if (p.params.batch == 0 || p.max_rows == 0 || p.max_keys == 0) return "takes no empty arrays";
  if (p.params.mask.right == 0 && p.max_rows > p.max_keys) return "takes causal calls with as many keys as rows at least";
  if (p.max_rows > 8) return one_of({64, 80, 128}) ? nullptr : "takes head dim 64, 80 or 128";
  if (p.max_rows > p.max_keys) return "takes up to 8 rows only with as many keys at least";
  if (p.max_rows * p.params.group > 32) return "takes up to 8 rows only with at most 32 query rows (position * group) of a key/value head";
  return one_of({64, 96, 128, 256}) ? nullptr : "takes up to 8 rows only with head dim 64, 96, 128 or 256";
}

constexpr Kernel KERNELS[] = {
    // name, pass, generations, dtypes, head dim, features, needs, other rules
    {"mlx_sdpa", Pass::forward, 0, ANY, HALVES, 256, 0, DETERMINISTIC, mlx_refuses},
    {"decode", Pass::forward, 0, ANY, FLOATS, 512, ALL & ~(BIAS | DROPOUT), ALL, decode_refuses},
    {"forward_tensor", Pass::forward, TENSORS, ANY, HALVES, TENSOR_DIM, ALL, ALL, nullptr},
    {"forward", Pass::forward, 0, ANY, FLOATS, 512, ALL, ALL, nullptr},
    {"forward_plain", Pass::forward, 0, ANY, FLOATS, 512, ALL, ALL, nullptr},
    {"backward", Pass::backward, 0, ANY, FLOATS, 512, ALL, NO_CACHE, nullptr},
    {"backward_plain", Pass::backward, 0, ANY, FLOATS, 512, ALL, NO_CACHE, nullptr},
    {"append", Pass::append, 0, ANY, FLOATS, 512, ALL, ALL, nullptr},
    {"merge", Pass::merge, 0, ANY, FLOATS, 512, ALL, ALL, nullptr},
};

Device device(Place place) { return Device{DeviceKind::metal, place.index, 0, 32768}; }
}  // namespace

const Backend BACKEND{"metal", KERNELS, static_cast<int>(std::size(KERNELS)), plan, device, nullptr, false};
}  // namespace fa::metal
