#include "cpu/kernels/plain.h"

#include <numeric>
#include <type_traits>
#include <vector>

#include "cpu/kernels/typed.h"
#include "semantics/softmax.h"

namespace fa::cpu::plain {
namespace {
using Plain = JobT<double>;
using Numbers = ParamsT<double>;
template <class T>
using LseOf = std::conditional_t<sizeof(T) == 8, double, float>;

template <class T>
void widen_row(double* to, const T* from, int n) {
  for (int i = 0; i < n; i++) to[i] = static_cast<double>(widen(from[i]));
}
template <class T>
void narrow_row(T* to, const double* from, int n) {
  for (int i = 0; i < n; i++) to[i] = narrow_to<T>(from[i]);
}
template <class T>
double product(const double* a, const T* b, int n) {
  double sum[4] = {};  // four chains: one would wait for every addition
  int i = 0;
  for (; i + 4 <= n; i += 4)
    for (int c = 0; c < 4; c++) sum[c] += a[i + c] * static_cast<double>(widen(b[i + c]));
  for (; i < n; i++) sum[0] += a[i] * static_cast<double>(widen(b[i]));
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
template <class T>
void add_scaled(double* sum, double weight, const T* row, int n) {
  for (int i = 0; i < n; i++) sum[i] += weight * static_cast<double>(widen(row[i]));
}

// semantics' score<F> and its companions for features known only now
template <unsigned F>
struct Of {
  static double score(double dot, const ScoreT<double>& s, double slope, double distance, double bias) {
    return fa::score<F>(dot, s, slope, distance, bias);
  }
  static double unit(const ScoreT<double>& s) { return score_unit<F>(s); }
  static double score_slope(double dot, const ScoreT<double>& s) { return fa::score_slope<F>(dot, s); }
};
template <class Body>
auto with_features(unsigned features, const Body& body) {
  switch (features & (SOFTCAP | ALIBI | BIAS)) {
    case SOFTCAP: return body(Of<SOFTCAP>{});
    case ALIBI: return body(Of<ALIBI>{});
    case BIAS: return body(Of<BIAS>{});
    case SOFTCAP | ALIBI: return body(Of<SOFTCAP | ALIBI>{});
    case SOFTCAP | BIAS: return body(Of<SOFTCAP | BIAS>{});
    case ALIBI | BIAS: return body(Of<ALIBI | BIAS>{});
    case SOFTCAP | ALIBI | BIAS: return body(Of<SOFTCAP | ALIBI | BIAS>{});
    default: return (features & NATURAL) != 0 ? body(Of<NATURAL>{}) : body(Of<0>{});
  }
}

// Everything about one query head of one sequence that is not an array of rows.
class Head {
 public:
  Head(const Plain& job, const Sequence& sequence, int head) : job_(job), s_(sequence), head_(head) {
    if (job.has(Role::slopes)) slope_ = job.get<float>(Role::slopes)[static_cast<Int64>(s_.index) * job.params.slopes_batch + head];
    unit_ = with_features(job.features, [&](auto f) { return f.unit(job.params.score); });
  }
  int kv_head() const { return kv_head_of(head_, job_.params.group); }
  double unit() const { return unit_; }

  // hidden() where the bias hides the key
  double score(double dot, int row, int key) const {
    const Numbers& p = job_.params;
    double bias = 0;
    if (job_.has(Role::bias))
      bias = load_number(job_.get<void>(Role::bias), job_.bias_dtype,
                         s_.index * p.bias.batch + head_ * p.bias.head + row * p.bias.row + key * p.bias.key);
    const double distance = abs(row + s_.mask.shift - key);
    return with_features(job_.features, [&](auto f) { return f.score(dot, p.score, slope_, distance, bias); });
  }
  bool hides(double score) const { return (job_.features & BIAS) != 0 && score == static_cast<double>(hidden()); }
  double score_slope(double dot) const {
    return with_features(job_.features, [&](auto f) { return f.score_slope(dot, job_.params.score); });
  }
  // what dropout multiplies a probability by
  double kept(int row, int key) const {
    if ((job_.features & DROPOUT) == 0) return 1;
    return keeps(row, key) ? job_.params.keep_scale : 0;
  }
  bool keeps(int row, int key) const {
    const Numbers& p = job_.params;
    return fa::keeps(p.dropout, job_.seed, static_cast<unsigned>(s_.index * p.heads + head_), static_cast<unsigned>(row + p.q_offset),
                     static_cast<unsigned>(key + p.k_offset));
  }
  Int64 lse_at(int row) const { return s_.lse_base + head_ * job_.params.lse_head + row; }

 private:
  const Plain& job_;
  const Sequence& s_;
  int head_;
  double slope_ = 0, unit_ = 0;
};

// The arrays of one head in their own type.
template <class T>
struct Rows {
  const Plain& job;
  const Sequence& s;
  int head, kv_head;
  const T* row(Role role, Strides strides, int i) const { return job.get<const T>(role) + row_offset(strides, s, i, head); }
  const T* q(int i) const { return row(Role::q, job.params.q, i); }
  const T* dout(int i) const { return row(Role::dout, job.params.dout, i); }
  const T* k(int j) const { return job.get<const T>(Role::k) + key_offset(job.params.k, s, job.params.page_size, j, kv_head); }
  const T* v(int j) const { return job.get<const T>(Role::v) + key_offset(job.params.v, s, job.params.page_size, j, kv_head); }
};

// d(loss) / d(score) of one element, and what the forward pass weighed its value by.
struct Slope {
  double score, weight;
};
template <class Lse>
Slope element_gradient(const Plain& job, const Head& head, double score, double product, int row, int key) {
  const double lse = job.get<const Lse>(Role::lse)[head.lse_at(row)];
  const double delta = job.get<const Lse>(Role::delta)[head.lse_at(row)];
  const double p = probability(score, head.unit(), lse_reference(lse));
  const double kept = head.kept(row, key);
  return Slope{score_gradient(p, kept, product, delta), p * kept};
}

template <class T, class Out, class Lse>
void forward_rows(const Plain& job, const Task& task) {
  const Sequence& s = job.sequences[task.sequence];
  const Head head(job, s, task.head);
  const Rows<T> rows{job, s, task.head, head.kv_head()};
  const int dim = job.params.dim, value_dim = job.params.value_dim;
  std::vector<double> q(static_cast<size_t>(dim)), out(static_cast<size_t>(value_dim));
  for (int i = task.first; i < task.end && !stopped(job); i++) {
    widen_row(q.data(), rows.q(i), dim);
    out.assign(out.size(), 0.0);
    Softmax<double> state{static_cast<double>(no_maximum()), 0.0};
    const Interval<int> keys = visible_keys(s.mask, i);
    for (int j = keys.first; j < keys.end; j++) {
      const double score = head.score(product(q.data(), rows.k(j), dim), i, j);
      if (head.hides(score)) continue;
      const Softmax<double> next = advance(state, score * head.unit());
      if (next.max != state.max)
        for (double& x : out) x *= rescale(state.max, next.max);
      const double p = probability(score, head.unit(), next.max);
      state = Softmax<double>{next.max, next.sum + p};
      const double kept = head.kept(i, j);
      if (kept != 0) add_scaled(out.data(), p * kept, rows.v(j), value_dim);
    }
    if (job.has(Role::sink)) {
      const double old_max = state.max;
      state = add_sink(state, load_number(job.get<void>(Role::sink), job.sink_dtype, task.head));
      for (double& x : out) x *= rescale(old_max, state.max);
    }
    for (double& x : out) x *= inverse_sum(state);
    narrow_row(job.get<Out>(Role::out) + row_offset(job.params.out, s, i, task.head), out.data(), value_dim);
    if (job.has(Role::lse)) job.get<Lse>(Role::lse)[head.lse_at(i)] = static_cast<Lse>(log_sum_exp(state));
  }
}
}  // namespace

void forward(const Plain& job, const Task& task) {
  with_type(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (job.dtype == DType::f64) return forward_rows<double, double, double>(job, task);
    if (job.out_dtype == DType::f32) return forward_rows<T, float, float>(job, task);
    forward_rows<T, T, float>(job, task);
  });
}

void row_gradient(const Plain& job, const Task& task) {
  const Sequence& s = job.sequences[task.sequence];
  const Head head(job, s, task.head);
  const int dim = job.params.dim, value_dim = job.params.value_dim;
  std::vector<double> q(static_cast<size_t>(dim)), dout(static_cast<size_t>(value_dim)), dq(static_cast<size_t>(dim));
  with_type(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Lse = LseOf<T>;
    const Rows<T> rows{job, s, task.head, head.kv_head()};
    for (int i = task.first; i < task.end && !stopped(job); i++) {
      widen_row(q.data(), rows.q(i), dim);
      widen_row(dout.data(), rows.dout(i), value_dim);
      dq.assign(dq.size(), 0.0);
      const Interval<int> keys = visible_keys(s.mask, i);
      for (int j = keys.first; j < keys.end; j++) {
        const double dot = product(q.data(), rows.k(j), dim), score = head.score(dot, i, j);
        if (head.hides(score)) continue;
        const Slope slope = element_gradient<Lse>(job, head, score, product(dout.data(), rows.v(j), value_dim), i, j);
        add_scaled(dq.data(), slope.score * head.score_slope(dot) * job.params.score.scale, rows.k(j), dim);
      }
      narrow_row(job.get<T>(Role::dq) + row_offset(job.params.dq, s, i, task.head), dq.data(), dim);
    }
  });
}

