#include "cpu/plan.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "cpu/tiles.h"

namespace fa::cpu {
namespace {
struct Planner {
  const Problem& problem;
  Plan plan;

  Planner(const Problem& p, const Kernel& row) : problem(p), plan{p, &row, {}, {}} {}

  int temporary(DType dtype, int64_t count) {
    plan.temporaries.push_back(Temporary{dtype, count});
    return static_cast<int>(plan.temporaries.size()) - 1;
  }
  // `roles`: those the call has become arguments. Returned by reference: valid until the next launch.
  Launch& launch(const char* kernel, std::initializer_list<Role> roles) {
    plan.launches.push_back(Launch{plan.row, kernel, problem.params, {}});
    Launch& l = plan.launches.back();
    l.arguments.reserve(roles.size() + 3);
    for (Role r : roles)
      if (problem.has(r) || problem.wanted(r)) l.arguments.push_back(Argument{r, Source{r, -1}});
    return l;
  }
  static void bind(Launch& launch, Role as, int temporary) { launch.arguments.push_back(Argument{as, Source{Role::COUNT, temporary}}); }

  DType real() const { return problem.dtype == DType::f64 ? DType::f64 : DType::f32; }
  Strides contiguous(int64_t rows, int heads, int dim) const {
    const bool packed = (problem.needs & VARLEN) != 0;
    return Strides{packed ? 0 : rows * heads * dim, int64_t{heads} * dim, dim};
  }
  bool has_absent() const { return (problem.needs & (VARLEN | USED)) != 0; }

  void forward(const char* kernel);
  void decode();
  void backward();
  void backward_plain();
  void append();
  void merge();

 private:
  // every backward launch but the first reads delta: the caller's array where it wants one, else a temporary
  Launch& launch_with_delta(const char* kernel, std::initializer_list<Role> roles) {
    Launch& l = launch(kernel, roles);
    if (problem.wanted(Role::delta))
      l.arguments.push_back(Argument{Role::delta, Source{Role::delta, -1}});
    else
      bind(l, Role::delta, delta_);
    return l;
  }
  void after_forward();
  void delta();
  void after_gradients();
  int delta_ = -1;
};

void Planner::forward(const char* kernel) {
  launch(kernel, {Role::q, Role::k, Role::v, Role::out, Role::lse, Role::seed, Role::slopes, Role::bias, Role::sink});
  after_forward();
}

// Long keys are cut into parts; each part's result goes to a temporary, and a merge joins them.
void Planner::decode() {
  const ParamsT<double>& p = problem.params;
  const int split = decode_split(p, problem.splits), parts = std::max(1, divide_up(p.mask.keys, split));
  Launch& l = launch("decode", {Role::q, Role::k, Role::v, Role::out, Role::lse, Role::seed, Role::slopes, Role::bias, Role::sink});
  l.params.split_keys = split;
  l.params.splits = parts;
  if (parts > 1) {
    const int64_t rows = problem.total_rows * p.heads;
    const int part_out = temporary(DType::f32, parts * rows * p.value_dim), part_lse = temporary(DType::f32, parts * rows);
    const Strides strides = contiguous(problem.max_rows, p.heads, p.value_dim);
    l.params.out = strides;
    bind(l, Role::part_out, part_out);
    bind(l, Role::part_lse, part_lse);
    Launch& merge = launch("merge", {Role::out, Role::lse});
    merge.params.q = strides;
    merge.params.splits = parts;
    merge.params.split_keys = split;
    bind(merge, Role::part_out, part_out);
    bind(merge, Role::part_lse, part_lse);
  }
  after_forward();
}
void Planner::after_forward() {
  if (has_absent()) launch("clear", {Role::out, Role::lse});
  if (problem.wanted(Role::probabilities))
    launch("probabilities", {Role::q, Role::k, Role::probabilities, Role::seed, Role::slopes, Role::bias, Role::sink});
}

void Planner::delta() {
  if (!problem.wanted(Role::delta)) delta_ = temporary(real(), problem.total_rows * problem.params.heads);
  launch_with_delta("delta", {Role::dout, Role::out, Role::lse, Role::dlse});
}
void Planner::after_gradients() {
  if (problem.wanted(Role::dsink)) launch_with_delta("sink_gradient", {Role::lse, Role::sink, Role::dsink});
  if (has_absent()) launch("clear", {Role::dq, Role::dk, Role::dv, Role::delta});
}

// Chunks of keys where there are few heads; each writes its share of dq, and the shares are added in order.
void Planner::backward() {
  delta();
  const ParamsT<double>& p = problem.params;
  const int64_t pairs = int64_t{p.batch} * p.kv_heads;
  const int keys = static_cast<int>(problem.max_keys), chunk = backward_chunk(keys, pairs), parts = backward_parts(keys, chunk);
  const bool direct = backward_direct(keys, pairs, problem.dtype == DType::f32);
  const int partial = direct ? -1 : temporary(DType::f32, problem.total_rows * parts * p.heads * p.dim);
  const auto chunked = [&](Launch& l) {
    l.params.split_keys = chunk;
    l.params.splits = parts;
    if (!direct) bind(l, Role::part_out, partial);
  };
  chunked(launch_with_delta(
      "backward", {Role::q, Role::k, Role::v, Role::dout, Role::lse, Role::dq, Role::dk, Role::dv, Role::seed, Role::slopes, Role::bias}));
  if (!direct) chunked(launch("sum_parts", {Role::dq}));
  if (problem.wanted(Role::dbias))  // the fast kernel goes over rows, and writes nothing where there are none
    launch_with_delta(problem.max_rows > 0 ? "bias_gradient" : "bias_gradient_plain",
                      {Role::q, Role::k, Role::v, Role::dout, Role::lse, Role::dbias, Role::seed, Role::slopes, Role::bias});
  after_gradients();
}

void Planner::backward_plain() {
  delta();
  launch_with_delta("row_gradient_plain",
                    {Role::q, Role::k, Role::v, Role::dout, Role::lse, Role::dq, Role::seed, Role::slopes, Role::bias});
  launch_with_delta("key_gradient_plain",
                    {Role::q, Role::k, Role::v, Role::dout, Role::lse, Role::dk, Role::dv, Role::seed, Role::slopes, Role::bias});
  if (problem.wanted(Role::dbias))
    launch_with_delta("bias_gradient_plain",
                      {Role::q, Role::k, Role::v, Role::dout, Role::lse, Role::dbias, Role::seed, Role::slopes, Role::bias});
  after_gradients();
}

void Planner::append() {
  launch("append", {Role::q, Role::k, Role::v, Role::new_k, Role::new_v, Role::cos, Role::sin, Role::lengths, Role::pages, Role::rotated_q,
                    Role::rotated_k});
}

void Planner::merge() {
  Launch& l = launch("merge", {Role::part_out, Role::part_lse, Role::out, Role::lse});
  l.params.q = contiguous(problem.max_rows, l.params.heads, l.params.value_dim);
}
}  // namespace

Plan plan(const Problem& problem, const Kernel& row, const Device&) {
  Planner planner(problem, row);
  const auto is = [&](const char* name) { return std::strcmp(row.name, name) == 0; };
  if (is("forward_plain") || is("forward")) planner.forward(row.name);
  if (is("decode")) planner.decode();
  if (is("backward")) planner.backward();
  if (is("backward_plain")) planner.backward_plain();
  if (is("append")) planner.append();
  if (is("merge")) planner.merge();
  return planner.plan;
}
}  // namespace fa::cpu
