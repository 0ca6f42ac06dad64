#include "cuda/driver/libcuda.h"

#include <initializer_list>

#include "cuda/driver/library.h"

namespace fa::cuda::driver {
namespace {
[[noreturn]] void missing(const std::string& message) { throw Error(Error::Kind::runtime, text("[cuda] driver: ", message, ".")); }

struct Loaded {
  Libcuda api{};
  std::string lacks;  // the first function that the library lacks
};
void load(Loaded& l, void* library) {
  const auto need = [&](const char* name, auto& function) {
    find(library, name, function);
    if (!function && l.lacks.empty()) l.lacks = name;
  };
  need("cuInit", l.api.init);
  need("cuDriverGetVersion", l.api.driver_version);
  need("cuDeviceGetCount", l.api.device_count);
  need("cuDeviceGet", l.api.device_get);
  need("cuDeviceGetAttribute", l.api.device_attribute);
  need("cuDeviceGetName", l.api.device_name);
  need("cuDevicePrimaryCtxRetain", l.api.primary_context_retain);
  need("cuCtxGetCurrent", l.api.context_current);
  need("cuCtxPushCurrent_v2", l.api.context_push);
  need("cuCtxPopCurrent_v2", l.api.context_pop);
  need("cuCtxGetDevice", l.api.context_device);
  need("cuCtxSynchronize", l.api.context_synchronize);
  need("cuThreadExchangeStreamCaptureMode", l.api.exchange_capture_mode);
  need("cuModuleLoadData", l.api.module_load);
  need("cuModuleGetFunction", l.api.module_function);
  need("cuFuncSetAttribute", l.api.function_set);
  need("cuLaunchKernel", l.api.launch);
  need("cuMemcpyDtoH_v2", l.api.copy_to_host);
  need("cuGetErrorName", l.api.error_name);
  need("cuGetErrorString", l.api.error_string);
  find(library, "cuCtxGetId", l.api.context_id);
}

std::string words(const Libcuda& api, Result result) {
  const char *name = nullptr, *sentence = nullptr;
  api.error_name(result, &name);
  api.error_string(result, &sentence);
  return text(name ? name : "error", " (", result, "): ", sentence ? sentence : "unknown to this driver");
}

Libcuda start() {
  std::string why;
  void* library = nullptr;
  for (const char* name : {"libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"}) {
    std::string words;
    if (!library) library = open_library(name, words);
    if (why.empty()) why = words;
  }
  if (!library) missing(text("expected NVIDIA's driver (libcuda.so.1), found none (", why, "). It comes with the GPU's driver package"));
  Loaded l;
  load(l, library);
  if (!l.lacks.empty()) missing(text("expected CUDA 12 or newer, found a driver without ", l.lacks));
  int count = 0;
  Result result = l.api.init(0);
  if (result == 0) result = l.api.device_count(&count);
  if (result != 0) missing(text("expected a usable NVIDIA GPU, found ", words(l.api, result)));
  if (count == 0) missing("expected an NVIDIA GPU, found none");
  return l.api;
}
}  // namespace

const Libcuda& libcuda() {
  static const Libcuda api = start();  // one that throws is tried again at the next call
  return api;
}

void failed(Result result, const std::string& what) {
  throw Error(Error::Kind::runtime, text("[cuda] ", what, ": ", words(libcuda(), result), "."));
}

int driver_version() {
  int version = 0;
  check(libcuda().driver_version(&version), "version of the driver");
  return version;
}
}  // namespace fa::cuda::driver
