// describe(), passes: what forward, backward, append and merge need besides the arrays and options of an attention call.
#include <algorithm>

#include "core/validate.h"

namespace fa {
namespace {
// float32 is for partial results that will be merged; float64 has no use for it
bool may_be_out(DType out, DType inputs) { return out == inputs || (out == DType::f32 && inputs != DType::f64); }
std::string out_dtypes(DType inputs) {
  return text("expected dtype ", element_bytes(inputs) == 2 ? "float32 or " : "", dtype_name(inputs));
}
}  // namespace

// Arrays to be written that the caller brought: out, dq, dk, dv of any strides, the others contiguous. Each has memory of its own.
void Check::given_outputs() const {
  for (const Output& o : outputs_of(p, call)) {
    if (o.role == Role::probabilities) {
      int64_t elements = 1;
      for (const int64_t size : o.shape)
        if (__builtin_mul_overflow(elements, std::max<int64_t>(size, 1), &elements) || elements > MAX_ELEMENTS)
          bad_value(o.role, text("expected at most 2^40 elements, found shape ", shape_text(o.shape.data(), 4)));
    }
    if (!has(o.role)) continue;
    dtype(o.role, o.dtype);
    const Tensor& t = at(o.role);
    const int rank = static_cast<int>(o.shape.size());
    if (t.rank != rank || !std::equal(o.shape.begin(), o.shape.end(), t.shape))
      bad_value(o.role, text("expected shape ", shape_text(o.shape.data(), rank), ", found ", shape_text(t)));
    const Role turned = o.role == Role::rotated_q ? Role::q : o.role == Role::rotated_k ? Role::new_k : Role::COUNT;
    const bool strided = turned != Role::COUNT || o.role == Role::out || o.role == Role::dq || o.role == Role::dk || o.role == Role::dv;
    if (strided)
      writable(o.role);
    else
      contiguous(o.role);
    own_memory(o.role, turned);
  }
}

// The same array given twice is the mistake that happens; views that interleave (dq, dk, dv of one packed array) are right, and so is
// `source`, itself and not another view of its memory: what is computed from it element by element may take its place.
void Check::own_memory(Role r, Role source) const {
  const Tensor& t = at(r);
  if (t.data == nullptr || std::any_of(t.shape, t.shape + t.rank, [](int64_t size) { return size == 0; })) return;
  for (uint64_t left = p.given & ~bit(r); left != 0; left &= left - 1) {
    const Role other = static_cast<Role>(__builtin_ctzll(left));
    if (other == source && std::equal(t.stride, t.stride + t.rank, at(other).stride)) continue;
    if (at(other).data == t.data) bad_value(r, text("expected memory of its own, as writing needs, found that of ", name(other)));
  }
}

void Check::forward() {
  arrays();
  options();
  ParamsT<double>& x = p.params;
  if (has(Role::new_k) || has(Role::new_v) || has(Role::cos) || has(Role::sin)) {
    if (packed()) bad_value(has(Role::new_k) ? Role::new_k : Role::new_v, "expected none with cu_seqlens_q, found one");
    new_keys();
    x.appended = p.new_rows;
  }
  extras();
  const DType out = call.options.out_dtype;
  if (out != DType::none && !may_be_out(out, p.dtype)) bad(Kind::type, "out_dtype", text(out_dtypes(p.dtype), ", found ", dtype_name(out)));
  p.out_dtype = out == DType::none ? p.dtype : out;
  if (p.out_dtype != p.dtype) p.needs |= OUT_FLOAT;
  if (!(call.options.wants & bit(Role::out))) p.needs |= LSE;
  p.wants = bit(Role::out) | bit(Role::lse) | ((call.options.wants | p.given) & bit(Role::probabilities));
  x.out = Strides{packed() ? 0 : p.max_rows * x.heads * x.value_dim, int64_t{x.heads} * x.value_dim, x.value_dim};
  if (p.wants & (p.given | bit(Role::probabilities))) given_outputs();
  if (has(Role::out)) x.out = strides(Role::out, packed());
}

void Check::backward() {
  arrays();
  options();
  extras();
  ParamsT<double>& x = p.params;
  if (p.needs & (CACHED | PAGED))
    bad(Kind::unsupported, name(Role::k), "expected plain keys and values, found a cache: there is no backward through caches");
  for (Role r : {Role::dout, Role::out, Role::lse}) need(r);
  p.out_dtype = at(Role::out).dtype;
  if (!may_be_out(p.out_dtype, p.dtype))
    bad(is_float(p.out_dtype) ? Kind::value : Kind::type, name(Role::out), text(out_dtypes(p.dtype), ", found ", dtype_name(p.out_dtype)));
  if (p.out_dtype != p.dtype) p.needs |= OUT_FLOAT;
  same_dtype(Role::dout);
  const uint64_t extra = bit(Role::delta) | bit(Role::dbias) | bit(Role::dsink);
  p.wants = bit(Role::dq) | bit(Role::dk) | bit(Role::dv) | ((call.options.wants | p.given) & extra);
  if (p.wanted(Role::dbias) && !has(Role::bias)) bad_value(Role::dbias, "expected attn_bias for its gradient, found none");
  if (p.wanted(Role::dsink) && !has(Role::sink)) bad_value(Role::dsink, "expected learnable_sink for its gradient, found none");
  if (p.wanted(Role::dbias) && x.bias_bool) {
    if (has(Role::dbias)) bad_value(Role::dbias, "expected a float attn_bias for its gradient, found a bool one");
    p.wants &= ~bit(Role::dbias);
  }
  for (Role r : {Role::dout, Role::out}) {
    if (packed())
      shape(r, {p.total_rows, x.heads, x.value_dim});
    else
      shape(r, {x.batch, p.max_rows, x.heads, x.value_dim});
    last_contiguous(r);
  }
  for (Role r : {Role::lse, Role::dlse})
    if (has(r)) {
      dtype(r, real_of(p.dtype));
      if (packed())
        shape(r, {x.heads, p.total_rows});
      else
        shape(r, {x.batch, x.heads, p.max_rows});
      contiguous(r);
    }
  x.out = strides(Role::out, packed());
  x.dout = strides(Role::dout, packed());
  const int64_t rows = packed() ? 0 : p.max_rows, keys = packed() ? 0 : p.max_keys, h = x.heads, hk = x.kv_heads;
  x.dq = Strides{rows * h * x.dim, h * x.dim, x.dim};
  x.dk = Strides{keys * hk * x.dim, hk * x.dim, x.dim};
  x.dv = Strides{keys * hk * x.value_dim, hk * x.value_dim, x.value_dim};
  if (p.wants & p.given) given_outputs();
  if (has(Role::dq)) x.dq = strides(Role::dq, packed());
  if (has(Role::dk)) x.dk = strides(Role::dk, packed());
  if (has(Role::dv)) x.dv = strides(Role::dv, packed());
}

// Alone, a pass of its own: sizes come from the new keys; caches and queries are checked against them.
void Check::append() {
  ParamsT<double>& x = p.params;
  const Tensor &k = need(Role::new_k), &v = need(Role::new_v);
  p.dtype = p.out_dtype = k.dtype;
  float_dtype(Role::new_k);
  for (Role r : {Role::new_k, Role::new_v}) rank(r, 4, "(batch, seqlen_new, heads_k, head_dim)");
  head_count(Role::new_k, k.shape[0], k.shape[2]);
  head_dim(Role::new_k, k.shape[3]);
  head_dim(Role::new_v, v.shape[3]);
  x.batch = static_cast<int>(k.shape[0]);
  x.heads = x.kv_heads = static_cast<int>(k.shape[2]);
  x.group = 1;
  x.dim = static_cast<int>(k.shape[3]);
  x.value_dim = static_cast<int>(v.shape[3]);
  if (has(Role::q)) {
    const Tensor& q = at(Role::q);
    same_dtype(Role::q);
    rank(Role::q, 4, "(batch, seqlen_q, heads, head_dim)");
    last_contiguous(Role::q);
    axis(Role::q, 0, x.batch, "the batch of the new keys");
    axis(Role::q, 3, x.dim, "the head dim of the new keys");
    head_count(Role::q, q.shape[0], q.shape[2]);
    length(Role::q, q.shape[1], "rows a sequence");
    x.heads = static_cast<int>(q.shape[2]);
    p.max_rows = q.shape[1];
    x.q = strides(Role::q, false);
  }
  if (has(Role::k) || has(Role::v)) {
    const Tensor& cache_k = need(Role::k);
    need(Role::v);
    for (Role r : {Role::k, Role::v}) {
      same_dtype(r);
      rank(r, 4, has(Role::pages) ? "(pages, page_size, heads_k, head_dim)" : "(batch, seqlen_k, heads_k, head_dim)");
      axis(r, 2, x.kv_heads, "the heads of the new keys");
    }
    axis(Role::k, 3, x.dim, "the head dim of the new keys");
    axis(Role::v, 3, x.value_dim, "the head dim of the new values");
    if (!has(Role::pages) && !has(Role::cache_rows)) axis(Role::k, 0, x.batch, "the batch of the new keys");
    for (int i = 0; i < 2; i++) axis(Role::v, i, cache_k.shape[i], "as the keys");
    p.max_keys = cache_k.shape[1];
    x.k = strides(Role::k, false);
    x.v = strides(Role::v, false);
    cache();
    length(Role::k, p.max_keys, "keys a sequence");
  } else {
    x.cache_length = -1;
    if (has(Role::lengths)) int_vector(Role::lengths, x.batch, "(batch,)");
    if (const std::optional<int64_t>& given = call.options.cache_length; given && !has(Role::lengths)) {
      if (*given < 0 || *given > MAX_LENGTH) bad_value(Role::lengths, text("expected 0 to ", MAX_LENGTH, ", found ", *given));
      x.cache_length = static_cast<int>(*given);
    }
  }
  new_keys();
  p.wants = (call.options.wants | p.given) & (bit(Role::rotated_q) | bit(Role::rotated_k));
  if (p.wanted(Role::rotated_q)) need(Role::q);
  given_outputs();
  const int64_t rows = p.max_rows, news = p.new_rows;
  x.dq = has(Role::rotated_q) ? strides(Role::rotated_q, false) : Strides{rows * x.heads * x.dim, int64_t{x.heads} * x.dim, x.dim};
  x.dk = has(Role::rotated_k) ? strides(Role::rotated_k, false) : Strides{news * x.kv_heads * x.dim, int64_t{x.kv_heads} * x.dim, x.dim};
}

// new_k, new_v and the rotary tables, of an append or of a forward call that brings them; the caches are written
void Check::new_keys() {
  ParamsT<double>& x = p.params;
  const Tensor& k = need(Role::new_k);
  need(Role::new_v);
  for (Role r : {Role::new_k, Role::new_v}) {
    same_dtype(r);
    rank(r, 4, "(batch, seqlen_new, heads_k, head_dim)");
    last_contiguous(r);
  }
  shape(Role::new_k, {x.batch, k.shape[1], x.kv_heads, x.dim});
  shape(Role::new_v, {x.batch, k.shape[1], x.kv_heads, x.value_dim});
  length(Role::new_k, k.shape[1], "new keys");
  if (has(Role::k))
    for (Role r : {Role::k, Role::v}) {
      writable(r);
      own_memory(r);
    }
  if (!has(Role::lengths) && x.cache_length < 0) bad_value(Role::lengths, "expected the lengths before the new keys, found none");
  p.new_rows = static_cast<int>(k.shape[1]);
  p.needs |= CACHED;
  x.new_k = strides(Role::new_k, false);
  x.new_v = strides(Role::new_v, false);
  if (has(Role::cos) || has(Role::sin)) rotary();
}

void Check::rotary() {
  ParamsT<double>& x = p.params;
  const Tensor& cos = need(Role::cos);
  need(Role::sin);
  for (Role r : {Role::cos, Role::sin}) {
    same_dtype(r);
    rank(r, 2, "(positions, rotary_dim / 2)");
    contiguous(r);
  }
  if (cos.shape[1] < 1 || cos.shape[1] * 2 > x.dim)
    bad_value(Role::cos, text("expected 1 to head_dim / 2 = ", x.dim / 2, " columns, found ", cos.shape[1]));
  shape(Role::sin, {cos.shape[0], cos.shape[1]});
  x.rotary_dim = static_cast<int>(2 * cos.shape[1]);
  x.rotary_interleaved = call.options.rotary_interleaved;
  x.rotary_fixed = !(call.options.causal || call.options.left >= 0 || call.options.right >= 0);
  p.cos_positions = cos.shape[0];
}

// part_out (splits, batch, rows, heads, dim), part_lse (splits, batch, heads, rows)
void Check::merge() {
  ParamsT<double>& x = p.params;
  const Tensor& parts = need(Role::part_out);
  need(Role::part_lse);
  p.dtype = parts.dtype;
  float_dtype(Role::part_out);
  rank(Role::part_out, 5, "(splits, batch, seqlen, heads, head_dim)");
  const int64_t splits = parts.shape[0], batch = parts.shape[1], rows = parts.shape[2], heads = parts.shape[3], dim = parts.shape[4];
  dtype(Role::part_lse, real_of(p.dtype));
  shape(Role::part_lse, {splits, batch, heads, rows});
  if (splits < 1 || splits > MAX_SPLITS)
    bad_value(Role::part_out, text("expected 1 to ", MAX_SPLITS, " partial results, found shape ", shape_text(parts)));
  head_count(Role::part_out, batch, heads);
  head_dim(Role::part_out, dim);
  length(Role::part_out, rows, "rows a sequence");
  contiguous(Role::part_out);
  contiguous(Role::part_lse);
  p.splits = x.splits = static_cast<int>(splits);
  x.batch = static_cast<int>(batch);
  x.heads = x.kv_heads = static_cast<int>(heads);
  x.group = 1;
  x.dim = x.value_dim = static_cast<int>(dim);
  p.max_rows = rows;
  p.total_rows = rows * batch;
  x.mask.rows = static_cast<int>(rows);
  x.lse_batch = heads * rows;
  x.lse_head = rows;
  p.out_dtype = call.options.out_dtype == DType::none ? p.dtype : call.options.out_dtype;
  if (!is_float(p.out_dtype)) bad(Kind::type, "out_dtype", text("expected a float dtype, found ", dtype_name(p.out_dtype)));
  p.wants = bit(Role::out) | bit(Role::lse);
  x.out = Strides{rows * heads * dim, heads * dim, dim};
  given_outputs();
  if (has(Role::out)) x.out = strides(Role::out, false);
}

// What the call writes, from the Problem.
std::vector<Output> outputs_of(const Problem& p, const Call& call) {
  const ParamsT<double>& x = p.params;
  const DType real = real_of(p.dtype);
  const bool packed = p.has(Role::cu_rows);
  const std::vector<int64_t> lse =
      packed ? std::vector<int64_t>{x.heads, p.total_rows} : std::vector<int64_t>{x.batch, x.heads, p.max_rows};
  const auto like = [&](Role r) { return std::vector<int64_t>(call[r].shape, call[r].shape + call[r].rank); };
  std::vector<Output> result;
  switch (p.pass) {
    case Pass::forward: {
      std::vector<int64_t> out = like(Role::q);
      out.back() = x.value_dim;
      result = {{Role::out, p.out_dtype, out}, {Role::lse, real, lse}};
      if (p.wanted(Role::probabilities)) result.push_back({Role::probabilities, p.dtype, {x.batch, x.heads, p.max_rows, p.max_keys}});
      break;
    }
    case Pass::backward:
      result = {{Role::dq, p.dtype, like(Role::q)}, {Role::dk, p.dtype, like(Role::k)}, {Role::dv, p.dtype, like(Role::v)}};
      if (p.wanted(Role::dbias)) result.push_back({Role::dbias, p.bias_dtype, like(Role::bias)});
      if (p.wanted(Role::dsink)) result.push_back({Role::dsink, p.sink_dtype, like(Role::sink)});
      if (p.wanted(Role::delta)) result.push_back({Role::delta, real, lse});
      break;
    case Pass::append:
      if (p.wanted(Role::rotated_q)) result.push_back({Role::rotated_q, p.dtype, like(Role::q)});
      if (p.wanted(Role::rotated_k)) result.push_back({Role::rotated_k, p.dtype, like(Role::new_k)});
      break;
    case Pass::merge:
      result = {{Role::out, p.out_dtype, {x.batch, p.max_rows, x.heads, x.dim}}, {Role::lse, real, {x.batch, x.heads, p.max_rows}}};
      break;
  }
  return result;
}
}  // namespace fa
