#include "cuda/driver/nvrtc.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <mutex>

#include "core/env.h"
#include "core/error.h"
#include "cuda/driver/libcuda.h"
#include "cuda/driver/library.h"

namespace fa::cuda::driver {
namespace {
using Program = struct ProgramOfNvrtc*;
struct Api {
  Compiler compiler;
  Result (*version)(int* major, int* minor);
  Result (*create)(Program* program, const char* text, const char* name, int headers, const char* const* header_texts,
                   const char* const* header_names);
  Result (*destroy)(Program* program);
  Result (*compile)(Program program, int count, const char* const* options);
  Result (*log_size)(Program program, size_t* bytes);
  Result (*log)(Program program, char* text);
  Result (*cubin_size)(Program program, size_t* bytes);
  Result (*cubin)(Program program, char* image);
  Result (*ptx_size)(Program program, size_t* bytes);
  Result (*ptx)(Program program, char* image);
  Result (*arch_count)(int* count);
  Result (*archs)(int* archs);
  const char* (*error_string)(Result result);
};
constexpr int OLDEST = 12000;

bool load(Api& api, const std::string& path, std::string& why) {
  // NVRTC looks for its second half when it compiles: loaded before, from the same folder, it is found wherever that is
  std::string ignored;
  if (path.front() == '/')
    for (const std::string& builtins : files(folder_of(path) + "/libnvrtc-builtins.so*")) open_library(builtins, ignored);
  void* library = open_library(path, why);
  if (!library) return false;
  bool whole = true;
  const auto need = [&](const char* name, auto& function) {
    find(library, name, function);
    if (!function && whole) why = text(path, " lacks ", name), whole = false;
  };
  need("nvrtcVersion", api.version);
  need("nvrtcCreateProgram", api.create);
  need("nvrtcDestroyProgram", api.destroy);
  need("nvrtcCompileProgram", api.compile);
  need("nvrtcGetProgramLogSize", api.log_size);
  need("nvrtcGetProgramLog", api.log);
  need("nvrtcGetCUBINSize", api.cubin_size);
  need("nvrtcGetCUBIN", api.cubin);
  need("nvrtcGetPTXSize", api.ptx_size);
  need("nvrtcGetPTX", api.ptx);
  need("nvrtcGetNumSupportedArchs", api.arch_count);
  need("nvrtcGetSupportedArchs", api.archs);
  need("nvrtcGetErrorString", api.error_string);
  int major = 0, minor = 0;
  if (!whole || api.version(&major, &minor) != 0) return false;
  api.compiler = Compiler{path, major * 1000 + minor * 10};
  if (api.compiler.version < OLDEST) why = text(path, " is of CUDA ", major, ".", minor);
  return api.compiler.version >= OLDEST;
}

// Of the driver; any where there is none.
int newest_cuda() {
  try {
    return driver_version() / 1000;
  } catch (const Error&) {
    return std::numeric_limits<int>::max();
  }
}

std::mutex folders_mutex;
std::vector<std::string>& folders() {
  static std::vector<std::string> all;
  return all;
}

// Files to try, in order. Those whose CUDA is newer than the driver's come last: it may not load what they make.
std::vector<std::string> candidates() {
  if (const std::string given = env::nvrtc(); !given.empty()) return {given};
  std::vector<std::string> patterns, found;
  const auto site = [&](const std::string& folder) { patterns.push_back(folder + "/nvidia/*/lib/libnvrtc.so.[1-9]*"); };
  for (const std::string& path : loaded_libraries()) {
    const std::string folder = folder_of(path), name = name_of(path);
    if (name.rfind("libnvrtc.so", 0) == 0) found.push_back(path);
    // <site-packages>/nvidia/<part>/lib/libcudart.so.13, <site-packages>/torch/lib/libc10_cuda.so, jaxlib's plugins
    if (name.rfind("libcudart.so", 0) == 0) patterns.push_back(folder + "/libnvrtc.so.[1-9]*"), site(folder + "/../../..");
    if (name.rfind("libc10_cuda.so", 0) == 0) site(folder + "/../..");
  }
  site(folder_of(own_library()) + "/..");
  {
    const std::lock_guard lock(folders_mutex);
    for (const std::string& folder : folders()) site(folder);
  }
  const std::string home = env::cuda_home();
  for (const std::string& folder : {home.empty() ? "/usr/local/cuda" : home, std::string("/usr/local/cuda-*")})
    for (const char* part : {"/lib64", "/targets/*-linux/lib"}) patterns.push_back(folder + part + "/libnvrtc.so.[1-9]*");
  for (const std::string& pattern : patterns)
    for (const std::string& path : files(pattern)) found.push_back(path);
  for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12"}) found.emplace_back(name);
  const int newest = newest_cuda();
  const auto too_new = [&](const std::string& path) {
    const std::string name = name_of(path);
    const size_t at = name.find(".so.");
    return at != std::string::npos && std::strtol(name.c_str() + at + 4, nullptr, 10) > newest;
  };
  std::stable_partition(found.begin(), found.end(), [&](const std::string& path) { return !too_new(path); });
  return found;
}

Api start() {
  Api api{};
  std::string why, last;
  for (const std::string& path : candidates()) {
    if (load(api, path, last)) return api;
    if (why.empty()) why = last;
  }
  throw Error(Error::Kind::runtime,
              text("[cuda] compiler: expected NVIDIA's run-time compiler (libnvrtc.so of CUDA 12 or newer), found none (", why,
                   "). pip install nvidia-cuda-nvrtc (CUDA 13) or nvidia-cuda-nvrtc-cu12 (CUDA 12)."));
}
const Api& nvrtc() {
  static const Api api = start();  // one that throws is tried again at the next call
  return api;
}

struct Owned {
  const Api& api;
  Program program = nullptr;
  explicit Owned(const Api& of) : api(of) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (program) api.destroy(&program);
  }
};
void must(Result result, const char* what) {
  if (result != 0) throw Error(Error::Kind::runtime, text("[cuda] compiler: ", what, ": ", nvrtc().error_string(result), "."));
}
std::string bytes_of(Program program, Result (*size)(Program, size_t*), Result (*get)(Program, char*), const char* what) {
  size_t count = 0;
  must(size(program, &count), what);
  std::string bytes(count, '\0');
  if (count > 0) must(get(program, bytes.data()), what);
  return bytes;
}
// the first errors of a log
std::string beginning(const std::string& log) {
  const size_t at = std::min(log.find(": error"), log.size());
  const size_t line = log.rfind('\n', at) == std::string::npos ? 0 : log.rfind('\n', at) + 1;
  return log.substr(line, 1500);
}
}  // namespace

