// The seam between a plan and whoever runs it: execute() hands a plan's backend the caller's arrays, temporaries and stream.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "calls.h"
#include "core/execute.h"

namespace {
using namespace fa;

// What the backend below was given last.
struct Given {
  const Tensor* arrays = nullptr;
  std::vector<void*> temporaries;
  Stream stream = nullptr;
  int calls = 0;
} given;
void take(const Plan&, const Buffers& buffers, Stream stream, bool (*)()) {
  given = Given{buffers.arrays, {buffers.temporaries.begin(), buffers.temporaries.end()}, stream, given.calls + 1};
  EXPECT_EQ(buffers.at(Source{Role::k, -1}), buffers[Role::k].data);
  if (!given.temporaries.empty()) {
    EXPECT_EQ(buffers.at(Source{Role::COUNT, 1}), given.temporaries[1]);
  }
}
constexpr Backend OF_A_GPU{"gpu", nullptr, 0, nullptr, nullptr, take, false};
constexpr Backend OF_PYTHON{"python", nullptr, 0, nullptr, nullptr, nullptr, false};
constexpr Backend WITH_MEMORY{"host", nullptr, 0, nullptr, nullptr, take, true};

struct Prepared {
  Call call = calls::dense();
  Plan plan{};
  explicit Prepared(const Backend& backend) {
    for (const Output& o : outputs(call)) call[o.role] = calls::array(o.dtype, {1});
    plan.problem = describe(calls::dense());
    plan.backend = &backend;
    plan.temporaries = {{DType::f32, 100}, {DType::bf16, 3}};
  }
};
std::string error_of(const Prepared& p, std::vector<void*> temporaries) {
  try {
    execute(p.plan, p.call, temporaries, nullptr, nullptr);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Backend, GetsArraysTemporariesAndStream) {
  const Prepared p(OF_A_GPU);
  ASSERT_EQ(wanted_temporaries(p.plan).size(), 2u);
  char memory[2];
  std::vector<void*> temporaries{&memory[0], &memory[1]};
  const int before = given.calls;
  execute(p.plan, p.call, temporaries, memory, nullptr);
  EXPECT_EQ(given.calls, before + 1);
  EXPECT_EQ(given.arrays, p.call.arrays);
  EXPECT_EQ(given.temporaries, temporaries);
  EXPECT_EQ(given.stream, memory);
}

TEST(Backend, OneThatAllocatesWantsNoTemporaries) {
  const Prepared p(WITH_MEMORY);
  EXPECT_TRUE(wanted_temporaries(p.plan).empty());
  EXPECT_EQ(error_of(p, {}), "");
  EXPECT_TRUE(given.temporaries.empty());
}

TEST(Backend, MissingTemporariesAreAnError) {
  const int before = given.calls;
  EXPECT_EQ(error_of(Prepared(OF_A_GPU), {}), "[flash_attn_func] temporaries: expected 2, found 0.");
  EXPECT_EQ(given.calls, before);
}

TEST(Backend, WhatPythonLaunchesIsRefusedHere) {
  char memory[2];
  EXPECT_EQ(error_of(Prepared(OF_PYTHON), {&memory[0], &memory[1]}),
            "[flash_attn_func] device: expected Python, which alone can launch python kernels, found C++.");
}

TEST(Backend, TheCpuIsChosenForItsArraysAndWantsNoWorkspace) {
  Call call = calls::dense();
  const Plan plan = prepare(call, device_of(call));
  EXPECT_STREQ(plan.backend->name, "cpu");
  EXPECT_EQ(workspace_bytes(call), 0);
}

TEST(Backend, AKindOfDeviceWithoutBackendsSaysSo) {
  Call call = calls::dense();
  for (Tensor& t : call.arrays) t.place.kind = DeviceKind::rocm;
  try {
    run(call);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::unsupported);
    EXPECT_STREQ(e.what(), "[flash_attn_func] no ROCm kernel takes this call: this build has no such backend.");
  }
}
}  // namespace
