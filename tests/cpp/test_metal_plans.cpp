// What the Metal backend makes of a Problem: data, checked without a GPU. Kernels themselves run in tools/metal_emulator.
#include <gtest/gtest.h>

#include <string>

#include "core/execute.h"
#include "core/kernel_text.h"
#include "core/plan.h"
#include "metal/kernels.h"

namespace {
using namespace fa;

constexpr Device GPU{DeviceKind::metal, 0, 0, 32768}, M5{DeviceKind::metal, 17, 0, 32768};

Tensor shape(DType dtype, std::initializer_list<int64_t> axes) {
  Tensor t = tensor(nullptr, dtype, axes);
  t.place.kind = DeviceKind::metal;
  return t;
}
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
  call[Role::lse] = shape(DType::f32, {s.batch, s.heads, s.rows});
  return call;
}
Call cache_call(DType t, const Shape& s) {
  Call call = forward_call(t, s);
  call[Role::lengths] = shape(DType::i32, {s.batch});
  return call;
}
Plan plan_of(const Call& call) { return make_plan(describe(call), GPU); }
std::string launches(const Plan& plan) {
  std::string names;
  for (const Launch& l : plan.launches) names += (names.empty() ? "" : " ") + std::string(l.kernel);
  return names;
}
int constant(const Launch& launch, const std::string& name) {
  for (const Constant& c : launch.constants)
    if (c.name == name) return c.value;
  throw std::logic_error(name);
}
const Launch& launch(const Plan& plan, const std::string& kernel) {
  for (const Launch& l : plan.launches)
    if (l.kernel == kernel) return l;
  throw std::logic_error(kernel);
}

// What a runner relies on.
void check(const Plan& plan) {
  uint64_t results = 0, temporaries = 0;
  for (const Launch& l : plan.launches) {
    SCOPED_TRACE(l.kernel);
    const std::string text = kernel_text("metal", l.source);
    EXPECT_NE(text.find(std::string("#define FA_ENTRY_") + l.kernel + "("), std::string::npos);
    EXPECT_LE(l.arguments.size(), 30u);  // buffers, with the params
    EXPECT_LE(l.grid.threads[0], 1024);
    EXPECT_EQ(l.grid.threads[0], 32 * constant(l, "FA_SIMDGROUPS"));
    for (int n : l.grid.blocks) EXPECT_GT(n, 0);
    uint64_t seen = 0;
    bool written = false;
    for (const Argument& a : l.arguments) {
      EXPECT_EQ(seen & bit(a.as), 0u) << role_name(a.as);
      seen |= bit(a.as);
      EXPECT_GE(a.written, written) << "what is written comes last";
      written = a.written;
      if (a.from.temporary >= 0) {
        ASSERT_LT(a.from.temporary, static_cast<int>(plan.temporaries.size()));
        const uint64_t it = uint64_t{1} << a.from.temporary;
        EXPECT_EQ((temporaries & it) != 0, !a.written) << "written once, then read";
        temporaries |= it;
      } else if (a.written) {
        EXPECT_EQ(results & bit(a.from.role), 0u) << "written twice: " << role_name(a.from.role);
        EXPECT_TRUE(plan.problem.wanted(a.from.role)) << role_name(a.from.role);
        results |= bit(a.from.role);
      } else {
        EXPECT_TRUE(plan.problem.has(a.from.role) || (results & bit(a.from.role))) << role_name(a.from.role);
      }
    }
    EXPECT_TRUE(written);
    for (const Constant& c : l.constants) {
      if (std::string(c.name) == "FA_MEMORY") {
        EXPECT_LE(c.value * 16, GPU.shared_bytes);
      }
      EXPECT_NE(text.find(c.name), std::string::npos) << c.name;
    }
  }
  EXPECT_EQ(results, plan.problem.wants);
}

TEST(MetalPlans, EveryHeadDimFits) {
  for (DType t : {DType::f16, DType::bf16, DType::f32})
    for (int64_t dim : {1, 8, 33, 64, 65, 96, 128, 192, 256, 264, 320, 512})
      for (int64_t value_dim : {int64_t{8}, dim, int64_t{512}}) {
        SCOPED_TRACE(dim * 1000 + value_dim);
        const Shape s{2, 64, 64, 4, 2, dim, value_dim};
        check(plan_of(forward_call(t, s)));
        check(plan_of(backward_call(t, s)));
        check(plan_of(cache_call(t, Shape{2, 1, 9000, 8, 2, dim, value_dim})));
      }
}

