// The heads of the sequences that a block takes: grids are (tiles of the longest sequence, heads, batch).
#pragma once
#include "lanes.cuh"
#include "where.cuh"
namespace fa::cuda {
// Every (sequence, head) that is this block's: a grid's y and z end at 65535, so that blocks may have to take several, in turns.
template <class Body>
FA_FN void each_head(const Numbers& p, const Arrays& a, int heads, Body body) {
  for (int b = static_cast<int>(blockIdx.z); b < p.batch; b += static_cast<int>(gridDim.z)) {
    const Sequence s = sequence_of(p, a, b);
    for (int head = static_cast<int>(blockIdx.y); head < heads; head += static_cast<int>(gridDim.y)) body(s, head);
  }
}
// The row (or key) of this warp, where each has one.
FA_FN int first_of_warp() { return static_cast<int>(blockIdx.x) * FA_WARPS + warp_of(); }
}  // namespace fa::cuda
