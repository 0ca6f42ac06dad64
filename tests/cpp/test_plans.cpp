// Plans are data: what the CPU backend makes of a Problem, checked without running anything.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "core/plan.h"
#include "cpu/jobs.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/tiles.h"

namespace {
using namespace fa;

constexpr Device TWO_CORES{DeviceKind::cpu, 0, 2, 0};

Tensor shape(DType dtype, std::initializer_list<int64_t> axes) { return tensor(nullptr, dtype, axes); }

struct Shape {
  int64_t batch = 2, rows = 64, keys = 64, heads = 4, kv_heads = 2, dim = 32, value_dim = 32;
};
Call forward_call(DType t, const Shape& s) {
  Call call("test", Pass::forward);
  call[Role::q] = shape(t, {s.batch, s.rows, s.heads, s.dim});
  call[Role::k] = shape(t, {s.batch, s.keys, s.kv_heads, s.dim});
  call[Role::v] = shape(t, {s.batch, s.keys, s.kv_heads, s.value_dim});
  return call;
}
Call backward_call(DType t, const Shape& s) {
  Call call = forward_call(t, s);
  call.pass = Pass::backward;
  call[Role::out] = call[Role::dout] = shape(t, {s.batch, s.rows, s.heads, s.value_dim});
  call[Role::lse] = shape(t == DType::f64 ? DType::f64 : DType::f32, {s.batch, s.heads, s.rows});
  return call;
}
// A packed call of two sequences or none of whose lengths anything is known.
Call packed_call(DType t, int64_t rows, int64_t keys, int64_t sequences) {
  Call call("test", Pass::forward);
  call[Role::q] = shape(t, {rows, 4, 32});
  call[Role::k] = call[Role::v] = shape(t, {keys, 2, 32});
  call[Role::cu_rows] = call[Role::cu_keys] = shape(DType::i32, {sequences + 1});
  call.options.max_rows = rows;
  call.options.max_keys = keys;
  return call;
}

// The plan of a row of the table by name, whatever the order of the table.
Plan plan_of(const char* row, const Call& call, const Device& device = TWO_CORES) {
  for (int i = 0; i < cpu::BACKEND.count; i++)
    if (std::string(cpu::BACKEND.first[i].name) == row) return cpu::BACKEND.plan(describe(call), cpu::BACKEND.first[i], device);
  throw std::logic_error(row);
}
std::string launches(const Plan& plan) {
  std::string names;
  for (const Launch& l : plan.launches) names += (names.empty() ? "" : " ") + std::string(l.kernel);
  return names;
}
const Launch& launch(const Plan& plan, const char* kernel) {
  for (const Launch& l : plan.launches)
    if (std::string(l.kernel) == kernel) return l;
  throw std::logic_error(kernel);
}
const Argument* argument(const Launch& launch, Role as) {
  for (const Argument& a : launch.arguments)
    if (a.as == as) return &a;
  return nullptr;
}
// Each argument is an array of the call, or a temporary of the plan, and none is bound twice.
void check_arguments(const Plan& plan) {
  for (const Launch& l : plan.launches) {
    uint64_t seen = 0;
    EXPECT_STREQ(cpu::work_of(l.kernel).name, l.kernel);
    for (const Argument& a : l.arguments) {
      EXPECT_EQ(seen & bit(a.as), 0u) << l.kernel << " " << role_name(a.as);
      seen |= bit(a.as);
      if (a.from.temporary >= 0) {
        EXPECT_LT(a.from.temporary, static_cast<int>(plan.temporaries.size()));
        EXPECT_EQ(a.from.role, Role::COUNT);
      } else {
        EXPECT_TRUE(plan.problem.has(a.from.role) || plan.problem.wanted(a.from.role)) << l.kernel << " " << role_name(a.as);
      }
    }
  }
}

TEST(Plans, ForwardIsOneLaunchWithoutTemporaries) {
  const Plan plan = plan_of("forward", forward_call(DType::f32, {}));
  EXPECT_EQ(launches(plan), "forward");
  EXPECT_TRUE(plan.temporaries.empty());
  for (Role r : {Role::q, Role::k, Role::v, Role::out, Role::lse}) EXPECT_TRUE(argument(plan.launches[0], r)) << role_name(r);
  EXPECT_FALSE(argument(plan.launches[0], Role::bias));
  check_arguments(plan);
}

TEST(Plans, Float64RunsPlainKernels) {
  EXPECT_EQ(launches(make_plan(describe(forward_call(DType::f64, {})), TWO_CORES)), "forward_plain");
  EXPECT_EQ(launches(make_plan(describe(backward_call(DType::f64, {})), TWO_CORES)), "delta row_gradient_plain key_gradient_plain");
  const Plan plan = plan_of("backward_plain", backward_call(DType::f64, {}));
  EXPECT_EQ(plan.temporaries.at(0).dtype, DType::f64);
}

// one query of each head against a long cache
Call decode_call(DType t, int64_t keys) {
  Call call = forward_call(t, Shape{2, 1, keys, 32, 8, 128, 64});
  call[Role::lengths] = shape(DType::i32, {2});
  return call;
}
TEST(Plans, FewQueriesOfALongCacheAreSplitByKeys) {
  const Plan plan = make_plan(describe(decode_call(DType::bf16, 20000)), TWO_CORES);
  EXPECT_EQ(launches(plan), "decode merge");
  const ParamsT<double>&p = launch(plan, "decode").params, &m = launch(plan, "merge").params;
  EXPECT_GE(int64_t{p.splits} * p.split_keys, 20000);
  EXPECT_LT(int64_t{p.splits - 1} * p.split_keys, 20000);
  EXPECT_EQ(m.splits, p.splits);
  EXPECT_EQ(m.split_keys, p.split_keys);
  ASSERT_EQ(plan.temporaries.size(), 2u);
  EXPECT_EQ(plan.temporaries[0].dtype, DType::f32);
  EXPECT_EQ(plan.temporaries[0].count, int64_t{p.splits} * 2 * 32 * 64);
  EXPECT_EQ(plan.temporaries[1].count, int64_t{p.splits} * 2 * 32);
  // parts have strides of their own, which the merge reads with, while it writes with the caller's
  EXPECT_EQ(p.out.batch, 32 * 64);
  EXPECT_EQ(m.q.batch, p.out.batch);
  EXPECT_EQ(m.q.head, p.out.head);
  check_arguments(plan);
}
TEST(Plans, FewQueriesOfAShortCacheAreNot) {
  const Plan plan = make_plan(describe(decode_call(DType::f32, 40)), TWO_CORES);
  EXPECT_EQ(launches(plan), "decode");
  EXPECT_TRUE(plan.temporaries.empty());
}
TEST(Plans, DecodeDoesNotDependOnTheNumberOfThreads) {
  for (int64_t keys : {100, 3000, 100000}) {
    const Plan one = plan_of("decode", decode_call(DType::f32, keys), Device{DeviceKind::cpu, 0, 1, 0});
    const Plan many = plan_of("decode", decode_call(DType::f32, keys), Device{DeviceKind::cpu, 0, 64, 0});
    EXPECT_EQ(launch(one, "decode").params.split_keys, launch(many, "decode").params.split_keys);
  }
}

TEST(Plans, FastKernelsComeFirst) {
  for (DType t : {DType::f16, DType::bf16, DType::f32}) {
    EXPECT_STREQ(make_plan(describe(forward_call(t, {})), TWO_CORES).row->name, "forward");
    EXPECT_STREQ(make_plan(describe(backward_call(t, {})), TWO_CORES).row->name, "backward");
  }
}

TEST(Plans, RowsThatNobodyHasAreCleared) {
  EXPECT_EQ(launches(plan_of("forward", packed_call(DType::f32, 50, 60, 3))), "forward clear");
  Call used = forward_call(DType::f32, {});
  used[Role::used_keys] = shape(DType::i32, {2});
  EXPECT_EQ(launches(plan_of("forward", used)), "forward clear");
  Call gradient = backward_call(DType::f32, {});
  gradient[Role::used_rows] = shape(DType::i32, {2});
  EXPECT_EQ(launches(plan_of("backward", gradient)), "delta backward clear");
}

TEST(Plans, ProbabilitiesComeAfterTheLse) {
  Call call = forward_call(DType::f32, {});
  call.options.dropout = 0.25;
  call.options.wants = bit(Role::probabilities);
  call[Role::seed] = shape(DType::i64, {2});
  const Plan plan = plan_of("forward", call);
  EXPECT_EQ(launches(plan), "forward probabilities");
  EXPECT_FALSE(argument(launch(plan, "probabilities"), Role::lse));
  EXPECT_TRUE(argument(launch(plan, "probabilities"), Role::seed));
  check_arguments(plan);
}

TEST(Plans, BackwardWithManyHeadsWritesItsGradientsItself) {
  const Plan plan = plan_of("backward", backward_call(DType::f32, Shape{4, 512, 512, 16, 8, 64, 64}));
  EXPECT_EQ(launches(plan), "delta backward");
  ASSERT_EQ(plan.temporaries.size(), 1u);
  EXPECT_EQ(plan.temporaries[0].count, 4 * 16 * 512);
  EXPECT_EQ(plan.temporaries[0].dtype, DType::f32);
  EXPECT_FALSE(argument(launch(plan, "backward"), Role::part_out));
  EXPECT_EQ(argument(launch(plan, "backward"), Role::delta)->from.temporary, 0);
  check_arguments(plan);
}

TEST(Plans, BackwardWithFewHeadsSumsChunksInOrder) {
  const Plan plan = plan_of("backward", backward_call(DType::bf16, Shape{1, 4096, 4096, 1, 1, 64, 64}));
  EXPECT_EQ(launches(plan), "delta backward sum_parts");
  const ParamsT<double>& p = launch(plan, "backward").params;
  EXPECT_GT(p.splits, 1);
  EXPECT_GE(int64_t{p.splits} * p.split_keys, 4096);
  EXPECT_LT(int64_t{p.splits - 1} * p.split_keys, 4096);
  ASSERT_EQ(plan.temporaries.size(), 2u);
  EXPECT_EQ(plan.temporaries[1].dtype, DType::f32);
  EXPECT_EQ(plan.temporaries[1].count, int64_t{p.splits} * 4096 * 64);
  EXPECT_EQ(argument(launch(plan, "backward"), Role::part_out)->from.temporary, 1);
  EXPECT_EQ(argument(launch(plan, "sum_parts"), Role::part_out)->from.temporary, 1);
  EXPECT_EQ(launch(plan, "sum_parts").params.splits, p.splits);
  EXPECT_EQ(launch(plan, "sum_parts").params.split_keys, p.split_keys);
  check_arguments(plan);
}

TEST(Plans, BackwardDoesNotDependOnTheNumberOfThreads) {
  for (int64_t keys : {100, 1000, 5000, 20000}) {
    const Call call = backward_call(DType::f32, Shape{1, 300, keys, 2, 1, 64, 64});
    const Plan one = plan_of("backward", call, Device{DeviceKind::cpu, 0, 1, 0}),
               many = plan_of("backward", call, Device{DeviceKind::cpu, 0, 64, 0});
    EXPECT_EQ(launches(one), launches(many));
    EXPECT_EQ(launch(one, "backward").params.split_keys, launch(many, "backward").params.split_keys);
  }
}

TEST(Plans, WantedGradientsGetTheirLaunches) {
  Call call = backward_call(DType::f32, {});
  call[Role::bias] = shape(DType::f32, {64, 64});
  call[Role::sink] = shape(DType::f32, {4});
  call.options.wants = bit(Role::dbias) | bit(Role::dsink) | bit(Role::delta);
  const Plan fast = plan_of("backward", call), plain = plan_of("backward_plain", call);
  EXPECT_EQ(launches(fast), "delta backward bias_gradient sink_gradient");
  EXPECT_EQ(launches(plain), "delta row_gradient_plain key_gradient_plain bias_gradient_plain sink_gradient");
  for (const Plan* plan : {&fast, &plain}) {
    EXPECT_TRUE(plan->temporaries.empty());  // delta is the caller's
    for (const Launch& l : plan->launches) EXPECT_EQ(argument(l, Role::delta)->from.role, Role::delta);
    check_arguments(*plan);
  }
}

TEST(Plans, ABoolMaskHasNoGradient) {
  Call call = backward_call(DType::f32, {});
  call[Role::bias] = shape(DType::u8, {64, 64});
  call.options.wants = bit(Role::dbias);
  EXPECT_EQ(launches(plan_of("backward", call)), "delta backward");
}

TEST(Plans, AppendAndMerge) {
  Call append("test", Pass::append);
  append[Role::q] = shape(DType::f16, {2, 3, 4, 32});
  append[Role::rotated_q] = shape(DType::f16, {2, 3, 4, 32});
  append[Role::k] = append[Role::v] = shape(DType::f16, {2, 100, 2, 32});
  append[Role::new_k] = append[Role::new_v] = shape(DType::f16, {2, 5, 2, 32});
  append[Role::cos] = append[Role::sin] = shape(DType::f16, {200, 8});
  append[Role::lengths] = shape(DType::i32, {2});
  const Plan plan = plan_of("append", append);
  EXPECT_EQ(launches(plan), "append");
  EXPECT_EQ(plan.launches[0].params.dq.batch, 3 * 4 * 32);
  check_arguments(plan);

  Call merge("test", Pass::merge);
  merge[Role::part_out] = shape(DType::f32, {3, 2, 7, 4, 32});
  merge[Role::part_lse] = shape(DType::f32, {3, 2, 4, 7});
  const Plan joined = plan_of("merge", merge);
  EXPECT_EQ(launches(joined), "merge");
  EXPECT_EQ(joined.launches[0].params.splits, 3);
  EXPECT_EQ(joined.launches[0].params.q.batch, 7 * 4 * 32);
  check_arguments(joined);
}

TEST(Plans, WorkspaceIsLinearInTheSequence) {
  const auto bytes = [](int64_t length) {
    int64_t sum = 0;
    for (const Temporary& t : plan_of("backward", backward_call(DType::f32, Shape{1, length, length, 8, 8, 64, 64})).temporaries)
      sum += t.count * 4;
    return sum;
  };
  EXPECT_LE(bytes(32768), 2 * bytes(16384));
}
}  // namespace