TEST(MetalPlans, FastKernelsComeFirst) {
  EXPECT_EQ(launches(plan_of(forward_call(DType::f16, {}))), "forward");
  EXPECT_EQ(launches(plan_of(backward_call(DType::bf16, {}))), "delta backward_dq backward_dkv");
  EXPECT_EQ(launches(plan_of(cache_call(DType::f16, Shape{2, 1, 100, 8, 2, 64, 64}))), "decode");
  EXPECT_EQ(launches(plan_of(cache_call(DType::f16, Shape{1, 1, 50000, 8, 2, 64, 64}))), "decode merge");
  EXPECT_EQ(launches(plan_of(cache_call(DType::f16, Shape{1, 40, 5000, 8, 2, 64, 64}))), "forward") << "many query rows";
}

TEST(MetalPlans, TensorOperationsAreForNewGpus16BitsAndShortHeadDims) {
  const auto on_m5 = [](DType t, const Shape& s) { return make_plan(describe(forward_call(t, s)), M5); };
  for (DType t : {DType::f16, DType::bf16})
    for (int64_t dim : {1, 8, 33, 64, 128})
      for (int64_t value_dim : {1, 96, 128}) {
        SCOPED_TRACE(dim * 1000 + value_dim);
        const Plan plan = on_m5(t, Shape{2, 65, 64, 4, 2, dim, value_dim});
        EXPECT_EQ(launches(plan), "forward_tensor");
        EXPECT_EQ(plan.launches[0].grid.blocks[0], 2) << "64 rows each";
        EXPECT_EQ(constant(plan.launches[0], "FA_VECTOR"), dim % 8 == 0 && value_dim % 8 == 0);
        check(plan);
      }
  EXPECT_EQ(launches(on_m5(DType::f32, {})), "forward");
  EXPECT_EQ(launches(on_m5(DType::f16, Shape{2, 64, 64, 4, 2, 129, 64})), "forward");
  EXPECT_EQ(launches(on_m5(DType::f16, Shape{2, 64, 64, 4, 2, 64, 136})), "forward");
  EXPECT_EQ(launches(make_plan(describe(forward_call(DType::f16, {})), Device{DeviceKind::metal, 16, 0, 32768})), "forward");
  EXPECT_EQ(launches(make_plan(describe(backward_call(DType::f16, {})), M5)), "delta backward_dq backward_dkv");
  EXPECT_EQ(launches(make_plan(describe(cache_call(DType::f16, Shape{2, 1, 100, 8, 2, 64, 64})), M5)), "decode");
  EXPECT_EQ(launches(make_plan(describe(cache_call(DType::f16, Shape{1, 40, 5000, 8, 2, 64, 64})), M5)), "forward_tensor");
}

TEST(MetalPlans, TheGenerationOfAGpuIsThatOfItsArrays) {
  Call call = forward_call(DType::f16, {});
  EXPECT_EQ(launches(prepare(call, device_of(call))), "forward");
  for (Tensor& t : call.arrays) t.place.index = 17;
  EXPECT_EQ(launches(prepare(call, device_of(call))), "forward_tensor");
}

TEST(MetalPlans, LongHeadDimsTakeTheGradientsOneByOne) {
  const Plan plan = plan_of(backward_call(DType::f16, Shape{1, 64, 64, 4, 2, 512, 192}));
  EXPECT_EQ(launches(plan), "delta backward_dq backward_dkv backward_dkv");
  check(plan);
  const Launch &dk = plan.launches[2], &dv = plan.launches[3];
  EXPECT_EQ(constant(dk, "FA_PARTS"), 2);
  EXPECT_EQ(constant(dk, "FA_DK_PART"), 256);
  EXPECT_EQ(constant(dk, "FA_DV_PART"), 0);
  EXPECT_EQ(constant(dv, "FA_DK_PART"), 0);
  EXPECT_EQ(constant(dv, "FA_DV_PART"), 192);
}

TEST(MetalPlans, ExtrasHaveLaunchesOfTheirOwn) {
  Call call = backward_call(DType::f32, {});
  call[Role::bias] = shape(DType::f32, {1, 4, 1, 64});
  call[Role::sink] = shape(DType::f32, {4});
  call.options.wants = bit(Role::dbias) | bit(Role::dsink) | bit(Role::delta);
  const Plan plan = plan_of(call);
  EXPECT_EQ(launches(plan), "delta backward_dq backward_dkv bias_gradient sink_gradient");
  EXPECT_TRUE(plan.temporaries.empty()) << "the caller's delta is there";
  const Grid& grid = launch(plan, "bias_gradient").grid;
  EXPECT_EQ(grid.blocks[0], 2) << "32 keys each";
  EXPECT_EQ(grid.blocks[1], 1);
  EXPECT_EQ(grid.blocks[2], 4);
  check(plan);

  Call drop = forward_call(DType::f16, {});
  drop.options.dropout = 0.25;
  drop.options.wants = bit(Role::probabilities);
  drop[Role::seed] = shape(DType::i64, {2});
  EXPECT_EQ(launches(plan_of(drop)), "forward probabilities");
  check(plan_of(drop));
}

