// What every access of an instrumented kernel is checked for. The module is compiled with clang's thread sanitizer, whose hooks
// (__tsan_read4 ...) are defined here instead of in its runtime: barriers are the only synchronisation a kernel has, so a byte needs to
// remember only its last write and its readers since the last barrier.
#include <cstring>

#include "machine.h"

namespace emulator {
namespace {

constexpr const char* SPACE_NAME[KINDS] = {"device", "threadgroup"};

struct Access {
  const char* subject;  // the buffer or variable
  size_t offset;        // in it
  unsigned size;
  bool write;
  const void* instruction;
};

const char* verb(const Access& a) { return a.write ? "write" : "read"; }

// "byte 12 of 'name', thread 3 of group 0"
std::string place(const Access& a, size_t byte) {
  return text("byte %zu of '%s', thread %u of group %u", a.offset + byte, a.subject, machine.current->thread, machine.group - 1);
}

void report_race(const Access& a, Kind kind, size_t byte, const char* before, const std::string& by) {
  report("race", 0, a.instruction, std::string(a.subject) + before,
         text("%s after %s by %s with no barrier for %s memory between: ", verb(a), before, by.c_str(), SPACE_NAME[kind]) + place(a, byte));
}

std::string reader_name(const Cell& cell) {
  if (cell.several_groups_read || cell.read_group != machine.group) return "another threadgroup";
  if (cell.reader == SEVERAL) return "several simdgroups";
  return cell.reader >= MANY_LANES ? text("lanes of simdgroup %d", cell.reader - MANY_LANES) : text("thread %d", cell.reader);
}

int simdgroup_of(uint16_t thread) { return thread >= MANY_LANES ? thread - MANY_LANES : thread / SIMD_WIDTH; }

// Was the last write to this byte, by another thread, not followed by a barrier that this thread shares?
bool write_is_unordered(const Cell& cell, Kind kind) {
  if (cell.write_group == 0) return false;
  if (cell.write_group != machine.group) return true;
  const Lane& me = *machine.current;
  if (cell.write_epoch != machine.epoch[kind] || cell.writer == me.thread) return false;
  const Simdgroup& s = *me.simdgroup;
  return simdgroup_of(cell.writer) != static_cast<int>(s.index) || cell.write_simd_epoch == s.epoch[kind];
}

bool reads_are_unordered(const Cell& cell, Kind kind) {
  if (cell.read_group == 0) return false;
  if (cell.several_groups_read || cell.read_group != machine.group) return true;
  if (cell.read_epoch != machine.epoch[kind]) return false;
  const Lane& me = *machine.current;
  const Simdgroup& s = *me.simdgroup;
  if (cell.reader == SEVERAL || simdgroup_of(cell.reader) != static_cast<int>(s.index)) return true;
  return cell.reader != me.thread && cell.read_simd_epoch == s.epoch[kind];
}

void note_read(Cell& cell, Kind kind) {
  const uint32_t thread = machine.current->thread, epoch = machine.epoch[kind];
  const Simdgroup& s = *machine.current->simdgroup;
  if (cell.read_group != 0 && cell.read_group != machine.group) cell.several_groups_read = true;
  if (cell.read_group != machine.group || cell.read_epoch != epoch) {
    cell.reader = static_cast<uint16_t>(thread);
  } else if (cell.reader == SEVERAL || simdgroup_of(cell.reader) != static_cast<int>(s.index)) {
    cell.reader = SEVERAL;
  } else if (cell.read_simd_epoch != s.epoch[kind]) {
    cell.reader = static_cast<uint16_t>(thread);  // earlier readers of this simdgroup are ordered before it
  } else if (cell.reader != thread) {
    cell.reader = static_cast<uint16_t>(MANY_LANES + s.index);
  }
  cell.read_group = machine.group;
  cell.read_epoch = epoch;
  cell.read_simd_epoch = s.epoch[kind];
}

void check_cells(Cell* cells, Kind kind, const Access& a) {
  for (unsigned i = 0; i < a.size; i++) {
    Cell& cell = cells[i];
    if (write_is_unordered(cell, kind)) {
      const bool here = cell.write_group == machine.group;
      report_race(a, kind, i, "write", here ? text("thread %d", cell.writer) : "another threadgroup");
    }
    if (a.write) {
      if (reads_are_unordered(cell, kind)) report_race(a, kind, i, "read", reader_name(cell));
      cell.written = true;
      cell.write_group = machine.group;
      cell.write_epoch = machine.epoch[kind];
      cell.write_simd_epoch = machine.current->simdgroup->epoch[kind];
      cell.writer = static_cast<uint16_t>(machine.current->thread);
    } else {
      if (!cell.written) report("uninitialised read", 0, a.instruction, a.subject, "nothing was written here before: " + place(a, i));
      note_read(cell, kind);
    }
  }
}

// Atomics race with nothing here. One that is no plain store must hit memory that something was written to.
void check_atomic(Cell* cells, const Access& a) {
  for (unsigned i = 0; i < a.size; i++) {
    if (!a.write && !cells[i].written)
      report("uninitialised read", 0, a.instruction, a.subject, "an atomic on memory never written: " + place(a, i));
    cells[i].written = true;
  }
}

void report_outside(const Access& a, const char* near, long offset) {
  report("out of bounds", 0, a.instruction, near,
         text("%s of %u bytes at byte %ld of '%s', thread %u of group %u", verb(a), a.size, offset, near, machine.current->thread,
              machine.group - 1));
}

void threadgroup_access(size_t at, Access a, bool atomic) {
  (a.write ? machine.counters->threadgroup_written : machine.counters->threadgroup_read) += a.size;
  const Variable* nearest = nullptr;
  size_t distance = ARENA_BYTES;
  for (const Variable& v : machine.variables) {
    if (!v.name) continue;
    if (at >= v.offset && at + a.size <= v.offset + v.size) {
      a.subject = v.name;
      a.offset = at - v.offset;
      Cell* cells = &machine.arena_cells[at];
      return atomic ? check_atomic(cells, a) : check_cells(cells, THREADGROUP, a);
    }
    const size_t away = at < v.offset ? v.offset - at : at - std::min(at, v.offset + v.size);
    if (away < distance) {
      distance = away;
      nearest = &v;
    }
  }
  if (nearest) return report_outside(a, nearest->name, static_cast<long>(at) - static_cast<long>(nearest->offset));
  report_outside(a, "threadgroup memory", static_cast<long>(at));
}

void device_access(int index, size_t offset, Access a, bool atomic) {
  const BufferView& buffer = machine.buffers[index];
  if (!buffer.constant) (a.write ? machine.counters->device_written : machine.counters->device_read) += a.size;
  a.subject = buffer.name;
  a.offset = offset;
  if (!buffer.writable) {
    if (a.write) report("out of bounds", 0, a.instruction, buffer.name, "write to a read-only buffer: " + place(a, 0));
    return;
  }
  Cell* cells = &machine.buffer_cells[index][offset];
  atomic ? check_atomic(cells, a) : check_cells(cells, DEVICE, a);
}

constexpr long NEAR = 1 << 15;  // less than the slack that the host leaves around each buffer

// Far from everything the access itself would crash, so the launch ends here.
[[noreturn]] void stop_far(const Access& a) {
  report_outside(a, "no buffer", 0);
  stop();
}

void outside_access(const char* address, const Access& a) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  if (!a.write && at >= machine.module_first && at < machine.module_end) return;  // a constant table of the kernel
  if (address >= machine.stacks && address < machine.stacks + machine.stack_count * STACK_BYTES) {
    report("out of bounds", 0, a.instruction, "private", text("%s of another thread's private memory", verb(a)));
    return;
  }
  for (int i = 0; i < MAX_BUFFERS; i++) {
    const BufferView& buffer = machine.buffers[i];
    if (!buffer.data) continue;
    const long offset = static_cast<long>(at - reinterpret_cast<uintptr_t>(buffer.data));
    if (offset > -NEAR && offset < static_cast<long>(buffer.size) + NEAR) return report_outside(a, buffer.name, offset);
  }
  stop_far(a);
}

void check(const volatile void* pointer, unsigned size, bool write, bool aligned, bool atomic, const void* instruction) {
  if (!machine.current) return;
  const char* address = const_cast<const char*>(static_cast<const volatile char*>(pointer));
  const char* stack_end = machine.stacks + (machine.current->thread + 1) * STACK_BYTES;
  if (address >= stack_end - STACK_BYTES && address < stack_end) return;  // its own private memory
  const Access access{"", 0, size, write, instruction};
  if (aligned && reinterpret_cast<uintptr_t>(address) % size != 0) {
    report("misaligned access", 0, instruction, "",
           text("%s of %u bytes at an address that is %u past a multiple of %u, thread %u of group %u", verb(access), size,
                static_cast<unsigned>(reinterpret_cast<uintptr_t>(address) % size), size, machine.current->thread, machine.group - 1));
    stop();  // the instruction itself may trap
  }
  const size_t in_arena = static_cast<size_t>(address - machine.arena);
  if (in_arena < ARENA_BYTES) return threadgroup_access(in_arena, access, atomic);
  for (int i = 0; i < MAX_BUFFERS; i++) {
    const BufferView& buffer = machine.buffers[i];
    const size_t offset = static_cast<size_t>(address - buffer.data);
    if (buffer.data && offset < buffer.size && offset + size <= buffer.size) return device_access(i, offset, access, atomic);
  }
  outside_access(address, access);
}

}  // namespace

