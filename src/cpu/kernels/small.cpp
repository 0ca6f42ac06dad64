#include "cpu/kernels/small.h"

#include <cstring>
#include <type_traits>

#include "cpu/kernels/typed.h"
#include "cpu/tiles.h"
#include "semantics/rotary.h"
#include "semantics/softmax.h"

namespace fa::cpu::small {
namespace {
using Small = JobT<double>;
using Numbers = ParamsT<double>;
constexpr int LANES = 8;   // independent sums: enough for the compiler to make vectors of them
constexpr int BLOCK = 32;  // elements of a row that are summed over all parts at a time

template <class Real, class A, class B>
Real product(const A* a, const B* b, int n) {
  Real sum[LANES] = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    Real x[LANES], y[LANES];  // loops of their own: what widens 16 bits is then vector code too
    for (int c = 0; c < LANES; c++) x[c] = static_cast<Real>(widen(a[i + c]));
    for (int c = 0; c < LANES; c++) y[c] = static_cast<Real>(widen(b[i + c]));
    for (int c = 0; c < LANES; c++) sum[c] += x[c] * y[c];
  }
  for (; i < n; i++) sum[0] += static_cast<Real>(widen(a[i])) * static_cast<Real>(widen(b[i]));
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

template <class T, class Out, class Real>
void delta_rows(const Small& job, const Task& task) {
  const Numbers& p = job.params;
  const Sequence& s = job.sequences[task.sequence];
  for (int i = task.first; i < task.end; i++) {
    const Interval<int> keys = visible_keys(s.mask, i);
    for (int head = 0; head < p.heads; head++) {
      const Int64 at = s.lse_base + head * p.lse_head + i;
      const T* const dout = job.get<const T>(Role::dout) + row_offset(p.dout, s, i, head);
      const Out* const out = job.get<const Out>(Role::out) + row_offset(p.out, s, i, head);
      Real value = 0;
      // what a row that sees nothing holds in dout must not matter, not even a NaN
      if (job.get<const Real>(Role::lse)[at] > minus_infinity()) {
        if (keys.first < keys.end) value = product<Real>(dout, out, p.value_dim);
        if (job.has(Role::dlse)) value -= job.get<const Real>(Role::dlse)[at];
      }
      job.get<Real>(Role::delta)[at] = value;
    }
  }
}

// One row of one head: the first rotary_dim elements turn by the angle of `position`.
template <class T, class Real>
void rotate_row(const Small& job, T* to, const T* from, int position) {
  const Numbers& p = job.params;
  const int half = p.rotary_dim / 2;
  const Int64 at = static_cast<Int64>(position) * half;
  for (int t = 0; t < half; t++) {
    const int first = rotary_first(t, p.rotary_interleaved), second = rotary_second(t, p.rotary_dim, p.rotary_interleaved);
    const Real x = widen(from[first]), y = widen(from[second]);
    const Pair<Real> turned = rotate<Real>(x, y, widen(job.get<const T>(Role::cos)[at + t]), widen(job.get<const T>(Role::sin)[at + t]));
    to[first] = narrow_to<T>(turned.x);
    to[second] = narrow_to<T>(turned.y);
  }
  std::memcpy(to + p.rotary_dim, from + p.rotary_dim, sizeof(T) * static_cast<size_t>(p.dim - p.rotary_dim));
}

int length_before(const Small& job, int sequence) {
  if (job.has(Role::lengths)) return job.get<const int>(Role::lengths)[sequence];
  return job.params.cache_length;
}

// `cache` is a sequence whose key 0 is slot 0 of its cache: new keys go to slots, leftpad or not.
template <class T, class Real>
void append_keys(const Small& job, const Task& task) {
  const Numbers& p = job.params;
  Sequence cache = job.sequences[task.sequence];
  cache.key_base = 0;
  const int length = length_before(job, cache.index);
  for (int t = task.first; t < task.end; t++)
    for (int head = 0; head < p.kv_heads; head++) {
      const int position = length + t;
      const T* const new_k = job.get<const T>(Role::new_k) + offset_of(p.new_k, cache.index, t, head);
      const T* const new_v = job.get<const T>(Role::new_v) + offset_of(p.new_v, cache.index, t, head);
      if (job.has(Role::k)) {
        rotate_row<T, Real>(job, job.get<T>(Role::k) + key_offset(p.k, cache, p.page_size, position, head), new_k, position);
        std::memcpy(job.get<T>(Role::v) + key_offset(p.v, cache, p.page_size, position, head), new_v,
                    sizeof(T) * static_cast<size_t>(p.value_dim));
      }
      if (job.has(Role::rotated_k))
        rotate_row<T, Real>(job, job.get<T>(Role::rotated_k) + offset_of(p.dk, cache.index, t, head), new_k, position);
    }
}
template <class T, class Real>
void rotate_queries(const Small& job, const Task& task) {
  const Numbers& p = job.params;
  const Sequence& s = job.sequences[task.sequence];
  const int length = length_before(job, s.index);
  for (int i = task.first; i < task.end; i++)
    for (int head = 0; head < p.heads; head++)
      rotate_row<T, Real>(job, job.get<T>(Role::rotated_q) + row_offset(p.dq, s, i, head),
                          job.get<const T>(Role::q) + row_offset(p.q, s, i, head), length + (p.rotary_fixed ? 0 : i));
}

// An lse is a score in natural units.
template <class Real>
Real natural_unit() {
  return score_unit<NATURAL>(ScoreT<Real>{1, 0});
}
// What a row's parts weigh: their maximum and sum in log2 units. NaN counts as a number, -inf as no part at all.
template <class Real>
Softmax<Real> parts_softmax(const Real* lse, Int64 step, int parts) {
  const Real unit = natural_unit<Real>();
  Softmax<Real> state{Real(no_maximum()), 0};
  for (int c = 0; c < parts; c++)
    if (const Real x = lse[c * step]; x > minus_infinity()) state.max = max(x * unit, state.max);
  for (int c = 0; c < parts; c++)
    if (const Real x = lse[c * step]; !(x == minus_infinity())) state.sum += probability(x, unit, state.max);
  return state;
}

template <class T, class Out, class Real>
void merge_rows(const Small& job, const Task& task) {
  const Numbers& p = job.params;
  const Sequence& s = job.sequences[task.sequence];
  const int parts = p.split_keys > 0 ? max(1, divide_up(s.mask.keys, p.split_keys)) : p.splits;
  for (int i = task.first; i < task.end; i++) {
    const Int64 at = s.lse_base + task.head * p.lse_head + i;
    const Real* const lse = job.get<const Real>(Role::part_lse) + at;
    const T* const from = job.get<const T>(Role::part_out) + row_offset(p.q, s, i, task.head);
    Out* const to = job.get<Out>(Role::out) + row_offset(p.out, s, i, task.head);
    const Softmax<Real> state = parts_softmax(lse, job.part_rows, parts);
    const Real inverse = inverse_sum(state);
    for (int first = 0; first < p.value_dim; first += BLOCK) {
      const int n = min(BLOCK, p.value_dim - first);
      Real sum[BLOCK] = {};
      for (int c = 0; c < parts; c++) {
        const Real x = lse[c * job.part_rows];
        if (x == minus_infinity()) continue;
        const Real weight = probability(x, natural_unit<Real>(), state.max) * inverse;
        const T* const part = from + c * job.part_rows * p.value_dim + first;
        for (int t = 0; t < n; t++) sum[t] += weight * static_cast<Real>(widen(part[t]));
      }
      for (int t = 0; t < n; t++) to[first + t] = narrow_to<Out>(sum[t]);
    }
    if (job.has(Role::lse)) job.get<Real>(Role::lse)[at] = log_sum_exp(state);
  }
}

template <class T>
void sum_rows(const Small& job, const Task& task) {
  const Numbers& p = job.params;
  const Sequence& s = job.sequences[task.sequence];
  const int parts = backward_parts(s.mask.keys, p.split_keys);
  const Int64 step = static_cast<Int64>(p.heads) * p.dim;
  for (int i = task.first; i < task.end; i++)
    for (int head = 0; head < p.heads; head++) {
      const Int64 packed_row = s.batch * p.mask.rows + s.row_base + i;
      const float* const from = job.get<const float>(Role::part_out) + partial_offset(packed_row, 0, p.splits, head, p.heads, p.dim);
      T* const to = job.get<T>(Role::dq) + row_offset(p.dq, s, i, head);
      for (int first = 0; first < p.dim; first += BLOCK) {
        const int n = min(BLOCK, p.dim - first);
        float sum[BLOCK] = {};
        for (int c = 0; c < parts; c++)
          for (int t = 0; t < n; t++) sum[t] += from[c * step + first + t];
        for (int t = 0; t < n; t++) to[first + t] = narrow_to<T>(sum[t]);
      }
    }
}

template <class Real>
double sink_slope(const Small& job, int head) {
  const Real sink = static_cast<Real>(load_number(job.get<void>(Role::sink), job.sink_dtype, head));
  double sum = 0;
  for (int b = 0; b < job.sequence_count; b++) {
    const Sequence& s = job.sequences[b];
    const Int64 at = s.lse_base + head * job.params.lse_head;
    for (int i = 0; i < s.mask.rows; i++)
      sum += fa::sink_gradient(sink, job.get<const Real>(Role::lse)[at + i], job.get<const Real>(Role::delta)[at + i]);
  }
  return sum;
}

template <class T>
void fill_row(void* array, Int64 at, int n) {
  std::memset(static_cast<T*>(array) + at, 0, sizeof(T) * static_cast<size_t>(n));
}
void clear_row(void* array, DType dtype, Int64 at, int n) {
  with_type(dtype, [&](auto zero) { fill_row<decltype(zero)>(array, at, n); });
}
}  // namespace

void delta(const Small& job, const Task& task) {
  with_type(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 8) return delta_rows<T, T, T>(job, task);
    if (job.out_dtype == DType::f32) return delta_rows<T, float, float>(job, task);
    delta_rows<T, T, float>(job, task);
  });
}

