// The kernels of each instruction set as tables of functions, and the choice among them by CPUID (dispatch.cpp).
#pragma once
#include <cstddef>

#include "cpu/job.h"

namespace fa::cpu {

// One kernel for one dtype. A worker calls run() for each of its tasks with memory of its own: scratch_bytes(job), 64-byte aligned,
// the first 64 bytes zeroed when the launch begins and the rest untouched between tasks, so that a kernel can keep the tiles it packed
// for a head. task_rows(): how many rows (forward: position * group + member of the group; backward, decode: keys) a task should have
// for this many workers; a function of the job and, for forward only, of the number of workers: results must not depend on it.
struct Entry {
  size_t (*scratch_bytes)(const Job&);
  int (*task_rows)(const Job&, int workers);
  void (*run)(const Job&, const Task&, void* scratch);
};

// dtypes f16, bf16, f32 by index 0, 1, 2 (the order of DType without none). A set that is `base` and a few instructions more holds only
// the kernels that use those.
struct Isa {
  const char* name;
  bool (*supported)();
  Entry forward[3], backward[3], decode[3], bias_gradient[3];
  const Isa* base;
};
// A kernel of a set for a dtype (f16, bf16 or f32): its own, or that of the set it is based on.
const Entry& entry_of(const Isa& isa, Entry (Isa::*kernels)[3], DType dtype);

// Defined once per instruction set, in isa/<name>.cpp.
extern const Isa SCALAR;
#if defined(__x86_64__)
extern const Isa AVX2, AVX512, AVX512BF16;
#endif

// What CPUID and the operating system (XCR0) allow: for `supported`.
bool has_avx2();        // AVX2, FMA, F16C
bool has_avx512();      // and AVX-512 F, BW, VL, DQ
bool has_avx512bf16();  // and AVX512_BF16

// The best instruction set of this machine, or the one FLASH_ATTENTION_CPU_ISA names; throws Error (value) if unknown or absent.
const Isa& isa();
}  // namespace fa::cpu
