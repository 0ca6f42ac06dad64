// The table of the CPU's kernels: best first, the first row that takes a call wins.
#include "cpu/kernels.h"

#include <iterator>

#include "cpu/plan.h"
#include "cpu/run.h"
#include "cpu/tiles.h"

namespace fa::cpu {
namespace {
constexpr unsigned ALL_FLOATS = dtype_bit(DType::f16) | dtype_bit(DType::bf16) | dtype_bit(DType::f32) | dtype_bit(DType::f64);
constexpr unsigned FLOATS = ALL_FLOATS & ~dtype_bit(DType::f64);
constexpr unsigned ALL = ~0u;
constexpr unsigned NO_CACHE = ALL & ~(CACHED | PAGED);

static_assert(DECODE_ROWS == 24 && DECODE_ROWS_ALONE == 128 && DECODE_HEADS_ALONE == 2, "say so below");
const char* decode_refuses(const Problem& p, const Device&) {
  const bool cached = (p.needs & (CACHED | PAGED)) != 0;
  if (!cached && p.max_rows > 1)
    return "takes one query position without a cache: a backward pass repeats the rounding of forward, not of decode";
  if (!decode_suits(p.max_rows * p.params.group, int64_t{p.params.batch} * p.params.kv_heads, cached))
    return "takes at most 24 query rows (position * group) of a key/value head, 128 of a cache with at most 2 such heads";
  return nullptr;
}
// rows and keys of one head are counted in 32 bits
const char* forward_refuses(const Problem& p, const Device&) {
  if (p.max_rows * p.params.group > 1 << 30) return "takes at most 2^30 query rows (position * group) of a key/value head";
  return nullptr;
}

constexpr Kernel KERNELS[] = {
    // name, pass, architectures, dtypes, head dim, features, needs, other rules
    {"decode", Pass::forward, 0, 0, FLOATS, 512, ALL, ALL, decode_refuses},
    {"forward", Pass::forward, 0, 0, FLOATS, 512, ALL, ALL, forward_refuses},
    {"forward_plain", Pass::forward, 0, 0, ALL_FLOATS, 512, ALL, ALL, nullptr},
    {"backward", Pass::backward, 0, 0, FLOATS, 512, ALL, NO_CACHE, forward_refuses},
    {"backward_plain", Pass::backward, 0, 0, ALL_FLOATS, 512, ALL, NO_CACHE, nullptr},
    {"append", Pass::append, 0, 0, ALL_FLOATS, 512, ALL, ALL, nullptr},
    {"merge", Pass::merge, 0, 0, ALL_FLOATS, 512, ALL, ALL, nullptr},
};
}  // namespace

const Backend BACKEND{"cpu", KERNELS, static_cast<int>(std::size(KERNELS)), plan, device, run, true};
}  // namespace fa::cpu
