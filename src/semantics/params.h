// The numbers of one call, as every kernel receives them: no pointers, so the same bytes travel to a CPU task, as a CUDA kernel
// argument, as an int32 array (Metal) and as named scalars (Triton). 8-byte members first. Strides count elements.
#pragma once
#include "dropout.h"
#include "layout.h"
#include "mask.h"
#include "score.h"
namespace fa {
struct BiasStrides {
  Int64 batch, head, row, key;  // 0 along a broadcast axis
};
template <class Real>
struct ParamsT {
  Strides q, k, v, out, dout, dq, dk, dv, new_k, new_v;
  BiasStrides bias;           // of attn_bias; a bool mask counts bytes
  BiasStrides dbias;          // of its gradient, which is contiguous over attn_bias's own shape
  Int64 lse_batch, lse_head;  // of lse, dlse and delta, which are contiguous along rows
  Int64 pages_batch;          // of the page table
  ScoreT<Real> score;
  Real keep_scale;  // 1 / (1 - p)
  Mask mask;        // of the longest sequence; kernels take sequence_mask() of it
  Dropout dropout;
  int aligned;                        // 1: the diagonal ends at the bottom right corner; 0: mask.shift holds q_offset - k_offset
  int q_offset, k_offset;             // absolute position of row 0 and key 0, for dropout
  int batch, heads, kv_heads, group;  // group = heads / kv_heads
  int dim, value_dim;
  int slopes_batch;                                  // stride of the ALiBi slopes along the batch: 0 or heads
  int page_size;                                     // 0: not paged
  int capacity;                                      // rows of a cache a sequence may use (pages * page_size when paged)
  int cache_length;                                  // of every sequence, when no array of lengths is given; -1: the capacity
  int appended;                                      // keys this call appended to the cache
  int rotary_dim, rotary_interleaved, rotary_fixed;  // fixed: every query turns by the position of the first
  int bias_bool;                                     // attn_bias is a bool mask: 1 visible, 0 hidden
  int splits;                                        // partial results of a split-key launch, or inputs of a merge
  int split_keys;                                    // keys a split
};
using Params = ParamsT<float>;
}  // namespace fa
