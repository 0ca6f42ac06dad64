// Every way to break a call that the core refuses, as a table: the right call, the one change, and the error that must come.
#pragma once
#include <cmath>
#include <vector>

#include "calls.h"

namespace fa::calls {
struct Broken {
  Call (*base)();
  void (*change)(Call&);
  Error::Kind kind;
  const char* argument;  // what the message names
  const char* words;     // from "expected" on
};

// A contiguous view of another size; its memory is no longer looked at.
inline void resize(Call& c, Role role, std::initializer_list<int64_t> shape) { c[role] = tensor(c[role].data, c[role].dtype, shape); }
inline void drop(Call& c, Role role) { c[role] = Tensor{}; }

constexpr auto VALUE = Error::Kind::value, TYPE = Error::Kind::type;
constexpr int64_t HUGE_SIZE = int64_t{1} << 40;

inline std::vector<Broken> broken_arrays() {
  return {
      // any view
      {dense, [](Call& c) { c[Role::q].rank = 6; }, VALUE, "q", "expected at most 5 axes, found 6"},
      {dense, [](Call& c) { c[Role::q].rank = -1; }, VALUE, "q", "expected at most 5 axes, found -1"},
      {dense, [](Call& c) { resize(c, Role::q, {2, -1, 4, 8}); }, VALUE, "q", "expected sizes of 0 or more, found shape (2, -1, 4, 8)"},
      {dense, [](Call& c) { resize(c, Role::q, {HUGE_SIZE, HUGE_SIZE, 1, 1}); }, VALUE, "q", "expected at most 2^40 elements"},
      {dense, [](Call& c) { resize(c, Role::k, {INT64_MAX, 0, 2, 8}); }, VALUE, "k", "expected at most 2^40 elements"},
      {dense, [](Call& c) { resize(c, Role::k, {HUGE_SIZE, 0, HUGE_SIZE, 8}); }, VALUE, "k", "expected at most 2^40 elements"},
      {dense, [](Call& c) { c[Role::v].stride[1] = INT64_MAX; }, VALUE, "v", "expected strides inside the address space"},
      {dense, [](Call& c) { c[Role::v].stride[0] = INT64_MIN; }, VALUE, "v", "expected strides inside the address space"},
      {dense, [](Call& c) { c[Role::v].stride[1] = int64_t{1} << 56; }, VALUE, "v", "expected strides inside the address space"},
      {dense, [](Call& c) { c[Role::k].place.index = 1; }, VALUE, "k", "expected an array on the device of q, found one on another device"},
      {growing, [](Call& c) { c[Role::sin].place.kind = DeviceKind::cuda; }, VALUE, "rotary_sin", "expected an array on the device of q"},
      // q
      {dense, [](Call& c) { drop(c, Role::q); }, TYPE, "q", "expected an array, found none"},
      {dense, [](Call& c) { c[Role::q].dtype = DType::i32; }, TYPE, "q",
       "expected dtype float16, bfloat16, float32 or float64, found int32"},
      {dense, [](Call& c) { c[Role::q].rank = 3; }, VALUE, "q", "expected axes (batch, seqlen_q, heads, head_dim): must be 4D, found 3D"},
      {varlen, [](Call& c) { resize(c, Role::q, {1, 5, 4, 8}); }, VALUE, "q",
       "expected axes (total_q, heads, head_dim): must be 3D, found 4D"},
      {dense, [](Call& c) { c[Role::q].stride[3] = 2; }, VALUE, "q", "expected a contiguous last axis, found a stride of 2 elements"},
      {dense, [](Call& c) { resize(c, Role::q, {2, 5, 4, 0}); }, VALUE, "q", "expected a head dim of 1 to 512, found 0"},
      {dense, [](Call& c) { resize(c, Role::q, {2, 5, 4, 513}); }, VALUE, "q", "expected a head dim of 1 to 512, found 513"},
      {dense, [](Call& c) { resize(c, Role::q, {2, 5, 0, 8}); }, VALUE, "q", "expected at least one head, found shape (2, 5, 0, 8)"},
      {dense, [](Call& c) { resize(c, Role::q, {1 << 20, 1, 1 << 12, 8}); }, VALUE, "q",
       "expected batch * heads below 2^31, found 1048576 * 4096"},
      {dense, [](Call& c) { resize(c, Role::q, {0, 0, int64_t{1} << 32, 8}); }, VALUE, "q", "expected batch * heads below 2^31"},
      {dense, [](Call& c) { resize(c, Role::q, {1, (1 << 28) + 1, 1, 8}); }, VALUE, "q", "expected at most 268435456 rows a sequence"},
      // k and v
      {dense, [](Call& c) { drop(c, Role::k); }, TYPE, "k", "expected an array, found none"},
      {dense, [](Call& c) { drop(c, Role::v); }, TYPE, "v", "expected an array, found none"},
      {dense, [](Call& c) { c[Role::k].dtype = DType::f16; }, VALUE, "k", "expected dtype float32 as q, found float16"},
      {dense, [](Call& c) { c[Role::v].dtype = DType::u8; }, TYPE, "v", "expected dtype float32 as q, found bool"},
      {dense, [](Call& c) { c[Role::k].rank = 3; }, VALUE, "k", "expected axes (batch, seqlen_k, heads_k, head_dim): must be 4D"},
      {varlen, [](Call& c) { resize(c, Role::v, {1, 7, 2, 8}); }, VALUE, "v", "expected axes (total_k, heads_k, head_dim): must be 3D"},
      {paged_varlen, [](Call& c) { c[Role::v].rank = 3; }, VALUE, "v", "expected axes (pages, page_size, heads_k, head_dim): must be 4D"},
      {dense, [](Call& c) { c[Role::v].stride[3] = -1; }, VALUE, "v", "expected a contiguous last axis, found a stride of -1"},
      {dense, [](Call& c) { resize(c, Role::k, {2, 7, 2, 4}); }, VALUE, "k",
       "expected the head dim 8 of q, found 4 (shape (2, 7, 2, 4)). Head dimensions must match"},
      {dense, [](Call& c) { resize(c, Role::k, {2, 7, 3, 8}); }, VALUE, "k",
       "expected a head count by which the 4 heads of q are divisible, found 3 (shape (2, 7, 3, 8))"},
      {dense, [](Call& c) { resize(c, Role::k, {2, 7, 0, 8}); }, VALUE, "k",
       "expected a head count by which the 4 heads of q are divisible, found 0"},
      {dense, [](Call& c) { resize(c, Role::k, {2, 7, 8, 8}); }, VALUE, "k",
       "expected a head count by which the 4 heads of q are divisible, found 8"},
      {dense, [](Call& c) { resize(c, Role::v, {2, 6, 2, 8}); }, VALUE, "v", "expected 7 on axis 1 (as the keys), found 6"},
      {dense, [](Call& c) { resize(c, Role::v, {2, 7, 4, 8}); }, VALUE, "v", "expected 2 on axis 2 (as the keys), found 4"},
      {dense, [](Call& c) { resize(c, Role::v, {2, 7, 2, 0}); }, VALUE, "v", "expected a head dim of 1 to 512, found 0"},
      {dense, [](Call& c) { resize(c, Role::v, {2, 7, 2, 600}); }, VALUE, "v", "expected a head dim of 1 to 512, found 600"},
      {dense,
       [](Call& c) {
         for (Role r : {Role::k, Role::v}) resize(c, r, {3, 7, 2, 8});
       },
       VALUE, "k", "expected 2 on axis 0 (the batch of q), found 3"},
      {dense,
       [](Call& c) {
         for (Role r : {Role::k, Role::v}) resize(c, r, {2, (1 << 28) + 1, 2, 8});
       },
       VALUE, "k", "expected at most 268435456 keys a sequence, found 268435457"},
      // cu_rows, cu_keys and the maxima
      {varlen, [](Call& c) { c[Role::cu_rows].dtype = DType::i64; }, TYPE, "cu_seqlens_q", "expected dtype int32, found int64"},
      {varlen, [](Call& c) { resize(c, Role::cu_rows, {1, 3}); }, VALUE, "cu_seqlens_q",
       "expected axes (batch + 1,): must be 1D, found 2D"},
      {varlen, [](Call& c) { resize(c, Role::cu_rows, {0}); }, VALUE, "cu_seqlens_q", "expected batch + 1 entries, found 0"},
      {varlen, [](Call& c) { c[Role::cu_rows].stride[0] = 2; }, VALUE, "cu_seqlens_q",
       "expected a contiguous array, found a stride of 2 elements on axis 0"},
      {varlen, [](Call& c) { drop(c, Role::cu_rows); }, TYPE, "cu_seqlens_q", "expected an array together with cu_seqlens_k, found none"},
      {varlen, [](Call& c) { drop(c, Role::cu_keys); }, TYPE, "cu_seqlens_k", "expected an array, found none"},
      {varlen, [](Call& c) { resize(c, Role::cu_keys, {2}); }, VALUE, "cu_seqlens_k", "expected (batch + 1,) with 3 entries, found 2"},
      {varlen, [](Call& c) { c[Role::cu_keys].dtype = DType::f32; }, TYPE, "cu_seqlens_k", "expected dtype int32, found float32"},
      {varlen, [](Call& c) { c.options.max_rows = -1; }, VALUE, "max_seqlen_q", "expected 0 or more, found -1"},
      {varlen, [](Call& c) { c.options.max_keys = -7; }, VALUE, "max_seqlen_k", "expected 0 or more, found -7"},
      {paged_varlen, [](Call& c) { drop(c, Role::cu_keys); }, VALUE, "cu_seqlens_k",
       "expected cu_seqlens_k or seqused_k with block_table, found neither"},
      // caches
      {varlen, [](Call& c) { c[Role::lengths] = ints({1, 2}); }, VALUE, "cache_seqlens", "expected none with cu_seqlens_q, found one"},
      {varlen, [](Call& c) { c[Role::cache_rows] = ints({1, 0}); }, VALUE, "cache_batch_idx", "expected none with cu_seqlens_q, found one"},
      {varlen, [](Call& c) { c.options.cache_length = 0; }, VALUE, "cache_seqlens", "expected none with cu_seqlens_q, found one"},
      {paged, [](Call& c) { c[Role::pages].dtype = DType::i64; }, TYPE, "block_table", "expected dtype int32, found int64"},
      {paged, [](Call& c) { resize(c, Role::pages, {4}); }, VALUE, "block_table", "expected axes (batch, max_pages): must be 2D"},
      {paged, [](Call& c) { resize(c, Role::pages, {1, 2}); }, VALUE, "block_table", "expected 2 on axis 0 (the batch), found 1"},
      {paged, [](Call& c) { c[Role::pages].stride[1] = 3; }, VALUE, "block_table", "expected a contiguous last axis"},
      {paged,
       [](Call& c) {
         for (Role r : {Role::k, Role::v}) resize(c, r, {5, 0, 2, 8});
       },
       VALUE, "k_cache", "expected pages of at least one key"},
      {paged, [](Call& c) { c[Role::cache_rows] = ints({0, 1}); }, VALUE, "cache_batch_idx",
       "expected none together with block_table, found one"},
      {paged, [](Call& c) { resize(c, Role::pages, {2, 1 << 27}); }, VALUE, "block_table",
       "expected at most 268435456 keys a sequence, found 134217728 pages of 4 keys"},
      {cache, [](Call& c) { resize(c, Role::lengths, {3}); }, VALUE, "cache_seqlens", "expected (batch,) with 2 entries, found 3"},
      {cache, [](Call& c) { c[Role::cache_rows] = array(DType::i64, {2}); }, TYPE, "cache_batch_idx", "expected dtype int32, found int64"},
      {cache, [](Call& c) { c[Role::leftpad] = array(DType::i32, {2, 1}); }, VALUE, "cache_leftpad",
       "expected axes (batch,): must be 1D, found 2D"},
      {cache, [](Call& c) { drop(c, Role::lengths), c.options.cache_length = 8; }, VALUE, "cache_seqlens",
       "expected 0 to 7, the capacity of the cache, found 8"},
      {cache, [](Call& c) { drop(c, Role::lengths), c.options.cache_length = -1; }, VALUE, "cache_seqlens",
       "expected 0 to 7, the capacity of the cache, found -1"},
  };
}

inline std::vector<Broken> broken_options() {
  return {
      {dense, [](Call& c) { c.options.scale = NAN; }, VALUE, "softmax_scale", "expected a finite float32 number, found nan"},
      {dense, [](Call& c) { c.options.scale = -INFINITY; }, VALUE, "softmax_scale", "expected a finite float32 number, found -inf"},
      {dense, [](Call& c) { c.options.scale = 1e39; }, VALUE, "softmax_scale", "expected a finite float32 number, found 1e+39"},
      {dense, [](Call& c) { c.options.softcap = -1; }, VALUE, "softcap", "expected 0 (off) or a positive float32 number, found -1"},
      {dense, [](Call& c) { c.options.softcap = NAN; }, VALUE, "softcap", "expected 0 (off) or a positive float32 number, found nan"},
      {dense, [](Call& c) { c.options.softcap = INFINITY; }, VALUE, "softcap", "expected 0 (off) or a positive float32 number, found inf"},
      {dense, [](Call& c) { c.options.softcap = 1e300; }, VALUE, "softcap", "expected 0 (off) or a positive float32 number"},
      {dense, [](Call& c) { c.options.softcap = 1e-300; }, VALUE, "softcap", "expected 0 (off) or a positive float32 number"},
      {dense, [](Call& c) { c.options.left = -2; }, VALUE, "window_size",
       "expected (left, right) of -1 (unlimited) or more, found (-2, -1)"},
      {dense, [](Call& c) { c.options.right = INT64_MIN; }, VALUE, "window_size", "expected (left, right) of -1 (unlimited) or more"},
      {dense, [](Call& c) { c.options.chunk = -1; }, VALUE, "attention_chunk", "expected 0 (off) to 268435456, found -1"},
      {dense, [](Call& c) { c.options.chunk = INT64_MAX; }, VALUE, "attention_chunk", "expected 0 (off) to 268435456"},
      {dense, [](Call& c) { c.options.splits = -1; }, VALUE, "num_splits", "expected 0 (chosen here) to 4096, found -1"},
      {dense, [](Call& c) { c.options.splits = 4097; }, VALUE, "num_splits", "expected 0 (chosen here) to 4096, found 4097"},
      {varlen, [](Call& c) { c.options.has_offsets = true; }, VALUE, "q_offset", "expected no offsets with cu_seqlens_q, found some"},
      {dense, [](Call& c) { c.options.has_offsets = true, c.options.q_offset = INT64_MAX; }, VALUE, "q_offset",
       "expected a position within +-268435456"},
      {dense, [](Call& c) { c.options.has_offsets = true, c.options.k_offset = INT64_MIN; }, VALUE, "k_offset",
       "expected a position within +-268435456"},
      {dense, [](Call& c) { c.options.has_offsets = true, c.options.q_offset = 1 << 28, c.options.k_offset = -1; }, VALUE, "q_offset",
       "expected at most 268435456 from k_offset, found 268435456 and -1"},
      {dense, [](Call& c) { c.options.dropout = 1; }, VALUE, "dropout_p", "expected a probability in [0, 1), found 1"},
      {dense, [](Call& c) { c.options.dropout = -0.1; }, VALUE, "dropout_p", "expected a probability in [0, 1), found -0.1"},
      {dense, [](Call& c) { c.options.dropout = NAN; }, VALUE, "dropout_p", "expected a probability in [0, 1), found nan"},
      {dense, [](Call& c) { c.options.dropout = 0.1; }, TYPE, "rng_state", "expected an array, found none"},
      {dense, [](Call& c) { c.options.dropout = 0.1, c[Role::seed] = array(DType::f32, {4}); }, TYPE, "rng_state",
       "expected dtype int64 or uint32, found float32"},
      {dense, [](Call& c) { c.options.dropout = 0.1, c[Role::seed] = array(DType::u32, {2}); }, VALUE, "rng_state",
       "expected int64 (2,) [seed, offset] or uint32 (4,), found uint32 (2,)"},
      {dense, [](Call& c) { c.options.dropout = 0.1, c[Role::seed] = array(DType::i64, {4}); }, VALUE, "rng_state",
       "expected int64 (2,) [seed, offset] or uint32 (4,)"},
      {dense, [](Call& c) { c.options.dropout = 0.1, c[Role::seed] = array(DType::i64, {}); }, VALUE, "rng_state",
       "expected int64 (2,) [seed, offset] or uint32 (4,)"},
      {dense, [](Call& c) { c.options.dropout = 0.1, c[Role::seed] = array(DType::i64, {2}), c[Role::seed].stride[0] = -1; }, VALUE,
       "rng_state", "expected a contiguous array"},
      {dense, [](Call& c) { c.options.out_dtype = DType::f16; }, TYPE, "out_dtype", "expected dtype float32, found float16"},
      {[] { return dense_of(DType::f64); }, [](Call& c) { c.options.out_dtype = DType::f32; }, TYPE, "out_dtype",
       "expected dtype float64, found float32"},
      // extras
      {dense, [](Call& c) { c[Role::slopes] = array(DType::f16, {4}); }, TYPE, "alibi_slopes", "expected dtype float32, found float16"},
      {dense, [](Call& c) { c[Role::slopes] = array(DType::f32, {2}); }, VALUE, "alibi_slopes",
       "expected shape (4,) or (2, 4), found (2,)"},
      {dense, [](Call& c) { c[Role::slopes] = array(DType::f32, {4, 2}); }, VALUE, "alibi_slopes",
       "expected shape (4,) or (2, 4), found (4, 2)"},
      {dense, [](Call& c) { c[Role::slopes] = array(DType::f32, {4}), c[Role::slopes].stride[0] = 0; }, VALUE, "alibi_slopes",
       "expected a contiguous array"},
      {varlen, [](Call& c) { c[Role::bias] = array(DType::f32, {1}); }, VALUE, "attn_bias",
       "expected none with cu_seqlens_q or a cache, found one"},
      {cache, [](Call& c) { c[Role::bias] = array(DType::f32, {1}); }, VALUE, "attn_bias",
       "expected none with cu_seqlens_q or a cache, found one"},
      {dense, [](Call& c) { c[Role::bias] = array(DType::i32, {5, 7}); }, TYPE, "attn_bias", "expected a bool or float array, found int32"},
      {dense, [](Call& c) { c[Role::bias] = array(DType::f64, {5, 7}); }, TYPE, "attn_bias",
       "expected at most float32 with float32 inputs, found float64"},
      {dense, [](Call& c) { c[Role::bias] = array(DType::f32, {7, 5}); }, VALUE, "attn_bias",
       "expected a shape that broadcasts to (2, 4, 5, 7), found (7, 5)"},
      {dense, [](Call& c) { c[Role::bias] = array(DType::f32, {1, 2, 4, 5, 7}); }, VALUE, "attn_bias",
       "expected a shape that broadcasts to (2, 4, 5, 7)"},
      {dense, [](Call& c) { c[Role::bias] = array(DType::f32, {5, 0}); }, VALUE, "attn_bias",
       "expected a shape that broadcasts to (2, 4, 5, 7)"},
      {dense, [](Call& c) { c[Role::bias] = array(DType::f32, {5, 7}), c[Role::bias].stride[1] = 0; }, VALUE, "attn_bias",
       "expected a contiguous last axis, found a stride of 0"},
      {dense, [](Call& c) { c[Role::sink] = array(DType::u32, {4}); }, TYPE, "learnable_sink", "expected a float array, found uint32"},
      {dense, [](Call& c) { c[Role::sink] = array(DType::f64, {4}); }, TYPE, "learnable_sink",
       "expected at most float32 with float32 inputs, found float64"},
      {dense, [](Call& c) { c[Role::sink] = array(DType::f32, {2}); }, VALUE, "learnable_sink", "expected shape (4,), found (2,)"},
      {dense, [](Call& c) { c[Role::sink] = array(DType::f32, {4}), c[Role::sink].stride[0] = 4; }, VALUE, "learnable_sink",
       "expected a contiguous array"},
      {dense, [](Call& c) { c[Role::used_rows] = array(DType::i32, {3}); }, VALUE, "seqused_q",
       "expected (batch,) with 2 entries, found 3"},
      {dense, [](Call& c) { c[Role::used_keys] = array(DType::i64, {2}); }, TYPE, "seqused_k", "expected dtype int32, found int64"},
      {cache, [](Call& c) { c[Role::used_keys] = ints({1, 1}); }, VALUE, "seqused_k", "expected none with a cache, found one"},
      {cache, [](Call& c) { c[Role::leftpad] = ints({1, 1}), c[Role::used_keys] = ints({1, 1}); }, VALUE, "seqused_k",
       "expected none with a cache, found one"},
      {paged, [](Call& c) { drop(c, Role::lengths), c[Role::used_rows] = ints({1, 1}); }, VALUE, "seqused_q",
       "expected none with a cache, found one"},
  };
}
}  // namespace fa::calls