void key_gradient(const Plain& job, const Task& task) {
  const Sequence& s = job.sequences[task.sequence];
  const int dim = job.params.dim, value_dim = job.params.value_dim;
  std::vector<double> k(static_cast<size_t>(dim)), v(static_cast<size_t>(value_dim)), dk(k.size()), dv(v.size());
  with_type(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Lse = LseOf<T>;
    for (int j = task.first; j < task.end && !stopped(job); j++) {
      dk.assign(dk.size(), 0.0);
      dv.assign(dv.size(), 0.0);
      const Interval<int> seers = visible_rows(s.mask, j);
      for (int member = 0; member < job.params.group; member++) {
        const int query_head = task.head * job.params.group + member;
        const Head head(job, s, query_head);
        const Rows<T> rows{job, s, query_head, task.head};
        widen_row(k.data(), rows.k(j), dim);
        widen_row(v.data(), rows.v(j), value_dim);
        for (int i = seers.first; i < seers.end; i++) {
          const double dot = product(k.data(), rows.q(i), dim), score = head.score(dot, i, j);
          if (head.hides(score)) continue;
          const Slope slope = element_gradient<Lse>(job, head, score, product(v.data(), rows.dout(i), value_dim), i, j);
          add_scaled(dk.data(), slope.score * head.score_slope(dot) * job.params.score.scale, rows.q(i), dim);
          if (slope.weight != 0) add_scaled(dv.data(), slope.weight, rows.dout(i), value_dim);
        }
      }
      narrow_row(job.get<T>(Role::dk) + key_offset(job.params.dk, s, 0, j, task.head), dk.data(), dim);
      narrow_row(job.get<T>(Role::dv) + key_offset(job.params.dv, s, 0, j, task.head), dv.data(), value_dim);
    }
  });
}

