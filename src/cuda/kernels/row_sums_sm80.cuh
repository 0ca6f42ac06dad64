// Before and after backward_sm80: the sums of dq begin at 0, and leave its order of them for rows of dq.
// Tile     FA_BM rows of one head, all columns.
// Who      one block a tile, with the warps of backward_sm80, each taking back what it added.
// Memory   whole lines of sums; rows leave through shared memory in wide stores.
// Speed    bandwidth.
#include "words/row_sums.cuh"

namespace fa::cuda {
extern "C" __global__ void __launch_bounds__(THREADS) clear_sums(const __grid_constant__ Params p, const __grid_constant__ Arrays a) {
  const Sequence sequence = sequence_of(p, a, static_cast<int>(blockIdx.z));
  const int row0 = static_cast<int>(blockIdx.x) * BM;
  if (row0 >= sequence.mask.rows) return;
  float4* const sums = reinterpret_cast<float4*>(tile_of_sums(p, a, sequence, row0, static_cast<int>(blockIdx.y)));
#pragma unroll
  for (int i = 0; i < BM * DIM / 4; i += THREADS) sums[i + static_cast<int>(threadIdx.x)] = float4{0, 0, 0, 0};
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_sums(const __grid_constant__ Params p, const __grid_constant__ Arrays a) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Sequence sequence = sequence_of(p, a, static_cast<int>(blockIdx.z));
  const int head = static_cast<int>(blockIdx.y), row0 = static_cast<int>(blockIdx.x) * BM, rows = min(sequence.mask.rows - row0, BM);
  if (rows <= 0) return;
  const Panel<BM, DIM> panel{shared_address(shared)};
  const float* const sums = sums_of_lane(tile_of_sums(p, a, sequence, row0, head));
#pragma unroll
  for (int m = 0; m < DQ_TILES; m++)
#pragma unroll 4
    for (int o = 0; o < DQ_COLUMNS / 8; o++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        store_pair(panel, dq_row() + m * 16 + h * 8 + lane_of() / 4, dq_column() / 8 + o, sums[sum_at(m, o, 2 * h)] * p.score.scale,
                   sums[sum_at(m, o, 2 * h + 1)] * p.score.scale);
      }
  __syncthreads();
  drain<THREADS>(panel, rows, p.dim, copy_width(a.dq, p.dq), rows_from(sequence, a.dq, p.dq, row0, head));
}
}  // namespace fa::cuda