void begin_group_memory() {
  machine.arena_used = 0;
  machine.variables.clear();
}

}  // namespace emulator

using namespace emulator;

extern "C" {

// Variables get their place at first use in a group, apart from each other, aligned to what their type needs and not more.
void* emulator_threadgroup_variable(int id, size_t size, size_t alignment, const char* name) {
  if (static_cast<size_t>(id) >= machine.variables.size()) machine.variables.resize(id + 1, Variable{0, 0, nullptr});
  Variable& variable = machine.variables[id];
  if (!variable.name) {
    size_t offset = (machine.arena_used + RED_ZONE + 63) & ~size_t{63};
    if (machine.dispatch->checked && alignment < 64) offset += alignment;
    if (offset + size + RED_ZONE > ARENA_BYTES) {
      report("limit", 0, nullptr, name, text("threadgroup variable '%s' of %zu bytes", name, size));
      stop();
    }
    variable = {offset, size, name};
    machine.arena_used = offset + size;
    size_t total = 0;
    for (const Variable& v : machine.variables) total += v.name ? (v.size + 15) / 16 * 16 : 0;
    if (total > machine.counters->threadgroup_memory) machine.counters->threadgroup_memory = total;
    if (total > MAX_THREADGROUP_BYTES) {
      report("limit", 0, nullptr, "threadgroup memory",
             text("threadgroup memory of %zu bytes with '%s': the limit is %zu", total, name, MAX_THREADGROUP_BYTES));
    }
    memset(machine.arena + offset, 0xff, size);  // NaN in every float format
    if (machine.dispatch->checked) {
      std::fill_n(machine.arena_cells.begin() + static_cast<std::ptrdiff_t>(offset), size, Cell{});
    }
  }
  return machine.arena + variable.offset;
}

void emulator_atomic_access(const volatile void* address, size_t size, bool reads) {
  if (machine.dispatch->checked) check(address, static_cast<unsigned>(size), !reads, true, true, __builtin_return_address(0));
}

#define HERE __builtin_return_address(0)
#define HOOKS(n)                                                                     \
  void __tsan_read##n(void* p) { check(p, n, false, true, false, HERE); }            \
  void __tsan_write##n(void* p) { check(p, n, true, true, false, HERE); }            \
  void __tsan_unaligned_read##n(void* p) { check(p, n, false, false, false, HERE); } \
  void __tsan_unaligned_write##n(void* p) { check(p, n, true, false, false, HERE); } \
  void __tsan_read_write##n(void* p) {                                               \
    check(p, n, false, true, false, HERE);                                           \
    check(p, n, true, true, false, HERE);                                            \
  }                                                                                  \
  void __tsan_unaligned_read_write##n(void* p) {                                     \
    check(p, n, false, false, false, HERE);                                          \
    check(p, n, true, false, false, HERE);                                           \
  }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void* __tsan_memcpy(void* to, const void* from, size_t size) {
  check(from, static_cast<unsigned>(size), false, false, false, HERE);
  check(to, static_cast<unsigned>(size), true, false, false, HERE);
  return memcpy(to, from, size);
}
void* __tsan_memmove(void* to, const void* from, size_t size) {
  check(from, static_cast<unsigned>(size), false, false, false, HERE);
  check(to, static_cast<unsigned>(size), true, false, false, HERE);
  return memmove(to, from, size);
}
void* __tsan_memset(void* to, int value, size_t size) {
  check(to, static_cast<unsigned>(size), true, false, false, HERE);
  return memset(to, value, size);
}

// Rounding float to bfloat: compilers call it where the processor cannot, and libgcc before 13 has no such function.
__attribute__((weak)) __bf16 __truncsfbf2(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint16_t half = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  __bf16 result;
  memcpy(&result, &half, sizeof result);
  return result;
}

}  // extern "C"
