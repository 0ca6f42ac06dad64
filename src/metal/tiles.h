// Tile sizes of the Metal kernels. No Apple GPU was at hand: they follow from registers a lane (about 128 of 32 bits keep enough
// simdgroups resident) and 32 KB of threadgroup memory, see docs/performance.md; each line says what the next bigger tile would need.
#pragma once
#include <algorithm>

namespace fa::metal {
constexpr int SIMD = 32;             // lanes of a simdgroup
constexpr int FRAGMENT = 8;          // rows and columns of a simdgroup matrix
constexpr int PLAIN_SIMDGROUPS = 4;  // rows a threadgroup of the plain kernels

constexpr int divide_up(int64_t n, int by) { return static_cast<int>((n + by - 1) / by); }
constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }
}  // namespace fa::metal
