// One launch: all threadgroups of the grid, one after the other.
#include <dlfcn.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#include <cstdio>
#include <cstring>

#include "machine.h"

namespace emulator {

void report(const char* kind, int site, const void* instruction, const std::string& subject, const std::string& sentence) {
  constexpr size_t MOST = 50;
  const std::string key = text("%s %d %p ", kind, site, instruction) + subject;
  if (machine.known.size() >= MOST || !machine.known.insert(key).second) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(instruction);
  const bool inside = at >= machine.module_first && at < machine.module_end;
  // A return address: the byte before it belongs to the call.
  machine.faults += text("%s\t%d\t%zu\t", kind, site / SITE_COLUMNS, inside ? static_cast<size_t>(at - 1 - machine.module_first) : 0);
  machine.faults += sentence + "\n";
}

namespace {

sigjmp_buf crash_return;
void* crash_address;

void on_crash(int, siginfo_t* info, void*) {
  crash_address = info->si_addr;
  siglongjmp(crash_return, 1);
}

// A plain build that reads far outside of its buffers, or a recursion that leaves its stack, ends as a fault and not as a dead process.
class CrashGuard {
 public:
  CrashGuard() {
    constexpr size_t SIZE = 64 * 1024;  // its own stack: the fiber's may be what overflowed
    static char* const memory = new char[SIZE];
    const stack_t stack{memory, 0, SIZE};
    sigaltstack(&stack, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 2; i++) sigaction(SIGNALS[i], &action, &before_[i]);
  }
  ~CrashGuard() {
    for (int i = 0; i < 2; i++) sigaction(SIGNALS[i], &before_[i], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static constexpr int SIGNALS[2] = {SIGSEGV, SIGBUS};
  struct sigaction before_[2];
  stack_t stack_before_;
};

// Where the module of the kernel is mapped: constants may be read there, and fault addresses are told relative to its start.
void find_module() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(machine.kernel->entry), &info)) return;
  machine.module_first = reinterpret_cast<uintptr_t>(info.dli_fbase);
  machine.module_end = machine.module_first;
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void*) {
        if (object->dlpi_addr != machine.module_first) return 0;
        for (int i = 0; i < object->dlpi_phnum; i++) {
          const auto& header = object->dlpi_phdr[i];
          if (header.p_type == PT_LOAD)
            machine.module_end = std::max(machine.module_end, object->dlpi_addr + header.p_vaddr + header.p_memsz);
        }
        return 1;
      },
      nullptr);
}

char* map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

bool reserve(size_t threads) {
  if (!machine.arena) {
    machine.arena = map(ARENA_BYTES);
    machine.arena_cells.resize(ARENA_BYTES);
  }
  if (machine.stack_count < threads) {
    if (machine.stacks) munmap(machine.stacks, machine.stack_count * STACK_BYTES);
    machine.stacks = map(threads * STACK_BYTES);
    machine.stack_count = machine.stacks ? threads : 0;
    for (size_t i = 0; machine.stacks && i < threads; i++) mprotect(machine.stacks + i * STACK_BYTES, 4096, PROT_NONE);
  }
  if (machine.lanes.size() < threads) machine.lanes.resize(threads);
  return machine.arena && machine.stacks;
}

struct Size {
  uint32_t of[3];
  uint64_t product() const { return static_cast<uint64_t>(of[0]) * of[1] * of[2]; }
};

void set(ThreadInfo& info, attribute::Code code, const Size& value) { memcpy(info.value[code], value.of, sizeof value.of); }

void prepare_thread(Lane& lane, uint32_t index, const Size& position, const Size& groups, const Size& size, const Size& full) {
  const Dispatch& d = *machine.dispatch;
  const Size inside{{index % size.of[0], index / size.of[0] % size.of[1], index / size.of[0] / size.of[1]}};
  Size global;
  for (int c = 0; c < 3; c++) global.of[c] = position.of[c] * full.of[c] + inside.of[c];
  const Size grid{{d.grid[0], d.grid[1], d.grid[2]}};
  ThreadInfo& info = lane.info;
  set(info, attribute::thread_position_in_grid, global);
  set(info, attribute::threads_per_grid, grid);
  set(info, attribute::threadgroup_position_in_grid, position);
  set(info, attribute::threadgroups_per_grid, groups);
  set(info, attribute::thread_position_in_threadgroup, inside);
  set(info, attribute::threads_per_threadgroup, size);
  set(info, attribute::dispatch_threads_per_threadgroup, full);
  set(info, attribute::grid_origin, Size{});
  set(info, attribute::grid_size, grid);
  const auto parts = [](uint64_t threads, uint32_t width) { return Size{{static_cast<uint32_t>((threads + width - 1) / width)}}; };
  set(info, attribute::thread_index_in_threadgroup, Size{{index}});
  set(info, attribute::thread_index_in_simdgroup, Size{{index % SIMD_WIDTH}});
  set(info, attribute::simdgroup_index_in_threadgroup, Size{{index / SIMD_WIDTH}});
  set(info, attribute::simdgroups_per_threadgroup, parts(size.product(), SIMD_WIDTH));
  set(info, attribute::dispatch_simdgroups_per_threadgroup, parts(full.product(), SIMD_WIDTH));
  set(info, attribute::threads_per_simdgroup, Size{{SIMD_WIDTH}});
  set(info, attribute::thread_execution_width, Size{{SIMD_WIDTH}});
  set(info, attribute::thread_index_in_quadgroup, Size{{index % 4}});
  set(info, attribute::quadgroup_index_in_threadgroup, Size{{index / 4}});
  set(info, attribute::quadgroups_per_threadgroup, parts(size.product(), 4));
  set(info, attribute::dispatch_quadgroups_per_threadgroup, parts(full.product(), 4));
}

