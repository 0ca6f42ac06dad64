// describe(), arrays and options: q, k, v and where their rows are, then scale, masks, dropout, slopes, bias, sink.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "core/validate.h"

namespace fa {
// A scale this small or not positive is applied before the maximum is taken: hidden() * scale would no longer lie far below all scores.
constexpr double SMALLEST_FOLDED_SCALE = 1e-6;

// q, cu_rows: sizes and strides
void Check::arrays() {
  const Tensor& q = need(Role::q);
  ParamsT<double>& x = p.params;
  p.dtype = q.dtype;
  float_dtype(Role::q);
  if (packed()) p.needs |= VARLEN;
  if (!packed() && has(Role::cu_keys))
    bad(Kind::type, name(Role::cu_rows), text("expected an array together with ", name(Role::cu_keys), ", found none"));
  rank(Role::q, packed() ? 3 : 4, packed() ? "(total_q, heads, head_dim)" : "(batch, seqlen_q, heads, head_dim)");
  last_contiguous(Role::q);
  if (packed()) {
    dtype(Role::cu_rows, DType::i32);
    rank(Role::cu_rows, 1, "(batch + 1,)");
    if (at(Role::cu_rows).shape[0] < 1) bad_value(Role::cu_rows, "expected batch + 1 entries, found 0");
    contiguous(Role::cu_rows);
  }
  const int64_t batch = packed() ? at(Role::cu_rows).shape[0] - 1 : q.shape[0];
  const int64_t heads = q.shape[q.rank - 2], dim = q.shape[q.rank - 1];
  head_count(Role::q, batch, heads);
  head_dim(Role::q, dim);
  p.max_rows = packed() ? call.options.max_rows : q.shape[1];
  if (packed()) {
    if (p.max_rows < 0) bad(Kind::value, max_seqlen_name(call, Role::q), text("expected 0 or more, found ", p.max_rows));
    p.max_rows = std::min(p.max_rows, q.shape[0]);
  }
  length(Role::q, p.max_rows, "rows a sequence");
  p.total_rows = packed() ? q.shape[0] : batch * q.shape[1];
  x.batch = static_cast<int>(batch);
  x.heads = static_cast<int>(heads);
  x.dim = static_cast<int>(dim);
  x.q = strides(Role::q, packed());
  x.lse_batch = packed() ? 0 : heads * q.shape[1];
  x.lse_head = packed() ? q.shape[0] : q.shape[1];
  keys_and_values();
}

void Check::keys_and_values() {
  const Tensor &k = need(Role::k), &v = need(Role::v);
  ParamsT<double>& x = p.params;
  const bool paged = has(Role::pages), packed_keys = packed() && !paged;
  same_dtype(Role::k);
  same_dtype(Role::v);
  const char* axes = paged         ? "(pages, page_size, heads_k, head_dim)"
                     : packed_keys ? "(total_k, heads_k, head_dim)"
                                   : "(batch, seqlen_k, heads_k, head_dim)";
  for (Role r : {Role::k, Role::v}) {
    rank(r, packed_keys ? 3 : 4, axes);
    last_contiguous(r);
  }
  const int head_axis = k.rank - 2, dim_axis = k.rank - 1;
  const int64_t kv_heads = k.shape[head_axis];
  if (k.shape[dim_axis] != x.dim)
    bad_value(Role::k, text("expected the head dim ", x.dim, " of ", name(Role::q), ", found ", k.shape[dim_axis], " (shape ",
                            shape_text(k), "). Head dimensions must match"));
  if (kv_heads < 1 || x.heads % kv_heads)
    bad_value(Role::k, text("expected a head count by which the ", x.heads, " heads of ", name(Role::q), " are divisible, found ", kv_heads,
                            " (shape ", shape_text(k), ")"));
  for (int i = 0; i < dim_axis; i++) axis(Role::v, i, k.shape[i], "as the keys");
  head_dim(Role::v, v.shape[dim_axis]);
  x.kv_heads = static_cast<int>(kv_heads);
  x.group = x.heads / x.kv_heads;
  x.value_dim = static_cast<int>(v.shape[dim_axis]);
  if (x.value_dim != x.dim) p.needs |= VALUE_DIM;
  x.k = strides(Role::k, packed_keys);
  x.v = strides(Role::v, packed_keys);
  if (packed()) {
    if (has(Role::cu_keys) || !paged) {
      need(Role::cu_keys);
      int_vector(Role::cu_keys, int64_t{x.batch} + 1, "(batch + 1,)");
    } else if (!has(Role::used_keys)) {
      bad_value(Role::cu_keys, "expected cu_seqlens_k or seqused_k with block_table, found neither");
    }
    p.max_keys = call.options.max_keys;
    if (p.max_keys < 0) bad(Kind::value, max_seqlen_name(call, Role::k), text("expected 0 or more, found ", p.max_keys));
    if (!paged) p.max_keys = std::min(p.max_keys, k.shape[0]);
  } else {
    if (!paged && !has(Role::cache_rows)) axis(Role::k, 0, x.batch, "the batch of q");
    p.max_keys = k.shape[1];
  }
  p.total_keys = packed_keys ? k.shape[0] : k.shape[0] * k.shape[1];
  cache();
  length(Role::k, p.max_keys, "keys a sequence");
}

// lengths, cache_rows, leftpad, pages: where a sequence's keys are
void Check::cache() {
  const Tensor& k = at(Role::k);
  ParamsT<double>& x = p.params;
  const std::optional<int64_t>& given_length = call.options.cache_length;
  if (packed())
    for (Role r : {Role::lengths, Role::cache_rows})
      if (has(r)) bad_value(r, "expected none with cu_seqlens_q, found one");
  if (packed() && given_length) bad_value(Role::lengths, "expected none with cu_seqlens_q, found one");
  x.cache_length = -1;
  x.capacity = packed() ? 0 : static_cast<int>(std::min(k.shape[1], MAX_LENGTH));
  if (has(Role::pages)) {
    const Tensor& pages = at(Role::pages);
    p.needs |= PAGED;
    dtype(Role::pages, DType::i32);
    rank(Role::pages, 2, "(batch, max_pages)");
    axis(Role::pages, 0, x.batch, "the batch");
    last_contiguous(Role::pages);
    if (k.shape[1] < 1) bad_value(Role::k, text("expected pages of at least one key, found shape ", shape_text(k)));
    if (has(Role::cache_rows)) bad_value(Role::cache_rows, "expected none together with block_table, found one");
    const int64_t size = k.shape[1], count = pages.shape[1];
    if (size > MAX_LENGTH || count > MAX_LENGTH / size)
      bad_value(Role::pages, text("expected at most ", MAX_LENGTH, " keys a sequence, found ", count, " pages of ", size, " keys"));
    x.page_size = static_cast<int>(size);
    x.pages_batch = pages.stride[0];
    x.capacity = static_cast<int>(count * size);
    if (!packed()) p.max_keys = x.capacity;
  }
  for (Role r : {Role::lengths, Role::cache_rows, Role::leftpad})
    if (has(r)) {
      p.needs |= CACHED;
      int_vector(r, x.batch, "(batch,)");
    }
  if (given_length && !has(Role::lengths)) {
    p.needs |= CACHED;
    if (*given_length < 0 || (has(Role::k) && *given_length > x.capacity))
      bad_value(Role::lengths, text("expected 0 to ", x.capacity, ", the capacity of the cache, found ", *given_length));
    x.cache_length = static_cast<int>(*given_length);
  }
}

// scale, softcap, mask
void Check::options() {
  const Options& o = call.options;
  ParamsT<double>& x = p.params;
  x.score.scale = o.scale ? *o.scale : 1.0 / std::sqrt(static_cast<double>(x.dim));
  if (!(std::abs(x.score.scale) <= FLT_MAX))
    bad(Kind::value, "softmax_scale", text("expected a finite float32 number, found ", x.score.scale));
  if (!(o.softcap == 0 || (o.softcap >= FLT_MIN && o.softcap <= FLT_MAX)))
    bad(Kind::value, "softcap", text("expected 0 (off) or a positive float32 number, found ", o.softcap));
  x.score.softcap = o.softcap;
  if (o.softcap > 0) p.features |= SOFTCAP;
  if (o.left < -1 || o.right < -1)
    bad(Kind::value, "window_size", text("expected (left, right) of -1 (unlimited) or more, found (", o.left, ", ", o.right, ")"));
  if (o.chunk < 0 || o.chunk > MAX_LENGTH)
    bad(Kind::value, "attention_chunk", text("expected 0 (off) to ", MAX_LENGTH, ", found ", o.chunk));
  const int64_t limit = no_limit();
  Mask& m = x.mask;
  m.rows = static_cast<int>(p.max_rows);
  m.keys = static_cast<int>(p.max_keys);
  m.left = static_cast<int>(o.left < 0 ? limit : std::min(o.left, limit));
  m.right = static_cast<int>(o.causal ? 0 : o.right < 0 ? limit : std::min(o.right, limit));
  m.chunk = static_cast<int>(o.chunk);
  if (m.left < limit || (m.right < limit && m.right != 0)) p.needs |= WINDOW;
  if (m.chunk) p.needs |= CHUNK;
  alignment();
  dropout();
  if (o.deterministic) p.needs |= DETERMINISTIC;
  if (o.splits < 0 || o.splits > MAX_SPLITS)
    bad(Kind::value, "num_splits", text("expected 0 (chosen here) to ", MAX_SPLITS, ", found ", o.splits));
  p.splits = o.splits;
}

// q_offset, k_offset
void Check::alignment() {
  const Options& o = call.options;
  ParamsT<double>& x = p.params;
  x.aligned = 1;
  x.mask.shift = x.mask.keys - x.mask.rows;
  if (!o.has_offsets) return;
  p.needs |= OFFSETS;
  if (packed()) bad(Kind::value, "q_offset", "expected no offsets with cu_seqlens_q, found some");
  for (const auto& [value, argument] : {std::pair{o.q_offset, "q_offset"}, std::pair{o.k_offset, "k_offset"}})
    if (value < -MAX_LENGTH || value > MAX_LENGTH)
      bad(Kind::value, argument, text("expected a position within +-", MAX_LENGTH, ", found ", value));
  // further apart, a window that is open would end at no_limit()
  if (std::abs(o.q_offset - o.k_offset) > MAX_LENGTH)
    bad(Kind::value, "q_offset", text("expected at most ", MAX_LENGTH, " from k_offset, found ", o.q_offset, " and ", o.k_offset));
  x.aligned = 0;
  x.q_offset = static_cast<int>(o.q_offset);
  x.k_offset = static_cast<int>(o.k_offset);
  x.mask.shift = x.q_offset - x.k_offset;
}

void Check::dropout() {
  const double drop = call.options.dropout;
  ParamsT<double>& x = p.params;
  if (!(drop >= 0 && drop < 1)) bad(Kind::value, "dropout_p", text("expected a probability in [0, 1), found ", drop));
  x.keep_scale = 1;
  if (drop == 0) return;
  p.features |= DROPOUT;
  x.dropout.threshold = static_cast<unsigned>(std::floor((1 - drop) * 65536 + 0.5));
  x.keep_scale = 1 / (1 - drop);
  const Tensor& seed = need(Role::seed);
  p.seed_dtype = seed.dtype;
  if (seed.dtype != DType::u32 && seed.dtype != DType::i64)
    bad(Kind::type, name(Role::seed), text("expected dtype int64 or uint32, found ", dtype_name(seed.dtype)));
  if (seed.rank != 1 || seed.shape[0] != (seed.dtype == DType::u32 ? 4 : 2))
    bad_value(Role::seed, text("expected int64 (2,) [seed, offset] or uint32 (4,), found ", dtype_name(seed.dtype), " ", shape_text(seed)));
  contiguous(Role::seed);
}

// slopes, bias, sink, used_rows, used_keys
void Check::extras() {
  if (has(Role::slopes)) slopes();
  if (has(Role::bias)) bias();
  if (has(Role::sink)) sink();
  for (Role r : {Role::used_rows, Role::used_keys})
    if (has(r)) {
      p.needs |= USED;
      int_vector(r, p.params.batch, "(batch,)");
      if (!packed() && (p.needs & (CACHED | PAGED))) bad_value(r, "expected none with a cache, found one");
    }
  if (p.params.score.scale < SMALLEST_FOLDED_SCALE && !(p.features & CHANGES_SCORE)) p.features |= NATURAL;
}

void Check::slopes() {
  const Tensor& s = at(Role::slopes);
  ParamsT<double>& x = p.params;
  p.features |= ALIBI;
  dtype(Role::slopes, DType::f32);
  const bool per_head = s.rank == 1 && s.shape[0] == x.heads, per_batch = s.rank == 2 && s.shape[0] == x.batch && s.shape[1] == x.heads;
  if (!per_head && !per_batch)
    bad_value(Role::slopes, text("expected shape (", x.heads, ",) or (", x.batch, ", ", x.heads, "), found ", shape_text(s)));
  contiguous(Role::slopes);
  x.slopes_batch = per_batch ? x.heads : 0;
}

void Check::bias() {
  const Tensor& s = at(Role::bias);
  ParamsT<double>& x = p.params;
  p.features |= BIAS;
  if (packed() || (p.needs & (CACHED | PAGED))) bad_value(Role::bias, "expected none with cu_seqlens_q or a cache, found one");
  if (!is_float(s.dtype) && s.dtype != DType::u8)
    bad(Kind::type, name(Role::bias), text("expected a bool or float array, found ", dtype_name(s.dtype)));
  if (s.dtype == DType::f64 && p.dtype != DType::f64)
    bad(Kind::type, name(Role::bias), text("expected at most float32 with ", dtype_name(p.dtype), " inputs, found float64"));
  const int64_t full[4] = {x.batch, x.heads, p.max_rows, p.max_keys};
  bool fits = s.rank <= 4;
  int64_t stride[4] = {}, dense[4] = {}, step = 1;
  for (int i = 3; i >= 0; i--) {
    const int axis = i - (4 - s.rank);
    p.bias_shape[i] = fits && axis >= 0 ? s.shape[axis] : 1;
    fits = fits && (p.bias_shape[i] == 1 || p.bias_shape[i] == full[i]);
    if (p.bias_shape[i] != 1) stride[i] = s.stride[axis], dense[i] = step;
    step *= p.bias_shape[i];
  }
  if (!fits) bad_value(Role::bias, text("expected a shape that broadcasts to ", shape_text(full, 4), ", found ", shape_text(s)));
  last_contiguous(Role::bias);
  p.bias_dtype = s.dtype;
  x.bias_bool = s.dtype == DType::u8;
  x.bias = BiasStrides{stride[0], stride[1], stride[2], stride[3]};
  x.dbias = BiasStrides{dense[0], dense[1], dense[2], dense[3]};
}

void Check::sink() {
  const Tensor& s = at(Role::sink);
  p.features |= SINK;
  if (!is_float(s.dtype)) bad(Kind::type, name(Role::sink), text("expected a float array, found ", dtype_name(s.dtype)));
  if (s.dtype == DType::f64 && p.dtype != DType::f64)
    bad(Kind::type, name(Role::sink), text("expected at most float32 with ", dtype_name(p.dtype), " inputs, found float64"));
  p.sink_dtype = s.dtype;
  shape(Role::sink, {p.params.heads});
  contiguous(Role::sink);
}
}  // namespace fa
