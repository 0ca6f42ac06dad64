// NVIDIA's driver, found when the first GPU array arrives: nothing of CUDA is needed to build or to load this library.
#pragma once
#include <cstddef>
#include <string>

#include "core/error.h"

namespace fa::cuda::driver {
// The driver API's C ABI: what we call of it. Handles are pointers, devices and results are numbers (0: success).
using Result = int;
using DeviceId = int;
using Context = struct ContextOfDriver*;
using Module = struct ModuleOfDriver*;
using Function = struct FunctionOfDriver*;
using Address = unsigned long long;  // CUdeviceptr

enum Attribute : int { SHARED_BYTES_OPTIN = 97, CORES = 16, MAJOR = 75, MINOR = 76 };    // CU_DEVICE_ATTRIBUTE_*
enum FunctionAttribute : int { STATIC_SHARED_BYTES = 1, MAX_DYNAMIC_SHARED_BYTES = 8 };  // CU_FUNC_ATTRIBUTE_*
enum CaptureMode : int { RELAXED = 2 };                                                  // CU_STREAM_CAPTURE_MODE_*

struct Libcuda {
  Result (*init)(unsigned flags);
  Result (*driver_version)(int* version);
  Result (*device_count)(int* count);
  Result (*device_get)(DeviceId* device, int ordinal);
  Result (*device_attribute)(int* value, int attribute, DeviceId device);
  Result (*device_name)(char* name, int length, DeviceId device);
  Result (*primary_context_retain)(Context* context, DeviceId device);
  Result (*context_current)(Context* context);
  Result (*context_push)(Context context);
  Result (*context_pop)(Context* context);
  Result (*context_device)(DeviceId* device);
  Result (*context_synchronize)();
  Result (*context_id)(Context context, unsigned long long* id);  // null before CUDA 12
  Result (*exchange_capture_mode)(int* mode);
  Result (*module_load)(Module* module, const void* image);
  Result (*module_function)(Function* function, Module module, const char* name);
  Result (*function_set)(Function function, int attribute, int value);
  Result (*launch)(Function function, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z, unsigned threads_x, unsigned threads_y,
                   unsigned threads_z, unsigned shared_bytes, void* stream, void** arguments, void** extra);
  Result (*copy_to_host)(void* to, Address from, size_t bytes);
  Result (*error_name)(Result result, const char** text);
  Result (*error_string)(Result result, const char** text);
};
// Throws Error (runtime) where there is no driver, or one without devices, each time it is asked.
const Libcuda& libcuda();
// Throws Error (runtime) that says what was done and what the driver answered.
[[noreturn]] void failed(Result result, const std::string& what);
template <class... Parts>
void check(Result result, const Parts&... what) {
  if (result != 0) failed(result, text(what...));
}
int driver_version();  // 13000: CUDA 13.0
}  // namespace fa::cuda::driver