void prepare_group(uint64_t number, const Size& groups, const Size& full) {
  const Size position{{static_cast<uint32_t>(number % groups.of[0]), static_cast<uint32_t>(number / groups.of[0] % groups.of[1]),
                       static_cast<uint32_t>(number / groups.of[0] / groups.of[1])}};
  Size size = full;  // the last group of an axis may be smaller
  for (int c = 0; c < 3; c++) size.of[c] = std::min(full.of[c], machine.dispatch->grid[c] - position.of[c] * full.of[c]);
  const uint32_t threads = static_cast<uint32_t>(size.product()), simdgroups = (threads + SIMD_WIDTH - 1) / SIMD_WIDTH;
  machine.thread_count = machine.live = threads;
  machine.group = static_cast<uint32_t>(number + 1);
  machine.at_barrier = 0;
  machine.barrier_flags = 0;
  for (uint32_t& epoch : machine.epoch) epoch++;
  begin_group_memory();
  machine.simdgroups.resize(simdgroups);
  machine.ready_simdgroups = ~0u >> (32 - simdgroups);
  for (uint32_t i = 0; i < simdgroups; i++) {
    Simdgroup& s = machine.simdgroups[i];
    s.lanes = &machine.lanes[i * SIMD_WIDTH];
    s.index = i;
    s.live = s.ready = ~0u >> (32 - std::min<uint32_t>(SIMD_WIDTH, threads - i * SIMD_WIDTH));
    s.arrived = s.at_barrier = 0;
    s.mixed = false;
    for (uint32_t& epoch : s.epoch) epoch = 1;
  }
  for (uint32_t i = 0; i < threads; i++) {
    Lane& lane = machine.lanes[i];
    lane.simdgroup = &machine.simdgroups[i / SIMD_WIDTH];
    lane.bit = 1u << (i % SIMD_WIDTH);
    lane.thread = i;
    lane.state = State::READY;
    prepare_thread(lane, i, position, groups, size, full);
  }
  machine.counters->groups++;
  machine.counters->threads += threads;
}

void run_groups(const Size& groups, const Size& full) {
  const uint64_t total = groups.product();
  for (uint64_t i = 0; i < total && !machine.stopped; i++) {
    prepare_group(machine.dispatch->descending ? total - 1 - i : i, groups, full);
    run_group();
  }
}

void prepare_cells() {
  machine.buffer_cells.assign(MAX_BUFFERS, {});
  if (!machine.dispatch->checked) return;
  for (int i = 0; i < MAX_BUFFERS; i++) {
    const BufferView& buffer = machine.buffers[i];
    if (!buffer.data || !buffer.writable) continue;
    Cell fresh{};
    fresh.written = buffer.initialised;
    machine.buffer_cells[i].assign(buffer.size, fresh);
  }
}

}  // namespace
}  // namespace emulator

using namespace emulator;

// Returns 0, or 1 where memory for the threads could not be had. The host has checked sizes against the limits.
int emulator_launch(const Kernel* kernel, const BufferView* buffers, const Dispatch* dispatch, Counters* counters, char* faults,
                    size_t capacity) {
  memset(counters, 0, sizeof *counters);
  machine.kernel = kernel;
  machine.buffers = buffers;
  machine.dispatch = dispatch;
  machine.counters = counters;
  machine.current = nullptr;
  machine.stopped = false;
  machine.faults.clear();
  machine.known.clear();
  for (int i = 0; i < MAX_BUFFERS; i++) machine.pointers[i] = buffers[i].pointer;
  Size full, groups;
  for (int c = 0; c < 3; c++) {
    full.of[c] = std::min(dispatch->threadgroup[c], dispatch->grid[c]);
    groups.of[c] = (dispatch->grid[c] + full.of[c] - 1) / full.of[c];
  }
  if (!reserve(full.product())) return 1;
  find_module();
  prepare_cells();
  timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  {
    const CrashGuard guard;
    if (sigsetjmp(crash_return, 1) == 0) {
      run_groups(groups, full);
    } else {
      const uint32_t thread = machine.current ? machine.current->thread : 0;
      report("out of bounds", 0, nullptr, "crash",
             text("access to %p, far from every buffer, or a stack overflow: thread %u of group %u", crash_address, thread,
                  machine.group - 1));
      machine.current = nullptr;
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  counters->seconds = static_cast<double>(end.tv_sec - start.tv_sec) + 1e-9 * static_cast<double>(end.tv_nsec - start.tv_nsec);
  snprintf(faults, capacity, "%s", machine.faults.c_str());
  return 0;
}
