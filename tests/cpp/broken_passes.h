// The second half of the table of broken.h: what passes need besides arrays and options, and the values inside index arrays.
#pragma once
#include "broken.h"

namespace fa::calls {
inline Call varlen_backward() {
  Call c = varlen();
  c.function = "varlen_backward";
  c.pass = Pass::backward;
  c[Role::dout] = array(DType::f32, {ROWS, HEADS, DIM});
  c[Role::out] = array(DType::f32, {ROWS, HEADS, DIM});
  c[Role::lse] = array(DType::f32, {HEADS, ROWS});
  return c;
}
// only turns new keys and queries: the caches are elsewhere
inline Call turn() {
  Call c = append();
  c[Role::k] = c[Role::v] = Tensor{};
  return c;
}
inline void resize_cache(Call& c, std::initializer_list<int64_t> shape) {
  for (Role r : {Role::k, Role::v}) resize(c, r, shape);
}

inline std::vector<Broken> broken_passes() {
  return {
      // arrays to be written
      {dense, [](Call& c) { c[Role::out] = array(DType::f16, {2, 5, 4, 8}); }, TYPE, "out", "expected dtype float32, found float16"},
      {dense, [](Call& c) { c[Role::out] = array(DType::f32, {2, 5, 8, 4}); }, VALUE, "out",
       "expected shape (2, 5, 4, 8), found (2, 5, 8, 4)"},
      {dense, [](Call& c) { c[Role::lse] = array(DType::f32, {2, 5, 4}); }, VALUE, "softmax_lse",
       "expected shape (2, 4, 5), found (2, 5, 4)"},
      {dense, [](Call& c) { c[Role::lse] = array(DType::f32, {2, 4, 5}), c[Role::lse].stride[1] = 10; }, VALUE, "softmax_lse",
       "expected a contiguous array, found a stride of 10 elements on axis 1"},
      {dense, [](Call& c) { c[Role::out] = array(DType::f32, {2, 5, 4, 8}), c[Role::out].stride[0] = 0; }, VALUE, "out",
       "expected an element of its own for each index, as writing needs, found overlapping ones (stride 0 on axis 0"},
      {dense, [](Call& c) { c[Role::out] = array(DType::f32, {2, 5, 4, 8}), c[Role::out].stride[1] = 24; }, VALUE, "out",
       "expected an element of its own for each index, as writing needs, found overlapping ones (stride 24 on axis 1"},
      {dense, [](Call& c) { c[Role::out] = array(DType::f32, {2, 5, 4, 8}), c[Role::out].stride[0] = -8; }, VALUE, "out",
       "expected an element of its own for each index"},
      {dense, [](Call& c) { c[Role::out] = c[Role::q]; }, VALUE, "out", "expected memory of its own, as writing needs, found that of q"},
      {dense,
       [](Call& c) {
         resize(c, Role::q, {1, 1 << 20, 1, 1}), resize(c, Role::k, {1, 1 << 21, 1, 1}), resize(c, Role::v, {1, 1 << 21, 1, 1});
         c.options.wants = bit(Role::probabilities);
       },
       VALUE, "S_dmask", "expected at most 2^40 elements, found shape (1, 1, 1048576, 2097152)"},
      {backward, [](Call& c) { c[Role::dk] = c[Role::dv] = array(DType::f32, {2, 7, 2, 8}); }, VALUE, "dk",
       "expected memory of its own, as writing needs, found that of dv"},
      {backward, [](Call& c) { c[Role::dq] = array(DType::f32, {2, 5, 4, 4}); }, VALUE, "dq",
       "expected shape (2, 5, 4, 8), found (2, 5, 4, 4)"},
      {backward, [](Call& c) { c[Role::delta] = array(DType::f64, {2, 4, 5}); }, TYPE, "softmax_d",
       "expected dtype float32, found float64"},
      // backward
      {backward, [](Call& c) { drop(c, Role::dout); }, TYPE, "dout", "expected an array, found none"},
      {backward, [](Call& c) { drop(c, Role::out); }, TYPE, "out", "expected an array, found none"},
      {backward, [](Call& c) { drop(c, Role::lse); }, TYPE, "softmax_lse", "expected an array, found none"},
      {backward, [](Call& c) { c[Role::lengths] = ints({1, 1}); }, Error::Kind::unsupported, "k",
       "expected plain keys and values, found a cache"},
      {backward, [](Call& c) { c[Role::out].dtype = DType::f16; }, VALUE, "out", "expected dtype float32, found float16"},
      {backward, [](Call& c) { c[Role::out].dtype = DType::i32; }, TYPE, "out", "expected dtype float32, found int32"},
      {backward,
       [](Call& c) {
         for (Role r : {Role::q, Role::k, Role::v, Role::dout}) c[r].dtype = DType::bf16;
         c[Role::out].dtype = DType::f16;
       },
       VALUE, "out", "expected dtype float32 or bfloat16, found float16"},
      {backward,
       [](Call& c) {
         for (Role r : {Role::q, Role::k, Role::v, Role::dout}) c[r].dtype = DType::f64;
       },
       VALUE, "out", "expected dtype float64, found float32"},
      {backward, [](Call& c) { c[Role::dout].dtype = DType::f16; }, VALUE, "dout", "expected dtype float32 as q, found float16"},
      {backward, [](Call& c) { resize(c, Role::dout, {2, 5, 4, 7}); }, VALUE, "dout", "expected shape (2, 5, 4, 8), found (2, 5, 4, 7)"},
      {backward, [](Call& c) { c[Role::dout].stride[3] = 0; }, VALUE, "dout", "expected a contiguous last axis, found a stride of 0"},
      {varlen_backward, [](Call& c) { resize(c, Role::out, {6, 4, 8}); }, VALUE, "out", "expected shape (5, 4, 8), found (6, 4, 8)"},
      {backward, [](Call& c) { c[Role::lse].dtype = DType::f64; }, TYPE, "softmax_lse", "expected dtype float32, found float64"},
      {backward, [](Call& c) { resize(c, Role::lse, {2, 5, 4}); }, VALUE, "softmax_lse", "expected shape (2, 4, 5), found (2, 5, 4)"},
      {varlen_backward, [](Call& c) { resize(c, Role::lse, {2, 4, 5}); }, VALUE, "softmax_lse", "expected shape (4, 5), found (2, 4, 5)"},
      {backward, [](Call& c) { c[Role::dlse] = array(DType::f32, {2, 4, 6}); }, VALUE, "dlse", "expected shape (2, 4, 5), found (2, 4, 6)"},
      {backward, [](Call& c) { c[Role::dlse] = array(DType::f32, {2, 4, 5}), c[Role::dlse].stride[2] = 2; }, VALUE, "dlse",
       "expected a contiguous array"},
      {backward, [](Call& c) { c.options.wants = bit(Role::dbias); }, VALUE, "dbias", "expected attn_bias for its gradient, found none"},
      {backward, [](Call& c) { c[Role::dsink] = array(DType::f32, {4}); }, VALUE, "dsink",
       "expected learnable_sink for its gradient, found none"},
      {backward, [](Call& c) { c[Role::bias] = array(DType::u8, {5, 7}), c[Role::dbias] = array(DType::f32, {5, 7}); }, VALUE, "dbias",
       "expected a float attn_bias for its gradient, found a bool one"},
      // new keys, in a forward call
      {varlen, [](Call& c) { c[Role::new_k] = array(DType::f32, {2, 1, 2, 8}); }, VALUE, "k", "expected none with cu_seqlens_q, found one"},
      {growing, [](Call& c) { drop(c, Role::new_k); }, TYPE, "k", "expected an array, found none"},
      {growing, [](Call& c) { drop(c, Role::new_v); }, TYPE, "v", "expected an array, found none"},
      {growing, [](Call& c) { c[Role::new_k].dtype = DType::f16; }, VALUE, "k", "expected dtype float32 as q, found float16"},
      {growing, [](Call& c) { c[Role::new_v].rank = 3; }, VALUE, "v", "expected axes (batch, seqlen_new, heads_k, head_dim): must be 4D"},
      {growing, [](Call& c) { c[Role::new_k].stride[3] = 3; }, VALUE, "k", "expected a contiguous last axis"},
      {growing, [](Call& c) { resize(c, Role::new_k, {1, 2, 2, 8}); }, VALUE, "k", "expected shape (2, 2, 2, 8), found (1, 2, 2, 8)"},
      {growing, [](Call& c) { resize(c, Role::new_v, {2, 3, 2, 8}); }, VALUE, "v", "expected shape (2, 2, 2, 8), found (2, 3, 2, 8)"},
      {growing,
       [](Call& c) {
         for (Role r : {Role::new_k, Role::new_v}) resize(c, r, {2, (1 << 28) + 1, 2, 8});
       },
       VALUE, "k", "expected at most 268435456 new keys"},
      {growing, [](Call& c) { drop(c, Role::lengths); }, VALUE, "cache_seqlens", "expected the lengths before the new keys, found none"},
      {growing, [](Call& c) { c[Role::k].stride[1] = 0; }, VALUE, "k_cache", "expected an element of its own for each index"},
      {growing, [](Call& c) { c[Role::v].stride[0] = 16; }, VALUE, "v_cache", "expected an element of its own for each index"},
      {growing, [](Call& c) { c[Role::v] = c[Role::k]; }, VALUE, "k_cache",
       "expected memory of its own, as writing needs, found that of v_cache"},
      // rotary
      {growing, [](Call& c) { drop(c, Role::sin); }, TYPE, "rotary_sin", "expected an array, found none"},
      {growing, [](Call& c) { drop(c, Role::cos); }, TYPE, "rotary_cos", "expected an array, found none"},
      {growing, [](Call& c) { c[Role::cos].dtype = DType::f64; }, VALUE, "rotary_cos", "expected dtype float32 as q, found float64"},
      {growing, [](Call& c) { c[Role::sin].rank = 1; }, VALUE, "rotary_sin", "expected axes (positions, rotary_dim / 2): must be 2D"},
      {growing, [](Call& c) { c[Role::sin].stride[0] = 8; }, VALUE, "rotary_sin", "expected a contiguous array"},
      {growing,
       [](Call& c) {
         for (Role r : {Role::cos, Role::sin}) resize(c, r, {16, 5});
       },
       VALUE, "rotary_cos", "expected 1 to head_dim / 2 = 4 columns, found 5"},
      {growing,
       [](Call& c) {
         for (Role r : {Role::cos, Role::sin}) resize(c, r, {16, 0});
       },
       VALUE, "rotary_cos", "expected 1 to head_dim / 2 = 4 columns, found 0"},
      {growing, [](Call& c) { resize(c, Role::sin, {15, 4}); }, VALUE, "rotary_sin", "expected shape (16, 4), found (15, 4)"},
      // append alone
      {append, [](Call& c) { drop(c, Role::new_k); }, TYPE, "k", "expected an array, found none"},
      {append, [](Call& c) { c[Role::new_k].dtype = DType::i64; }, TYPE, "k",
       "expected dtype float16, bfloat16, float32 or float64, found int64"},
      {append, [](Call& c) { c[Role::new_k].rank = 2; }, VALUE, "k", "must be 4D"},
      {append, [](Call& c) { resize(c, Role::new_k, {2, 2, 0, 8}); }, VALUE, "k", "expected at least one head"},
      {append, [](Call& c) { resize(c, Role::new_k, {1 << 30, 0, 2, 8}); }, VALUE, "k", "expected batch * heads below 2^31"},
      {append, [](Call& c) { resize(c, Role::new_k, {2, 2, 2, 0}); }, VALUE, "k", "expected a head dim of 1 to 512, found 0"},
      {append, [](Call& c) { resize(c, Role::new_v, {2, 2, 2, 513}); }, VALUE, "v", "expected a head dim of 1 to 512, found 513"},
      {append, [](Call& c) { c[Role::q].dtype = DType::f16; }, VALUE, "q", "expected dtype float32 as k, found float16"},
      {append, [](Call& c) { c[Role::q].rank = 3; }, VALUE, "q", "must be 4D"},
      {append, [](Call& c) { resize(c, Role::q, {3, 5, 4, 8}); }, VALUE, "q", "expected 2 on axis 0 (the batch of the new keys), found 3"},
      {append, [](Call& c) { resize(c, Role::q, {2, 5, 4, 4}); }, VALUE, "q",
       "expected 8 on axis 3 (the head dim of the new keys), found 4"},
      {append, [](Call& c) { resize(c, Role::q, {2, 5, 0, 8}); }, VALUE, "q", "expected at least one head"},
      {append, [](Call& c) { resize(c, Role::q, {2, (1 << 28) + 1, 1, 8}); }, VALUE, "q", "expected at most 268435456 rows a sequence"},
      {append, [](Call& c) { drop(c, Role::k); }, TYPE, "k_cache", "expected an array, found none"},
      {append, [](Call& c) { drop(c, Role::v); }, TYPE, "v_cache", "expected an array, found none"},
      {append, [](Call& c) { c[Role::v].dtype = DType::bf16; }, VALUE, "v_cache", "expected dtype float32 as k, found bfloat16"},
      {append, [](Call& c) { c[Role::k].rank = 3; }, VALUE, "k_cache", "expected axes (batch, seqlen_k, heads_k, head_dim): must be 4D"},
      {append, [](Call& c) { resize_cache(c, {2, 7, 4, 8}); }, VALUE, "k_cache",
       "expected 2 on axis 2 (the heads of the new keys), found 4"},
      {append, [](Call& c) { resize_cache(c, {2, 7, 2, 9}); }, VALUE, "k_cache",
       "expected 8 on axis 3 (the head dim of the new keys), found 9"},
      {append, [](Call& c) { resize(c, Role::v, {2, 7, 2, 9}); }, VALUE, "v_cache",
       "expected 8 on axis 3 (the head dim of the new values), found 9"},
      {append, [](Call& c) { resize_cache(c, {1, 7, 2, 8}); }, VALUE, "k_cache",
       "expected 2 on axis 0 (the batch of the new keys), found 1"},
      {append, [](Call& c) { resize(c, Role::v, {2, 6, 2, 8}); }, VALUE, "v_cache", "expected 7 on axis 1 (as the keys), found 6"},
      {append, [](Call& c) { c[Role::rotated_q] = array(DType::f32, {2, 5, 2, 8}); }, VALUE, "rotated_q",
       "expected shape (2, 5, 4, 8), found (2, 5, 2, 8)"},
      {append, [](Call& c) { c[Role::rotated_q] = c[Role::q], c[Role::rotated_q].stride[1] = 64, c[Role::rotated_q].stride[0] = 320; },
       VALUE, "rotated_q", "expected memory of its own, as writing needs, found that of q"},
      {append, [](Call& c) { c[Role::rotated_k] = array(DType::f16, {2, 2, 2, 8}); }, TYPE, "rotated_k",
       "expected dtype float32, found float16"},
      {append, [](Call& c) { drop(c, Role::q); }, TYPE, "q", "expected an array, found none"},
      {turn, [](Call& c) { c[Role::lengths].dtype = DType::i64; }, TYPE, "cache_seqlens", "expected dtype int32, found int64"},
      {turn, [](Call& c) { drop(c, Role::lengths), c.options.cache_length = -5; }, VALUE, "cache_seqlens",
       "expected 0 to 268435456, found -5"},
      {turn, [](Call& c) { drop(c, Role::lengths), c.options.cache_length = INT64_MAX; }, VALUE, "cache_seqlens",
       "expected 0 to 268435456"},
      // merge
      {merge, [](Call& c) { drop(c, Role::part_out); }, TYPE, "out_partial", "expected an array, found none"},
      {merge, [](Call& c) { drop(c, Role::part_lse); }, TYPE, "lse_partial", "expected an array, found none"},
      {merge, [](Call& c) { c[Role::part_out].dtype = DType::u8; }, TYPE, "out_partial",
       "expected dtype float16, bfloat16, float32 or float64, found bool"},
      {merge, [](Call& c) { c[Role::part_out].rank = 4; }, VALUE, "out_partial",
       "expected axes (splits, batch, seqlen, heads, head_dim): must be 5D, found 4D"},
      {merge, [](Call& c) { c[Role::part_lse].dtype = DType::f16; }, TYPE, "lse_partial", "expected dtype float32, found float16"},
      {merge, [](Call& c) { resize(c, Role::part_lse, {3, 2, 5, 4}); }, VALUE, "lse_partial",
       "expected shape (3, 2, 4, 5), found (3, 2, 5, 4)"},
      {merge, [](Call& c) { resize(c, Role::part_out, {0, 2, 5, 4, 8}), resize(c, Role::part_lse, {0, 2, 4, 5}); }, VALUE, "out_partial",
       "expected 1 to 4096 partial results, found shape (0, 2, 5, 4, 8)"},
      {merge, [](Call& c) { resize(c, Role::part_out, {4097, 2, 5, 4, 8}), resize(c, Role::part_lse, {4097, 2, 4, 5}); }, VALUE,
       "out_partial", "expected 1 to 4096 partial results, found shape (4097, 2, 5, 4, 8)"},
      {merge, [](Call& c) { resize(c, Role::part_out, {3, 2, 5, 0, 8}), resize(c, Role::part_lse, {3, 2, 0, 5}); }, VALUE, "out_partial",
       "expected at least one head"},
      {merge, [](Call& c) { resize(c, Role::part_out, {3, 2, 5, 4, 600}); }, VALUE, "out_partial",
       "expected a head dim of 1 to 512, found 600"},
      {merge, [](Call& c) { resize(c, Role::part_out, {1, 1, (1 << 28) + 1, 1, 8}), resize(c, Role::part_lse, {1, 1, 1, (1 << 28) + 1}); },
       VALUE, "out_partial", "expected at most 268435456 rows a sequence"},
      {merge, [](Call& c) { c[Role::part_out].stride[2] = 64; }, VALUE, "out_partial",
       "expected a contiguous array, found a stride of 64 elements on axis 2"},
      {merge, [](Call& c) { c[Role::part_lse].stride[3] = 2; }, VALUE, "lse_partial", "expected a contiguous array"},
      {merge, [](Call& c) { c.options.out_dtype = DType::i32; }, TYPE, "out_dtype", "expected a float dtype, found int32"},
      {merge, [](Call& c) { c[Role::out] = array(DType::f32, {2, 4, 5, 8}); }, VALUE, "out",
       "expected shape (2, 5, 4, 8), found (2, 4, 5, 8)"},
      {merge, [](Call& c) { c[Role::lse] = array(DType::f32, {2, 5, 4}); }, VALUE, "softmax_lse",
       "expected shape (2, 4, 5), found (2, 5, 4)"},
  };
}

// describe() takes these; check_values() must not
inline std::vector<Broken> broken_values() {
  return {
      {dense, [](Call& c) { c[Role::v].data = nullptr; }, VALUE, "v", "expected an array with memory, found a null pointer"},
      {merge, [](Call& c) { c[Role::part_lse].data = nullptr; }, VALUE, "lse_partial",
       "expected an array with memory, found a null pointer"},
      {dense, [](Call& c) { c[Role::k].data = static_cast<char*>(c[Role::k].data) + 2; }, VALUE, "k",
       "expected memory aligned to its elements of 4 bytes, found address 0x"},
      {varlen, [](Call& c) { c[Role::cu_rows].data = static_cast<char*>(c[Role::cu_rows].data) + 1; }, VALUE, "cu_seqlens_q",
       "expected memory aligned to its elements of 4 bytes"},
      {varlen, [](Call& c) { c[Role::cu_rows] = ints({1, 2, 5}); }, VALUE, "cu_seqlens_q", "expected 0 first, found 1"},
      {varlen, [](Call& c) { c[Role::cu_keys] = ints({0, 8, 7}); }, VALUE, "cu_seqlens_k",
       "expected values that never decrease, found 8 then 7"},
      {varlen, [](Call& c) { c[Role::cu_keys] = ints({0, INT32_MAX, INT32_MIN}); }, VALUE, "cu_seqlens_k",
       "expected values that never decrease"},
      {varlen, [](Call& c) { c[Role::cu_rows] = ints({0, 3, 6}); }, VALUE, "cu_seqlens_q",
       "expected an end within the 5 packed rows, found 6"},
      {varlen, [](Call& c) { c[Role::cu_rows] = ints({0, 0, 9}), c.options.max_rows = 100; }, VALUE, "cu_seqlens_q",
       "expected an end within the 5 packed rows, found 9"},
      {varlen, [](Call& c) { c[Role::cu_keys] = ints({0, 0, 7}); }, VALUE, "max_seqlen_k",
       "expected at least 7, the longest sequence, found 4"},
      {varlen, [](Call& c) { c.options.max_rows = 2; }, VALUE, "max_seqlen_q", "expected at least 3, the longest sequence, found 2"},
      {varlen, [](Call& c) { c.function = "flash_attn_varlen_qkvpacked_func", c.options.max_rows = 0; }, VALUE, "max_seqlen",
       "expected at least 3, the longest sequence, found 0"},
      {varlen, [](Call& c) { c[Role::used_rows] = ints({2, 4}); }, VALUE, "seqused_q",
       "expected 0 to 3 (its rows), found 4 for sequence 1"},
      {dense, [](Call& c) { c[Role::used_rows] = ints({-1, 4}); }, VALUE, "seqused_q",
       "expected 0 to 5 (its rows), found -1 for sequence 0"},
      {dense, [](Call& c) { c[Role::used_keys] = ints({7, 8}); }, VALUE, "seqused_k", "expected 0 to 7 (its keys), found 8 for sequence 1"},
      {paged_varlen, [](Call& c) { drop(c, Role::cu_keys), c[Role::used_keys] = ints({8, 9}), c.options.max_keys = 20; }, VALUE,
       "seqused_k", "expected 0 to 8 (its keys), found 9 for sequence 1"},
      {varlen, [](Call& c) { c[Role::leftpad] = ints({0, 5}); }, VALUE, "cache_leftpad",
       "expected 0 to 4 (its keys), found 5 for sequence 1"},
      {cache, [](Call& c) { c[Role::leftpad] = ints({4, 0}); }, VALUE, "cache_leftpad",
       "expected 0 to 3 (its keys), found 4 for sequence 0"},
      {cache, [](Call& c) { c[Role::lengths] = ints({3, -1}); }, VALUE, "cache_seqlens",
       "expected 0 to 268435456, found -1 for sequence 1"},
      {turn, [](Call& c) { c[Role::lengths] = ints({3, INT32_MAX}); }, VALUE, "cache_seqlens",
       "expected 0 to 268435456, found 2147483647 for sequence 1"},
      {cache, [](Call& c) { c[Role::lengths] = ints({8, 1}); }, VALUE, "cache_seqlens",
       "expected at most 7 keys before 0 new ones in the capacity 7 of the cache, found 8 for sequence 0"},
      {growing, [](Call& c) { c[Role::lengths] = ints({5, 6}); }, VALUE, "cache_seqlens",
       "expected at most 5 keys before 2 new ones in the capacity 7 of the cache, found 6 for sequence 1"},
      {append, [](Call& c) { c[Role::lengths] = ints({6, 5}); }, VALUE, "cache_seqlens", "expected at most 5 keys before 2 new ones"},
      {growing, [](Call& c) { drop(c, Role::lengths), c.options.cache_length = 6; }, VALUE, "cache_seqlens",
       "expected at most 5 keys before 2 new ones"},
      {growing,
       [](Call& c) {
         for (Role r : {Role::cos, Role::sin}) resize(c, r, {5, 4});
       },
       VALUE, "rotary_cos", "expected at least 6 positions, found 5"},
      {growing,
       [](Call& c) {
         for (Role r : {Role::cos, Role::sin}) resize(c, r, {8, 4});
         c.options.causal = true;
       },
       VALUE, "rotary_cos", "expected at least 9 positions, found 8"},
      {cache, [](Call& c) { c[Role::cache_rows] = ints({0, 2}); }, VALUE, "cache_batch_idx", "expected rows of the cache, 0 to 1, found 2"},
      {cache, [](Call& c) { c[Role::cache_rows] = ints({-1, 1}); }, VALUE, "cache_batch_idx",
       "expected rows of the cache, 0 to 1, found -1"},
      {growing, [](Call& c) { c[Role::cache_rows] = ints({1, 1}); }, VALUE, "cache_batch_idx",
       "expected each cache row at most once when k is given, found 1 twice"},
      {paged, [](Call& c) { c[Role::pages] = paged_varlen()[Role::pages], static_cast<int32_t*>(c[Role::pages].data)[2] = 5; }, VALUE,
       "block_table", "expected pages 0 to 4, found 5 at (1, 0)"},
      {paged, [](Call& c) { static_cast<int32_t*>(c[Role::pages].data)[0] = -1; }, VALUE, "block_table",
       "expected pages 0 to 4, found -1 at (0, 0)"},
      {paged_varlen, [](Call& c) { c[Role::cu_keys] = ints({0, 3, 12}), c.options.max_keys = 9; }, VALUE, "block_table",
       "expected 3 pages for sequence 1 with 9 keys, found 2"},
  };
}
}  // namespace fa::calls
