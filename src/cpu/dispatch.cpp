#include "cpu/dispatch.h"

#include <string>

#include "core/env.h"
#include "core/error.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fa::cpu {
#if defined(__x86_64__)
namespace {
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
  bool has(unsigned r, int i) const { return (r >> i & 1u) != 0; }
};
Registers cpuid(unsigned leaf, unsigned part) {
  Registers r;
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);  // zeros where there is no such leaf
  return r;
}
// The registers that the operating system saves when it switches threads: without them an instruction set faults or loses values.
bool system_saves(unsigned state) {
  if (!cpuid(1, 0).has(cpuid(1, 0).c, 27)) return false;  // OSXSAVE
  unsigned low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & state) == state;
}
constexpr unsigned YMM = 0x6, ZMM = 0xe6;  // XCR0: SSE and AVX; and the three parts of AVX-512

bool is_amd() {
  const Registers r = cpuid(0, 0);
  return r.b == 0x68747541u && r.d == 0x69746e65u && r.c == 0x444d4163u;  // AuthenticAMD
}
}  // namespace

bool has_avx2() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  return one.has(one.c, 12) && one.has(one.c, 28) && one.has(one.c, 29) && seven.has(seven.b, 5) && system_saves(YMM);
}
bool has_avx512() {
  const Registers seven = cpuid(7, 0);
  const auto bit = [&](int i) { return seven.has(seven.b, i); };
  return has_avx2() && bit(16) && bit(17) && bit(30) && bit(31) && system_saves(ZMM);  // F, DQ, BW, VL
}
bool has_avx512bf16() {
  const Registers more = cpuid(7, 1);
  return has_avx512() && more.has(more.a, 5);
}
#endif

namespace {
struct Row {
  const Isa* isa;
  bool chosen;  // without being named
};
const Row* rows(int& count) {
#if defined(__x86_64__)
  // Intel's vdpbf16ps is half as fast as widening to float32 (measured on Emerald Rapids), AMD's twice as fast (Zen 5).
  static const Row all[] = {{&AVX512BF16, has_avx512bf16() && is_amd()}, {&AVX512, has_avx512()}, {&AVX2, has_avx2()}, {&SCALAR, true}};
#else
  static const Row all[] = {{&SCALAR, true}};
#endif
  count = static_cast<int>(sizeof(all) / sizeof(all[0]));
  return all;
}
}  // namespace

const Entry& entry_of(const Isa& isa, Entry (Isa::*kernels)[3], DType dtype) {
  const Entry& own = (isa.*kernels)[static_cast<int>(dtype) - 1];
  return own.run ? own : entry_of(*isa.base, kernels, dtype);
}

const Isa& isa() {
  int count = 0;
  const Row* const all = rows(count);
  const std::string name = env::cpu_isa();
  std::string names;
  for (int i = count - 1; i >= 0; i--) {
    const Isa& x = *all[i].isa;
    if (name == x.name) {
      if (x.supported()) return x;
      fail(Error::Kind::value, "flash_attn", "FLASH_ATTENTION_CPU_ISA", text("expected an instruction set of this machine, found ", name));
    }
    names += (names.empty() ? "" : ", ") + std::string(x.name);
  }
  if (!name.empty()) fail(Error::Kind::value, "flash_attn", "FLASH_ATTENTION_CPU_ISA", text("expected one of ", names, ", found ", name));
  const Row* row = all;
  while (!row->chosen) row++;
  return *row->isa;
}
}  // namespace fa::cpu