void append(const Small& job, const Task& task) {
  with_type(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Real = std::conditional_t<sizeof(T) == 8, double, float>;
    if (task.part == 0) return append_keys<T, Real>(job, task);
    rotate_queries<T, Real>(job, task);
  });
}

void merge(const Small& job, const Task& task) {
  with_type(job.part_dtype, [&](auto part) {
    using T = decltype(part);
    using Real = std::conditional_t<sizeof(T) == 8, double, float>;
    with_type(job.out_dtype, [&](auto out) { merge_rows<T, decltype(out), Real>(job, task); });
  });
}

void sum_parts(const Small& job, const Task& task) {
  with_type(job.dtype, [&](auto zero) { sum_rows<decltype(zero)>(job, task); });
}

void sink_gradient(const Small& job, const Task& task) {
  with_real(job.dtype, [&](auto zero) {
    for (int head = task.first; head < task.end; head++)
      store_number(job.get<void>(Role::dsink), job.sink_dtype, head, sink_slope<decltype(zero)>(job, head));
  });
}

void clear(const Small& job, const Task& task) {
  const Numbers& p = job.params;
  const Sequence& s = job.sequences[task.sequence];
  if (task.part == 1) {
    for (int j = task.first; j < task.end; j++)
      for (int head = 0; head < p.kv_heads; head++) {
        clear_row(job.get<void>(Role::dk), job.dtype, key_offset(p.dk, s, 0, j, head), p.dim);
        clear_row(job.get<void>(Role::dv), job.dtype, key_offset(p.dv, s, 0, j, head), p.value_dim);
      }
    return;
  }
  for (int i = task.first; i < task.end; i++)
    for (int head = 0; head < p.heads; head++) {
      if (job.has(Role::dq))
        clear_row(job.get<void>(Role::dq), job.dtype, row_offset(p.dq, s, i, head), p.dim);
      else
        clear_row(job.get<void>(Role::out), job.out_dtype, row_offset(p.out, s, i, head), p.value_dim);
      const Int64 at = s.lse_base + head * p.lse_head + i;
      with_real(job.dtype, [&](auto zero) {
        using Real = decltype(zero);
        if (job.has(Role::delta)) job.get<Real>(Role::delta)[at] = 0;
        if (job.has(Role::lse) && !job.has(Role::dq)) job.get<Real>(Role::lse)[at] = minus_infinity();
      });
    }
}
}  // namespace fa::cpu::small
