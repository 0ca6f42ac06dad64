// Who runs next. A lane runs until it reaches an operation that needs others; it deposits its operand, marks itself as arrived and jumps
// to the next ready lane of its simdgroup, so the last one to arrive computes for all 32 and runs on without a switch.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "context.h"
#include "machine.h"
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

namespace emulator {

Machine machine;

std::string text(const char* format, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

void stop() {
  void* unused;
  machine.stopped = true;
  machine.current = nullptr;
  emulator_switch(&unused, machine.host_stack);
  __builtin_unreachable();
}

namespace {

int line_of(int site) { return site / SITE_COLUMNS; }
int count(uint32_t mask) { return __builtin_popcount(mask); }
int lowest(uint32_t mask) { return __builtin_ctz(mask); }
int pick(uint32_t mask) { return machine.dispatch->descending ? 31 - __builtin_clz(mask) : lowest(mask); }

// d = a * b + c in float32, one rounding a step, as the hardware's accumulators.
void multiply(const float* a, const float* b, const float* c, float* d) {
#if defined(__AVX2__) && defined(__FMA__)
  __m256 rows[8];
  for (int k = 0; k < 8; k++) rows[k] = _mm256_load_ps(b + k * 8);
  for (int i = 0; i < 8; i++) {
    __m256 sum = _mm256_load_ps(c + i * 8);
    for (int k = 0; k < 8; k++) sum = _mm256_fmadd_ps(_mm256_broadcast_ss(a + i * 8 + k), rows[k], sum);
    _mm256_store_ps(d + i * 8, sum);
  }
#else
  for (int i = 0; i < 8; i++) {
    for (int j = 0; j < 8; j++) {
      float sum = c[i * 8 + j];
      for (int k = 0; k < 8; k++) sum = __builtin_fmaf(a[i * 8 + k], b[k * 8 + j], sum);
      d[i * 8 + j] = sum;
    }
  }
#endif
}

// Runs the operation that the lanes of `active` wait in, and lets them go on.
void perform(Simdgroup& s, uint32_t active) {
  const Lane& one = s.lanes[lowest(active)];
  const bool matrix = one.operation == Operation::MULTIPLY || one.operation == Operation::MATRIX_EXCHANGE;
  if (matrix && active != ~0u) {
    report("divergence", one.site, nullptr, "matrix", text("a simdgroup matrix operation with %d of 32 lanes", count(active)));
  }
  Counters& counters = *machine.counters;
  switch (one.operation) {
    case Operation::MULTIPLY:
      counters.multiplications++;
      multiply(s.a, s.b, s.c, s.d);
      break;
    case Operation::MATRIX_EXCHANGE:
      counters.multiplications += one.argument;
      one.combine(active, s.in, s.out);
      break;
    case Operation::EXCHANGE:
      counters.shuffles++;
      one.combine(active, s.in, s.out);
      break;
    case Operation::BARRIER:
      counters.simdgroup_barriers++;
      for (int kind = 0; kind < KINDS; kind++) s.epoch[kind] += covers(one.argument, kind);
      break;
  }
  s.arrived &= ~active;
  s.ready |= active;
  s.mixed = false;
  machine.ready_simdgroups |= 1u << s.index;
  for (uint32_t m = active; m; m &= m - 1) s.lanes[lowest(m)].state = State::READY;
}

// Nobody is ready, some lanes wait inside a simdgroup: as SIMT hardware would, run those that wait at the earliest place.
bool perform_divergent() {
  for (Simdgroup& s : machine.simdgroups) {
    if (!s.arrived) continue;
    int site = s.lanes[lowest(s.arrived)].site;
    for (uint32_t m = s.arrived; m; m &= m - 1) site = std::min(site, s.lanes[lowest(m)].site);
    uint32_t active = 0;
    for (uint32_t m = s.arrived; m; m &= m - 1) active |= s.lanes[lowest(m)].site == site ? s.lanes[lowest(m)].bit : 0;
    report("divergence", site, nullptr, "simdgroup",
           text("a simdgroup operation in which %d of %d live lanes take part (simdgroup %u of group %u)", count(active), count(s.live),
                s.index, machine.group - 1));
    perform(s, active);
    return true;
  }
  return false;
}

Lane* next_lane(Simdgroup& preferred) {
  if (preferred.ready) return preferred.lanes + pick(preferred.ready);
  do {
    for (uint32_t candidates = machine.ready_simdgroups; candidates; candidates = machine.ready_simdgroups) {
      Simdgroup& s = machine.simdgroups[pick(candidates)];
      if (s.ready) return s.lanes + pick(s.ready);
      machine.ready_simdgroups &= ~(1u << s.index);
    }
  } while (perform_divergent());
  return nullptr;
}

[[noreturn]] void stop_stuck() {
  int done = 0, waiting = 0, site = 0;
  for (uint32_t i = 0; i < machine.thread_count; i++) {
    const Lane& lane = machine.lanes[i];
    done += lane.state == State::DONE;
    if (lane.state != State::AT_BARRIER) continue;
    waiting++;
    site = lane.site;
  }
  report("divergence", site, nullptr, "stuck",
         text("%d threads wait at a threadgroup_barrier that %d threads never reach (group %u)", waiting, done, machine.group - 1));
  stop();
}

void switch_to(void** save, Lane* next) {
  if (!next) stop_stuck();
  machine.current = next;
  emulator_switch(save, next->stack_pointer);
}

// The current lane waits for its simdgroup.
void arrive(Lane& me, int site, Operation operation, Combine combine, int argument) {
  Simdgroup& s = *me.simdgroup;
  me.state = State::IN_OPERATION;
  me.site = site;
  me.operation = operation;
  me.combine = combine;
  me.argument = argument;
  if (!s.arrived) s.first_site = site;
  s.mixed |= site != s.first_site;
  s.arrived |= me.bit;
  s.ready &= ~me.bit;
  if (s.arrived == s.live && !s.mixed) return perform(s, s.arrived);
  Lane* next = next_lane(s);
  if (next != &me) switch_to(&me.stack_pointer, next);
}

void release_barrier() {
  machine.counters->barriers++;
  for (int kind = 0; kind < KINDS; kind++) machine.epoch[kind] += covers(machine.barrier_flags, kind);
  machine.at_barrier = 0;
  machine.barrier_flags = 0;
  for (Simdgroup& s : machine.simdgroups) {
    for (uint32_t m = s.at_barrier; m; m &= m - 1) s.lanes[lowest(m)].state = State::READY;
    s.ready |= s.at_barrier;
    s.at_barrier = 0;
    if (s.ready) machine.ready_simdgroups |= 1u << s.index;
  }
}

// What a fiber runs: the kernel for one thread.
void thread_main() {
  machine.kernel->entry(machine.pointers, &machine.current->info);
  Lane& me = *machine.current;
  Simdgroup& s = *me.simdgroup;
  me.state = State::DONE;
  s.live &= ~me.bit;
  s.ready &= ~me.bit;
  void* unused;
  if (--machine.live == 0) {
    machine.current = nullptr;
    emulator_switch(&unused, machine.host_stack);
  }
  if (s.arrived && s.arrived == s.live && !s.mixed) perform(s, s.arrived);
  switch_to(&unused, next_lane(s));
}

unsigned round_up(unsigned size) { return (size + 15) & ~15u; }

void exchange(int site, const void* in, unsigned in_size, void* out, unsigned out_size, Combine combine, Operation operation,
              int argument) {
  Lane& me = *machine.current;
  Simdgroup& s = *me.simdgroup;
  const unsigned lane = me.thread % SIMD_WIDTH;
  memcpy(s.in + lane * round_up(in_size), in, in_size);
  arrive(me, site, operation, combine, argument);
  memcpy(out, s.out + lane * round_up(out_size), out_size);
}

}  // namespace

void run_group() {
  // Stacks of neighbours start at different places of a page, else their hot lines would fight for the same cache sets.
  for (uint32_t i = 0; i < machine.thread_count; i++) {
    char* top = machine.stacks + (i + 1) * STACK_BYTES - ((i * 320) & 8191) - 64;
    machine.lanes[i].stack_pointer = fresh_stack(reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63}), thread_main);
  }
  Simdgroup& first = machine.simdgroups[pick(machine.ready_simdgroups)];
  switch_to(&machine.host_stack, next_lane(first));
}

}  // namespace emulator

