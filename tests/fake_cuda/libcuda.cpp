// A driver made of software: it answers like NVIDIA's and writes what it was asked to FAKE_CUDA_LOG, a line a call. It computes nothing,
// unless an image is the path of a library (libnvrtc.cpp): then a launch calls its run_<kernel>(arguments, grid, threads, shared bytes).
// What it plays: FAKE_CUDA_DEVICES devices (1) of architecture FAKE_CUDA_ARCH (90); FAKE_CUDA_CONTEXT: the device whose context is current
// in every thread at the start (-1: none). FAKE_CUDA_FAIL names a function that fails.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

namespace {
int number(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value ? std::atoi(value) : otherwise;
}
template <class... Values>
void say(const char* format, Values... values) {
  static std::mutex mutex;
  static FILE* const log = std::getenv("FAKE_CUDA_LOG") ? std::fopen(std::getenv("FAKE_CUDA_LOG"), "a") : nullptr;
  if (!log) return;
  const std::lock_guard lock(mutex);
  std::fprintf(log, format, values...);
  std::fputc('\n', log);
  std::fflush(log);
}
int result(const char* function) {
  const char* failing = std::getenv("FAKE_CUDA_FAIL");
  return failing && std::strcmp(failing, function) == 0 ? 700 : 0;
}

struct Context {
  int device;
  unsigned long long id;
};
struct Module {
  Context* context;
  std::string image;
  void* library;
};
struct Function {
  Module* module;
  std::string name;
};
std::atomic<bool> initialised{false};
Context* primary(int device) {
  static Context contexts[8] = {{0, 100}, {1, 101}, {2, 102}, {3, 103}, {4, 104}, {5, 105}, {6, 106}, {7, 107}};
  return &contexts[device];
}
std::vector<Context*>& stack() {
  thread_local std::vector<Context*> contexts = [] {
    const int device = number("FAKE_CUDA_CONTEXT", 0);
    return device < 0 ? std::vector<Context*>{} : std::vector<Context*>{primary(device)};
  }();
  return contexts;
}
Context* current() { return stack().empty() ? nullptr : stack().back(); }
}  // namespace

extern "C" {
int cuInit(unsigned flags) {
  initialised = true;
  say("init %u", flags);
  return result("cuInit");
}
int cuDriverGetVersion(int* version) { return *version = number("FAKE_CUDA_VERSION", 13000), 0; }
int cuDeviceGetCount(int* count) { return initialised ? (*count = number("FAKE_CUDA_DEVICES", 1), 0) : 3; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int arch = number("FAKE_CUDA_ARCH", 90);
  switch (attribute) {
    case 75: return *value = arch / 10, 0;
    case 76: return *value = arch % 10, 0;
    case 16: return *value = 132, 0;
    case 97: return *value = arch == 90 ? 232448 : 101376, 0;
    default: return 1;
  }
}
int cuDeviceGetName(char* name, int length, int device) {
  std::snprintf(name, static_cast<size_t>(length), "Fake GPU %d", device);
  return 0;
}
int cuDevicePrimaryCtxRetain(Context** context, int device) {
  say("retain %d", device);
  return *context = primary(device), 0;
}
int cuCtxGetCurrent(Context** context) { return initialised ? (*context = current(), 0) : 3; }
int cuCtxPushCurrent_v2(Context* context) {
  stack().push_back(context);
  say("push %d", context->device);
  return 0;
}
int cuCtxPopCurrent_v2(Context** context) {
  *context = current();
  if (!*context) return 201;
  stack().pop_back();
  say("pop %d", (*context)->device);
  return 0;
}
int cuCtxGetDevice(int* device) { return current() ? (*device = current()->device, 0) : 201; }
int cuCtxSynchronize() {
  say("synchronize");
  return 0;
}
int cuCtxGetId(Context* context, unsigned long long* id) { return *id = context->id, 0; }
int cuThreadExchangeStreamCaptureMode(int* mode) {
  thread_local int now = 0;
  std::swap(now, *mode);
  say("capture mode %d", now);
  return 0;
}
int cuModuleLoadData(Module** module, const void* image) {
  if (!current()) return 201;
  const char* text = static_cast<const char*>(image);
  void* const library = text[0] == '/' ? dlopen(text, RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (text[0] == '/' && !library) return 200;
  *module = new Module{current(), std::string(text, std::strlen(text)), library};
  say("load %d %.60s", current()->device, std::memcmp(text, "\177ELF", 4) == 0 ? "cubin" : text);
  return result("cuModuleLoadData");
}
int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  *function = new Function{module, name};
  say("function %s", name);
  return result("cuModuleGetFunction");
}
int cuFuncSetAttribute(Function* function, int attribute, int value) {
  say("attribute %s %d %d", function->name.c_str(), attribute, value);
  return result("cuFuncSetAttribute");
}
int cuLaunchKernel(Function* function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty, unsigned tz, unsigned shared,
                   void* stream, void** arguments, void** extra) {
  if (!current() || current() != function->module->context) return 201;
  if (bx == 0 || by == 0 || bz == 0 || by > 65535 || bz > 65535 || extra) return 1;
  if (void* const library = function->module->library) {
    using Run = void(void**, const unsigned*, unsigned, unsigned);
    const unsigned grid[3] = {bx, by, bz};
    reinterpret_cast<Run*>(dlsym(library, ("run_" + function->name).c_str()))(arguments, grid, tx * ty * tz, shared);
  }
  if (!std::getenv("FAKE_CUDA_LOG")) return result("cuLaunchKernel");
  // Params: of q, k, v the strides; Arrays: its pointers
  const long long* strides = static_cast<const long long*>(arguments[0]);
  void* const* pointers = static_cast<void* const*>(arguments[1]);
  std::string given;
  for (int i = 0; i < 34; i++) {
    char words[40];
    std::snprintf(words, sizeof words, " %llx", reinterpret_cast<unsigned long long>(pointers[i]));
    given += words;
  }
  say("launch %s %u,%u,%u %u,%u,%u %u %llx %d q=%lld,%lld,%lld arrays%s", function->name.c_str(), bx, by, bz, tx, ty, tz, shared,
      reinterpret_cast<unsigned long long>(stream), current()->device, strides[0], strides[1], strides[2], given.c_str());
  return result("cuLaunchKernel");
}
int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t bytes) {
  say("copy %zu", bytes);
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return 0;
}
int cuGetErrorName(int code, const char** text) { return *text = code == 700 ? "CUDA_ERROR_FAKE" : "CUDA_ERROR_OTHER", 0; }
int cuGetErrorString(int code, const char** text) { return *text = code == 700 ? "a planted failure" : "something else", 0; }
}
