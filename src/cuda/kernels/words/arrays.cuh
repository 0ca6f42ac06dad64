// What every kernel is given beside Params: one pointer for each Role, in the order of flash_attn.h (run.cpp,
// which fills it, asserts that), null where the call has no such array, and sizes that bound what an index read from an array may reach.
//
//   extern "C" __global__ void __launch_bounds__(...) name(const __grid_constant__ fa::Params p, const __grid_constant__ fa::Arrays a)
//
// Compile-time values of every kernel (cuda/plan.cpp sets them): FA_F Feature bits, FA_NEEDS Need bits as in core/problem.h, and as
// DType values (f16 1, bf16 2, f32 3, f64 4, u8 8: flash_attn.h) FA_DTYPE (of q, k, v, dout, gradients, new keys), FA_OUT (of out), FA_PART
// (of part_out), FA_BIAS, FA_SINK (0: none). Besides, by the kernel: FA_DIM, FA_VALUE_DIM (padded), FA_BM, FA_BN, FA_WARPS, FA_STAGES.
#pragma once
#include "semantics/params.h"
namespace fa {
struct Arrays {
  void *q, *k, *v, *out, *lse, *probabilities, *dout, *dlse;
  void *dq, *dk, *dv, *delta, *seed, *slopes, *bias, *dbias;
  void *sink, *dsink, *cu_rows, *cu_keys, *used_rows, *used_keys, *lengths, *cache_rows;
  void *leftpad, *pages, *new_k, *new_v, *cos, *sin, *rotated_q, *rotated_k;
  void *part_out, *part_lse;
  Int64 total_rows, total_keys;  // of all sequences: batch * rows, or the packed length
  int key_batches;               // first axis of k and v: sequences, cache rows or pages; an index from cache_rows or pages is below it
  int pages_columns;             // second axis of the page table
  int new_rows;                  // of new_k
  int positions;                 // rows of cos and sin
  int bias_shape[4];             // of attn_bias and dbias: 1 along an axis that they are broadcast over
};
}  // namespace fa