using namespace emulator;

extern "C" {

uint32_t emulator_lane() { return machine.current->thread % SIMD_WIDTH; }

void emulator_threadgroup_barrier(int flags, int site) {
  Lane& me = *machine.current;
  Simdgroup& s = *me.simdgroup;
  if (machine.at_barrier && machine.barrier_site != site) {
    report("divergence", site, nullptr, "barriers",
           text("threads of group %u wait at different threadgroup_barriers, lines %d and %d", machine.group - 1,
                line_of(machine.barrier_site), line_of(site)));
  }
  if (machine.live != machine.thread_count) {
    report("divergence", site, nullptr, "returned",
           text("a threadgroup_barrier after %u of %u threads have returned (group %u)", machine.thread_count - machine.live,
                machine.thread_count, machine.group - 1));
  }
  machine.barrier_site = site;
  machine.barrier_flags |= flags;
  machine.at_barrier++;
  me.site = site;
  s.at_barrier |= me.bit;
  s.ready &= ~me.bit;
  if (machine.at_barrier == machine.live) return release_barrier();
  me.state = State::AT_BARRIER;
  switch_to(&me.stack_pointer, next_lane(s));
}

void emulator_simdgroup_barrier(int flags, int site) { arrive(*machine.current, site, Operation::BARRIER, nullptr, flags); }

void emulator_exchange(int site, const void* in, unsigned in_size, void* out, unsigned out_size, Combine combine) {
  exchange(site, in, in_size, out, out_size, combine, Operation::EXCHANGE, 0);
}

void emulator_matrix_exchange(int site, const void* in, unsigned in_size, void* out, unsigned out_size, Combine combine,
                              int multiplications) {
  exchange(site, in, in_size, out, out_size, combine, Operation::MATRIX_EXCHANGE, multiplications);
}

void emulator_multiply(int site, const float* a, const float* b, const float* c, float* d) {
  Lane& me = *machine.current;
  Simdgroup& s = *me.simdgroup;
  const unsigned lane = me.thread % SIMD_WIDTH, quad = lane / 4;
  // Apple's layout, proven by MLX's kernels, which are wrong with any other: a lane holds two neighbours of one row.
  const unsigned row = (quad & 4) + lane / 2 % 4, column = (quad & 2) * 2 + lane % 2 * 2, at = row * 8 + column;
  memcpy(&s.a[at], a, 8);
  memcpy(&s.b[at], b, 8);
  memcpy(&s.c[at], c, 8);
  arrive(me, site, Operation::MULTIPLY, nullptr, 0);
  memcpy(d, &s.d[at], 8);
}

}  // extern "C"
