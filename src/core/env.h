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
// FLASH_ATTENTION_METAL=emulate[:build[:g<generation>]]: MLX arrays are computed by the Metal kernels in tools/metal_emulator, on any
// machine.
inline std::string metal() { return read("FLASH_ATTENTION_METAL"); }
// FLASH_ATTENTION_CACHE: the folder of compiled GPU kernels; otherwise flash_attn in XDG_CACHE_HOME, or in the home's own cache folder.
inline std::string cache() { return read("FLASH_ATTENTION_CACHE"); }
inline std::string cache_home() { return read("XDG_CACHE_HOME"); }
inline std::string home() { return read("HOME"); }
// FLASH_ATTENTION_NVRTC=<libnvrtc.so.NN>: this compiler and no other. CUDA_HOME: where a toolkit with one may be, besides /usr/local/cuda.
inline std::string nvrtc() { return read("FLASH_ATTENTION_NVRTC"); }
inline std::string cuda_home() { return read("CUDA_HOME"); }
// FLASH_ATTENTION_CHECK=1: values inside lengths and page tables on a GPU are checked, too, which waits for the GPU.
inline bool check() { return read("FLASH_ATTENTION_CHECK") == "1"; }
}  // namespace fa::env