// Sums over the axes along which the bias was broadcast: batch, head, row for each key, then the keys. (One sum over all of them would
// lose twice as many digits as the formula in NumPy, which adds in pairs.)
void bias_gradient(const Plain& job, const Task& task) {
  const Numbers& p = job.params;
  const BiasStrides& own = p.dbias;
  const auto axis = [](Int64 stride, int index, int full) { return stride ? Interval<int>{index, index + 1} : Interval<int>{0, full}; };
  const Interval<int> sequences = axis(own.batch, task.sequence, p.batch), heads = axis(own.head, task.head, p.heads);
  std::vector<double> q(static_cast<size_t>(p.dim)), dout(static_cast<size_t>(p.value_dim));
  with_type(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Lse = LseOf<T>;
    for (int own_row = task.first; own_row < task.end; own_row++) {
      std::vector<double> sums(static_cast<size_t>(p.mask.keys));
      for (int b = sequences.first; b < sequences.end; b++)
        for (int h = heads.first; h < heads.end; h++) {
          const Sequence& s = job.sequences[b];
          const Head head(job, s, h);
          const Rows<T> rows{job, s, h, head.kv_head()};
          const Interval<int> all = axis(own.row, own_row, s.mask.rows);
          for (int i = all.first; i < min(all.end, s.mask.rows) && !stopped(job); i++) {
            widen_row(q.data(), rows.q(i), p.dim);
            widen_row(dout.data(), rows.dout(i), p.value_dim);
            const Interval<int> keys = visible_keys(s.mask, i);
            for (int j = keys.first; j < keys.end; j++) {
              const double score = head.score(product(q.data(), rows.k(j), p.dim), i, j);
              if (head.hides(score)) continue;
              sums[static_cast<size_t>(j)] +=
                  element_gradient<Lse>(job, head, score, product(dout.data(), rows.v(j), p.value_dim), i, j).score;
            }
          }
        }
      if (own.key == 0) sums = {std::accumulate(sums.begin(), sums.end(), 0.0)};
      const Int64 at = task.sequence * own.batch + task.head * own.head + own_row * own.row;
      for (size_t j = 0; j < sums.size(); j++)
        store_number(job.get<void>(Role::dbias), job.bias_dtype, at + static_cast<Int64>(j), sums[j]);
    }
  });
}