TEST(MetalPlans, WordsOf16BytesNeedRowsThatLieSo) {
  const auto vector = [](Call call) { return constant(plan_of(call).launches[0], "FA_VECTOR"); };
  EXPECT_EQ(vector(forward_call(DType::f16, {})), 1);
  EXPECT_EQ(vector(forward_call(DType::f16, Shape{2, 64, 64, 4, 2, 40, 24})), 1);
  EXPECT_EQ(vector(forward_call(DType::f16, Shape{2, 64, 64, 4, 2, 36, 32})), 0) << "head dim";
  EXPECT_EQ(vector(forward_call(DType::f16, Shape{2, 64, 64, 4, 2, 32, 36})), 0) << "value head dim";
  const auto strided = [](DType t, int axis, int64_t stride, int64_t batch = 2) {
    Call call = forward_call(t, Shape{batch, 64, 64, 4, 2, 32, 32});
    call[Role::k].stride[axis] = stride;
    return call;
  };
  EXPECT_EQ(vector(strided(DType::f16, 1, 72)), 1);
  EXPECT_EQ(vector(strided(DType::f16, 1, 68)), 0);
  EXPECT_EQ(vector(strided(DType::f32, 1, 68)), 1) << "4 elements of 32 bits";
  EXPECT_EQ(vector(strided(DType::bf16, 2, 36)), 0);
  EXPECT_EQ(vector(strided(DType::f16, 0, 4097)), 0);
  EXPECT_EQ(vector(strided(DType::f16, 0, 4097, 1)), 1) << "one batch entry: its stride is never used";
}

TEST(MetalPlans, PackedCallsReachWhatBelongsToNobody) {
  Call call = forward_call(DType::f32, {});
  call[Role::q] = shape(DType::f32, {50, 4, 32});
  call[Role::k] = call[Role::v] = shape(DType::f32, {60, 2, 32});
  call[Role::cu_rows] = call[Role::cu_keys] = shape(DType::i32, {4});
  call.options.max_rows = call.options.max_keys = 0;
  const Plan plan = plan_of(call);
  check(plan);
  EXPECT_EQ(plan.launches[0].grid.blocks[0], 1) << "rows behind the last sequence exist, whatever the longest sequence";
  EXPECT_EQ(plan.launches[0].grid.blocks[2], 4) << "three sequences, and what is behind them";
  EXPECT_EQ(plan.launches[0].params.capacity, 60);
}

TEST(MetalPlans, NothingToDoIsNoLaunch) {
  EXPECT_EQ(launches(plan_of(forward_call(DType::f32, Shape{2, 0, 64, 4, 2, 32, 32}))), "");
  EXPECT_EQ(launches(plan_of(forward_call(DType::f32, Shape{2, 64, 0, 4, 2, 32, 32}))), "forward") << "zeros are to be written";
  const Plan plan = plan_of(backward_call(DType::f32, Shape{2, 0, 64, 4, 2, 32, 32}));
  EXPECT_EQ(launches(plan), "backward_dkv");
  for (const Argument& a : plan.launches[0].arguments) EXPECT_LT(a.from.temporary, 0) << "delta has not been written";
}

TEST(MetalPlans, DecodeIsCutByShapesAndTheCallersWord) {
  const auto splits = [](int64_t keys, int wanted) {
    Call call = cache_call(DType::f16, Shape{1, 1, keys, 8, 2, 64, 64});
    call.options.splits = wanted;
    return launch(plan_of(call), "decode").params.splits;
  };
  EXPECT_EQ(splits(100, 0), 1);
  EXPECT_GT(splits(20000, 0), 8);
  EXPECT_EQ(splits(20000, 1), 1);
  EXPECT_EQ(splits(20000, 4), 4);
  Call call = cache_call(DType::f16, Shape{1, 1, 20000, 8, 2, 64, 64});
  const Plan plan = plan_of(call);
  const ParamsT<double>& p = launch(plan, "decode").params;
  EXPECT_GE(int64_t{p.splits} * p.split_keys, 20000);
  EXPECT_LT(int64_t{p.splits - 1} * p.split_keys, 20000);
  EXPECT_EQ(plan.temporaries[0].count, int64_t{p.splits} * 8 * 64);
  EXPECT_EQ(launch(plan, "merge").params.split_keys, p.split_keys);
}

TEST(MetalPlans, Float64IsRefused) {
  try {
    plan_of(forward_call(DType::f64, {}));
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("no Metal kernel takes this call"), std::string::npos) << e.what();
  }
}
}  // namespace
