// The C interface between the three parts: kernels (compiled Metal text) call the services, the host (emulator.py, through ctypes)
// describes a launch and reads what came of it. The structs at the end are repeated in host.py: keep both equal.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr int SIMD_WIDTH = 32;
constexpr int MAX_BUFFERS = 31;
constexpr int MAX_THREADS = 1024;
constexpr size_t MAX_THREADGROUP_BYTES = 32768;

// What a kernel parameter may ask for. The names are Metal's: the rewriter copies the attribute's word, the compiler checks it.
namespace attribute {
enum Code : int {
  thread_position_in_grid,
  threads_per_grid,
  threadgroup_position_in_grid,
  threadgroups_per_grid,
  thread_position_in_threadgroup,
  threads_per_threadgroup,
  dispatch_threads_per_threadgroup,
  grid_origin,
  grid_size,
  thread_index_in_threadgroup,
  thread_index_in_simdgroup,
  simdgroup_index_in_threadgroup,
  simdgroups_per_threadgroup,
  dispatch_simdgroups_per_threadgroup,
  threads_per_simdgroup,
  thread_execution_width,
  thread_index_in_quadgroup,
  quadgroup_index_in_threadgroup,
  quadgroups_per_threadgroup,
  dispatch_quadgroups_per_threadgroup,
  count,
  buffer = 1000,  // buffer + n: [[buffer(n)]]
};
}

struct ThreadInfo {
  uint32_t value[attribute::count][3];
};
using Entry = void (*)(void* const* buffers, const ThreadInfo* thread);
// in and out: one slot a lane, its size rounded up to 16 bytes; bits of `active` say which lanes take part.
using Combine = void (*)(uint32_t active, const unsigned char* in, unsigned char* out);

// A place in the kernel's text: lanes that meet in one operation must come from the same one.
constexpr int SITE_COLUMNS = 4096;
constexpr int site_of(int line, int column) { return line * SITE_COLUMNS + (column < SITE_COLUMNS ? column : SITE_COLUMNS - 1); }

enum : int { MEM_DEVICE = 1, MEM_THREADGROUP = 2 };
enum : int { SPACE_DEVICE = 1, SPACE_CONSTANT = 2, SPACE_THREADGROUP = 3 };

// ---- the host's side -----------------------------------------------------------------------------------------------------------

struct Parameter {
  const char* name;
  int code;      // attribute::Code
  int space;     // SPACE_*; 0: passed by value
  int writable;  // not const
  int item_size;
};
struct Kernel {
  const char* name;
  Entry entry;
  const Parameter* parameters;
  int parameter_count;
};
struct FunctionConstant {
  int id;
  int size;
  void* address;
};
struct Module {
  const Kernel* kernels;
  int kernel_count;
  const FunctionConstant* constants;
  int constant_count;
};
struct BufferView {
  char* pointer;  // what the kernel gets: the first element, which is not where memory starts if a stride is negative
  char* data;
  size_t size;
  const char* name;
  int writable;
  int constant;     // in constant memory: its bytes are not counted
  int initialised;  // 0: an output that holds only poison so far
};
struct Dispatch {
  uint32_t grid[3];  // threads
  uint32_t threadgroup[3];
  int descending;
  int checked;  // an instrumented module: memory is watched
};
struct Counters {
  uint64_t threads, groups, barriers, simdgroup_barriers, shuffles, multiplications;
  uint64_t threadgroup_memory;  // bytes of threadgroup variables, rounded as the device does
  uint64_t device_read, device_written, threadgroup_read, threadgroup_written;
  double seconds;
};

}  // namespace emulator

extern "C" {
// For kernels.
uint32_t emulator_lane();
void* emulator_threadgroup_variable(int id, size_t size, size_t alignment, const char* name);
void emulator_threadgroup_barrier(int flags, int site);
void emulator_simdgroup_barrier(int flags, int site);
// Every lane gives in_size bytes and gets out_size bytes of what combine() makes of all lanes' bytes.
void emulator_exchange(int site, const void* in, unsigned in_size, void* out, unsigned out_size, emulator::Combine combine);
// 8x8 matrices, two elements a lane: d = a * b + c.
void emulator_multiply(int site, const float* a, const float* b, const float* c, float* d);
// The same meeting as emulator_exchange for an operation that needs all 32 lanes and stands for `multiplications` 8x8x8 products.
void emulator_matrix_exchange(int site, const void* in, unsigned in_size, void* out, unsigned out_size, emulator::Combine combine,
                              int multiplications);
// reads: not a plain store
void emulator_atomic_access(const volatile void* address, size_t size, bool reads);

// For the host. Faults are lines "kind <tab> line of text or 0 <tab> offset of the instruction or 0 <tab> sentence".
int emulator_launch(const emulator::Kernel* kernel, const emulator::BufferView* buffers, const emulator::Dispatch* dispatch,
                    emulator::Counters* counters, char* faults, size_t capacity);
}
