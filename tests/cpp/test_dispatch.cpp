// The choice of an instruction set, and FLASH_ATTENTION_CPU_ISA.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

namespace {
using namespace fa;

struct Named {
  explicit Named(const char* name) { setenv("FLASH_ATTENTION_CPU_ISA", name, 1); }
  ~Named() { unsetenv("FLASH_ATTENTION_CPU_ISA"); }
};

TEST(Dispatch, TheChosenSetRunsHere) {
  unsetenv("FLASH_ATTENTION_CPU_ISA");
  EXPECT_TRUE(cpu::isa().supported());
  EXPECT_TRUE(cpu::SCALAR.supported());
}

TEST(Dispatch, ANameChoosesOrIsAnError) {
  std::vector<const cpu::Isa*> sets = {&cpu::SCALAR};
#if defined(__x86_64__)
  sets.insert(sets.end(), {&cpu::AVX2, &cpu::AVX512, &cpu::AVX512BF16});
#endif
  for (const cpu::Isa* set : sets) {
    const Named named(set->name);
    if (set->supported()) {
      EXPECT_EQ(&cpu::isa(), set);
    } else {
      EXPECT_THROW(cpu::isa(), Error) << set->name;
    }
  }
}

TEST(Dispatch, AnUnknownNameIsAnErrorThatListsTheSets) {
  const Named named("sse9");
  try {
    cpu::isa();
    FAIL() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::value);
    const std::string message = e.what();
    EXPECT_NE(message.find("FLASH_ATTENTION_CPU_ISA"), std::string::npos) << message;
    EXPECT_NE(message.find("scalar"), std::string::npos) << message;
    EXPECT_NE(message.find("sse9"), std::string::npos) << message;
  }
}

#if defined(__x86_64__) && defined(__linux__)
// The compiler's own reading of CPUID and XCR0, made by others, must agree with ours.
TEST(Dispatch, AgreesWithTheCompiler) {
  EXPECT_EQ(cpu::has_avx2(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(cpu::has_avx512(), __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"));
  EXPECT_EQ(cpu::has_avx512bf16(), cpu::has_avx512() && __builtin_cpu_supports("avx512bf16"));
}
#endif

// Each kernel of each dtype is there: a forgotten one would be a call through null.
TEST(Dispatch, TablesAreFull) {
  std::vector<const cpu::Isa*> sets = {&cpu::SCALAR};
#if defined(__x86_64__)
  sets.insert(sets.end(), {&cpu::AVX2, &cpu::AVX512, &cpu::AVX512BF16});
#endif
  for (const cpu::Isa* set : sets)
    for (const auto& kernels : {&cpu::Isa::forward, &cpu::Isa::backward, &cpu::Isa::decode, &cpu::Isa::bias_gradient})
      for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
        const cpu::Entry& e = cpu::entry_of(*set, kernels, dtype);
        EXPECT_TRUE(e.scratch_bytes && e.task_rows && e.run) << set->name;
      }
}
}  // namespace
