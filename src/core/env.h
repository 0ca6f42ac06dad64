// Every FLASH_ATTENTION_* variable: the only place that reads the environment (besides OMP_NUM_THREADS, the number of threads).
#pragma once
#include <cstdlib>
#include <string>

namespace fa::env {
inline std::string read(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}
// FLASH_ATTENTION_CPU_ISA=scalar|avx2|avx512|avx512bf16: this instruction set and no other; an error where the machine lacks it.
inline std::string cpu_isa() { return read("FLASH_ATTENTION_CPU_ISA"); }
// FLASH_ATTENTION_NUM_THREADS: threads of the CPU backend; wins over OMP_NUM_THREADS.
inline std::string num_threads() { return read("FLASH_ATTENTION_NUM_THREADS"); }
inline std::string omp_num_threads() { return read("OMP_NUM_THREADS"); }
// FLASH_ATTENTION_KERNELS=<src>: GPU kernel texts of a checkout instead of those inside the library.
inline std::string kernels() { return read("FLASH_ATTENTION_KERNELS"); }
}  // namespace fa::env