void probabilities(const Plain& job, const Task& task) {
  const Sequence& s = job.sequences[task.sequence];
  const Head head(job, s, task.head);
  const Numbers& p = job.params;
  std::vector<double> q(static_cast<size_t>(p.dim)), scores;
  with_type(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Rows<T> rows{job, s, task.head, head.kv_head()};
    for (int i = task.first; i < task.end && !stopped(job); i++) {
      T* const to = job.get<T>(Role::probabilities) +
                    ((static_cast<Int64>(s.index) * p.heads + task.head) * p.mask.rows + i) * static_cast<Int64>(p.mask.keys);
      for (int j = 0; j < p.mask.keys; j++) to[j] = T{};
      if (i >= s.mask.rows) continue;
      widen_row(q.data(), rows.q(i), p.dim);
      const Interval<int> keys = visible_keys(s.mask, i);
      Softmax<double> state{static_cast<double>(no_maximum()), 0.0};
      scores.clear();
      for (int j = keys.first; j < keys.end; j++) {
        const double score = head.score(product(q.data(), rows.k(j), p.dim), i, j);
        scores.push_back(score);
        if (head.hides(score)) continue;
        state = advance(state, score * head.unit());
        state.sum += probability(score, head.unit(), state.max);
      }
      if (job.has(Role::sink)) state = add_sink(state, load_number(job.get<void>(Role::sink), job.sink_dtype, task.head));
      for (int j = 0; j < s.mask.keys; j++) {
        double weight = 0;
        if (j >= keys.first && j < keys.end) {
          const double score = scores[static_cast<size_t>(j - keys.first)];
          if (!head.hides(score)) weight = probability(score, head.unit(), state.max) * inverse_sum(state);
        }
        to[j] = narrow_to<T>((job.features & DROPOUT) != 0 && !head.keeps(i, j) ? -weight : weight);
      }
    }
  });
}
}  // namespace fa::cpu::plain
