// Numbers of a Problem as float32 kernels get them.
#include "core/problem.h"

namespace fa {
static_assert(sizeof(Params) == 448, "a number was added to Params: copy it below");
Params narrow(const ParamsT<double>& w) {
  Params p{};
  p.q = w.q, p.k = w.k, p.v = w.v, p.out = w.out, p.dout = w.dout, p.dq = w.dq, p.dk = w.dk, p.dv = w.dv, p.new_k = w.new_k,
  p.new_v = w.new_v;
  p.bias = w.bias, p.dbias = w.dbias;
  p.lse_batch = w.lse_batch, p.lse_head = w.lse_head, p.pages_batch = w.pages_batch;
  p.score = ScoreT<float>{static_cast<float>(w.score.scale), static_cast<float>(w.score.softcap)};
  p.keep_scale = static_cast<float>(w.keep_scale);
  p.mask = w.mask, p.dropout = w.dropout;
  p.aligned = w.aligned, p.q_offset = w.q_offset, p.k_offset = w.k_offset;
  p.batch = w.batch, p.heads = w.heads, p.kv_heads = w.kv_heads, p.group = w.group;
  p.dim = w.dim, p.value_dim = w.value_dim, p.slopes_batch = w.slopes_batch;
  p.page_size = w.page_size, p.capacity = w.capacity, p.cache_length = w.cache_length, p.appended = w.appended;
  p.rotary_dim = w.rotary_dim, p.rotary_interleaved = w.rotary_interleaved, p.rotary_fixed = w.rotary_fixed;
  p.bias_bool = w.bias_bool, p.splits = w.splits, p.split_keys = w.split_keys;
  return p;
}
}  // namespace fa
