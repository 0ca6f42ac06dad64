// The state of one launch: the threads of the threadgroup that runs now, and what they share. One launch runs at a time.
#pragma once
#include <string>
#include <unordered_set>
#include <vector>

#include "services.h"

namespace emulator {

constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t ARENA_BYTES = 1 << 20;
constexpr size_t RED_ZONE = 64;  // between threadgroup variables: an index past the end hits none

enum class State { READY, IN_OPERATION, AT_BARRIER, DONE };
enum class Operation { EXCHANGE, MATRIX_EXCHANGE, MULTIPLY, BARRIER };

// Memory kinds whose accesses a barrier may order; barrier flags name them.
enum Kind : int { DEVICE, THREADGROUP, KINDS };
inline bool covers(int flags, int kind) { return (flags & (kind == DEVICE ? MEM_DEVICE : MEM_THREADGROUP)) != 0; }

struct Simdgroup;
struct Lane {
  void* stack_pointer;
  Simdgroup* simdgroup;
  uint32_t bit, thread;  // of its simdgroup; in its threadgroup
  State state;
  // the operation it waits in: lanes that diverge wait in different ones
  int site;
  Operation operation;
  Combine combine;
  int argument;  // barrier flags, or the 8x8x8 products an exchange stands for
  ThreadInfo info;
};

constexpr unsigned MAX_IN = 192, MAX_OUT = 64;  // bytes a lane may exchange; matmul2d needs them

struct alignas(64) Simdgroup {
  Lane* lanes;
  uint32_t index, everyone, live, ready, arrived, at_barrier;  // masks of lanes
  uint32_t epoch[KINDS];                                       // grows with each simdgroup barrier that covers the memory
  int first_site;
  bool mixed;  // lanes wait at different places
  // Operands and results, a slot a lane. One buffer is enough: a lane's result is overwritten only after it has come back for more.
  alignas(64) float a[64], b[64], c[64], d[64];
  alignas(64) unsigned char in[SIMD_WIDTH * MAX_IN], out[SIMD_WIDTH * MAX_OUT];
};

// What is known of one byte of memory. Thread numbers; MANY_LANES + s: several lanes of simdgroup s; SEVERAL: several simdgroups.
constexpr uint16_t MANY_LANES = 2048, SEVERAL = 0xffff;
struct Cell {
  uint32_t write_group, write_epoch, write_simd_epoch;  // groups count from 1, so that 0 is never
  uint32_t read_group, read_epoch, read_simd_epoch;
  uint16_t writer, reader;
  bool several_groups_read, written;
};

struct Variable {
  size_t offset, size;
  const char* name;  // null: not used in this group yet
};

struct Machine {
  const Kernel* kernel;
  const BufferView* buffers;
  const Dispatch* dispatch;
  Counters* counters;
  void* pointers[MAX_BUFFERS];

  std::vector<Lane> lanes;
  std::vector<Simdgroup> simdgroups;
  char* stacks = nullptr;
  size_t stack_count = 0;

  Lane* current = nullptr;  // null: the host runs
  void* host_stack = nullptr;
  uint32_t thread_count = 0, live = 0, at_barrier = 0, ready_simdgroups = 0;
  uint32_t group = 0;  // number of the running threadgroup, from 1
  uint32_t epoch[KINDS];
  int barrier_flags = 0, barrier_site = 0;

  char* arena = nullptr;
  size_t arena_used = 0;
  std::vector<Variable> variables;
  std::vector<Cell> arena_cells;
  std::vector<std::vector<Cell>> buffer_cells;
  uintptr_t module_first = 0, module_end = 0;  // where the kernel's code and constants are mapped

  std::string faults;
  std::unordered_set<std::string> known;
  bool stopped = false;
};
extern Machine machine;

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
// One fault: kept once for each (kind, site, instruction, subject).
void report(const char* kind, int site, const void* instruction, const std::string& subject, const std::string& sentence);
// Ends the launch from inside a kernel.
[[noreturn]] void stop();
void begin_group_memory();
void run_group();  // schedule.cpp: all threads of machine.lanes to their end

}  // namespace emulator
