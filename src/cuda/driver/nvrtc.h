// NVRTC, NVIDIA's compiler as a library: found among torch's wheels, the nvidia-cuda-nvrtc wheels, a toolkit, the loader's own path.
#pragma once
#include <string>
#include <vector>

namespace fa::cuda::driver {
struct Compiler {
  std::string path;  // of the library
  int version = 0;   // 13000: CUDA 13.0
};
// The one in use. Throws Error (runtime) with the pip command where there is none.
const Compiler& compiler();
// Folders of Python packages to look in, besides those of the libraries that this process has loaded.
void look_in(const std::vector<std::string>& site_packages);

struct Compiled {
  std::string image;  // a cubin, or PTX
  std::string log;
};
// `architecture`: as in options_for(). Throws Error (runtime) with the beginning of the compiler's log.
Compiled compile(const std::string& text, const std::string& name, const std::vector<std::string>& options);
// --gpu-architecture for a device: its own (sm_90a), or PTX of the newest older one (compute_90) where the compiler does not know it.
std::string architecture(int arch);
}  // namespace fa::cuda::driver