const Compiler& compiler() { return nvrtc().compiler; }

void look_in(const std::vector<std::string>& site_packages) {
  const std::lock_guard lock(folders_mutex);
  folders() = site_packages;
}

std::string architecture(int arch) {
  int count = 0;
  must(nvrtc().arch_count(&count), "architectures");
  std::vector<int> known(static_cast<size_t>(std::max(count, 0)));
  if (count > 0) must(nvrtc().archs(known.data()), "architectures");
  if (std::find(known.begin(), known.end(), arch) != known.end()) return text("sm_", arch, arch >= 90 ? "a" : "");
  int best = 0;
  for (const int a : known)
    if (a <= arch) best = std::max(best, a);
  if (best == 0)
    throw Error(Error::Kind::runtime,
                text("[cuda] compiler: expected one that knows architecture ", arch, ", found ", compiler().path, "."));
  return text("compute_", best);
}

Compiled compile(const std::string& text_, const std::string& name, const std::vector<std::string>& options) {
  Owned owned(nvrtc());
  must(nvrtc().create(&owned.program, text_.c_str(), name.c_str(), 0, nullptr, nullptr), "program");
  std::vector<const char*> words;
  words.reserve(options.size());
  for (const std::string& option : options) words.push_back(option.c_str());
  const Result result = nvrtc().compile(owned.program, static_cast<int>(words.size()), words.data());
  std::string log = bytes_of(owned.program, nvrtc().log_size, nvrtc().log, "log");
  while (!log.empty() && log.back() == '\0') log.pop_back();
  if (result != 0)
    throw Error(Error::Kind::runtime,
                text("[cuda] compiler: ", name, ": ", nvrtc().error_string(result), " (", compiler().path, "): ", beginning(log)));
  const bool is_ptx =
      std::any_of(options.begin(), options.end(), [](const std::string& o) { return o.find("=compute_") != std::string::npos; });
  return is_ptx ? Compiled{bytes_of(owned.program, nvrtc().ptx_size, nvrtc().ptx, "PTX"), log}
                : Compiled{bytes_of(owned.program, nvrtc().cubin_size, nvrtc().cubin, "cubin"), log};
}
}  // namespace fa::cuda::driver
