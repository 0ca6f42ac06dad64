// CUDA's words on the CPU, one block at a time. A thread is a fiber that runs until it waits for its warp, some warps or its block: every
// launch does the same each time, and a thread that waits for others that never come ends the process. Shared memory starts as NaNs.
// cp.async copies when it is waited for, not before, so that reading too early is seen; the first warp runs as far ahead of the others as
// barriers let it. EMULATOR_EAGER: copies happen at once, and the last warp leads, so that writing too early is seen.
// Kernels' functions in inline assembly call the ones of the same name here (compile.py sees to that).
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/numbers.h"

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))

struct uint3 {
  unsigned x, y, z;
};
struct uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
inline uint3 threadIdx, blockIdx, blockDim, gridDim;
namespace fa::cuda {
struct Half;
struct Bfloat;
alignas(128) unsigned char shared[232448];
}  // namespace fa::cuda

namespace emulator {
using fa::cuda::shared;
constexpr int MAX_THREADS = 1024, WARP = 32;
constexpr size_t STACK = 256 << 10;
[[noreturn]] inline void fault(const char* what) {
  std::fprintf(stderr, "CUDA emulator: block %u,%u,%u, thread %u: %s\n", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, what);
  std::abort();
}

struct Copy {
  unsigned to;
  const void* from;
  int bytes, valid, group;
};
enum Wait { nothing, warp, some, block };
inline bool eager() {
  static const bool asked = std::getenv("EMULATOR_EAGER") != nullptr;
  return asked;
}
struct Fiber {
  ucontext_t context;
  bool done;
  Wait waits;
  int with;  // threads that wait together, neighbours from a multiple of their number on
  int name;  // of the barrier of some warps that they wait at
  int side;  // of `brings`: lanes may bring the next thing while others still look at the last one
  long long brings[2][4];
  int vote;  // of `votes`, as side
  bool votes[2];
  std::vector<Copy> copies;
  int groups;
};
inline Fiber fibers[MAX_THREADS];
inline ucontext_t scheduler;
inline int current, threads;
inline unsigned shared_bytes;  // of a launch
inline void (*body)();

inline void wait_for(Wait what, int with, int name = 0) {
  fibers[current].waits = what, fibers[current].with = with, fibers[current].name = name;
  swapcontext(&fibers[current].context, &scheduler);
}
inline void enter() {
  body();
  fibers[current].done = true;
  swapcontext(&fibers[current].context, &scheduler);
}
// Sets free the threads of a waiting one's company, if all of them that are left wait for the same.
inline bool release(int thread) {
  const Fiber& f = fibers[thread];
  const int first = thread / f.with * f.with, end = first + f.with < threads ? first + f.with : threads;
  for (int t = first; t < end; t++)
    if (!fibers[t].done && (fibers[t].waits != f.waits || fibers[t].with != f.with || fibers[t].name != f.name)) return false;
  for (int t = first; t < end; t++) fibers[t].waits = nothing;
  return true;
}
// Runs a warp as far as it comes without the others.
inline bool run_warp(int first, int& left) {
  const int end = first + WARP < threads ? first + WARP : threads;
  bool ran = false;
  for (bool moves = true; moves;) {
    moves = false;
    for (int t = first; t < end; t++) {
      if (fibers[t].done || fibers[t].waits != nothing) continue;
      current = t, threadIdx = {static_cast<unsigned>(t), 0, 0};
      swapcontext(&scheduler, &fibers[t].context);
      moves = true;
      left -= fibers[t].done;
    }
    for (int t = first; t < end; t++)
      if (!fibers[t].done && fibers[t].waits != nothing) moves |= release(t);
    ran |= moves;
  }
  return ran;
}
inline void run_block() {
  static char* const stacks = static_cast<char*>(std::malloc(STACK * MAX_THREADS));
  std::memset(shared, 0xff, sizeof shared);
  for (int t = 0; t < threads; t++) {
    Fiber& f = fibers[t];
    f.done = false, f.waits = nothing, f.side = 0, f.vote = 0, f.groups = 0;
    f.copies.clear();
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + STACK * static_cast<size_t>(t);
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
  }
  for (int left = threads; left > 0;) {
    bool moved = false;
    for (int w = 0; w < threads; w += WARP) moved |= run_warp(eager() ? (threads - 1 - w) / WARP * WARP : w, left);
    for (int t = 0; t < threads; t++)
      if (!fibers[t].done && fibers[t].waits != nothing) moved |= release(t);
    if (!moved && left > 0) fault("threads wait for others that do not come");
  }
}
inline void launch(const unsigned* grid, unsigned count, unsigned bytes, void (*entry)()) {
  body = entry, threads = static_cast<int>(count), shared_bytes = bytes;
  gridDim = {grid[0], grid[1], grid[2]}, blockDim = {count, 1, 1};
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; x < grid[0]; x++) blockIdx = {x, y, z}, run_block();
}

// What each lane of a warp brings, for all of them to look at.
template <class T>
void bring(T value) {
  static_assert(sizeof(T) <= sizeof(Fiber::brings[0]));
  Fiber& f = fibers[current];
  f.side ^= 1;
  std::memcpy(f.brings[f.side], &value, sizeof(T));
  wait_for(warp, WARP);
}
template <class T>
T of_lane(int lane) {
  T value;
  std::memcpy(&value, fibers[current / WARP * WARP + lane].brings[fibers[current].side], sizeof(T));
  return value;
}
inline int lane() { return current % WARP; }
template <int THREADS>
void sync_some(int barrier) {
  wait_for(some, THREADS, barrier);
}
template <int THREADS>
bool any_of_some(int barrier, bool yes) {
  Fiber& f = fibers[current];
  f.vote ^= 1;
  f.votes[f.vote] = yes;
  wait_for(some, THREADS, barrier);
  bool any = false;
  for (int t = current / THREADS * THREADS, end = t + THREADS; t < end; t++) any |= fibers[t].votes[f.vote];
  return any;
}

// ---- memory ----
inline unsigned char* at(unsigned address, int bytes) {
  if (address % static_cast<unsigned>(bytes) != 0) fault("misaligned shared memory");
  if (address + static_cast<unsigned>(bytes) > shared_bytes) fault("beyond the shared memory of the launch");
  return shared + address;
}
inline void perform(const Copy& c) {
  if (c.valid > 0 && reinterpret_cast<size_t>(c.from) % static_cast<size_t>(c.bytes) != 0) fault("misaligned source of a copy");
  unsigned char* const to = at(c.to, c.bytes);
  std::memset(to, 0, static_cast<size_t>(c.bytes));
  std::memcpy(to, c.from, static_cast<size_t>(c.valid));
}
inline void copy(unsigned to, const void* from, int bytes, int valid) {
  const Copy c{to, from, bytes, valid, fibers[current].groups};
  if (eager())
    perform(c);
  else
    fibers[current].copies.push_back(c);
}
inline void copy_16(unsigned to, const void* from, int valid = 16) { copy(to, from, 16, valid); }
inline void copy_8(unsigned to, const void* from, int valid) { copy(to, from, 8, valid); }
inline void copy_4(unsigned to, const void* from, bool present) { copy(to, from, 4, present ? 4 : 0); }
inline void commit() { fibers[current].groups++; }
template <int PENDING>
void wait() {
  Fiber& f = fibers[current];
  long n = 0;
  for (; n < static_cast<long>(f.copies.size()) && f.copies[static_cast<size_t>(n)].group < f.groups - PENDING; n++)
    perform(f.copies[static_cast<size_t>(n)]);
  f.copies.erase(f.copies.begin(), f.copies.begin() + n);
}
template <class T>
T load(unsigned from) {
  T value;
  std::memcpy(&value, at(from, sizeof(T)), sizeof(T));
  return value;
}
template <class T>
void store(unsigned to, T value) {
  std::memcpy(at(to, sizeof(T)), &value, sizeof(T));
}
inline void store_16(unsigned to, uint4 words) { store(to, words); }
inline void store_8(unsigned to, float x, float y) { store(to, float2{x, y}); }
inline void store_4(unsigned to, unsigned word) { store(to, word); }
inline float load_float(unsigned from) { return load<float>(from); }
inline float2 load_floats(unsigned from) { return load<float2>(from); }
inline uint4 load_16(unsigned from) { return load<uint4>(from); }
inline void add_sums(float* to, const float (&x)[4]) {
  for (int i = 0; i < 4; i++) to[i * (FA_ARCH >= 90 ? 1 : 32)] += x[i];
}

// ---- numbers ----
template <class H>
float widen(H x) {
  return fa::cpu::widen(fa::cpu::f16{x.bits});
}
template <class H>
void narrow(float x, H& to) {
  if constexpr (std::is_same_v<H, fa::cuda::Half>)
    to.bits = fa::cpu::narrow_to<fa::cpu::f16>(x).bits;
  else
    to.bits = fa::cpu::narrow_to<fa::cpu::bf16>(x).bits;
}
using Pairs = std::conditional_t<FA_DTYPE == 1, fa::cpu::f16, fa::cpu::bf16>;  // what a register of mma holds two of
inline unsigned pack(float left, float right) {
  return fa::cpu::narrow_to<Pairs>(left).bits | static_cast<unsigned>(fa::cpu::narrow_to<Pairs>(right).bits) << 16;
}
inline float half_of(unsigned pair, int i) { return fa::cpu::widen(Pairs{static_cast<unsigned short>(pair >> (16 * i))}); }

// ---- matrices: mma m16n8k16 and ldmatrix ----
struct Operands {
  unsigned a[4], b[2];
};
[[gnu::noinline]] inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  bring(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  for (int i = 0; i < 4; i++) {
    const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; k++) {
      const Operands left = of_lane<Operands>(row % 8 * 4 + k % 8 / 2), right = of_lane<Operands>(column * 4 + k % 8 / 2);
      sum += half_of(left.a[row / 8 + k / 8 * 2], k % 2) * half_of(right.b[k / 8], k % 2);
    }
    c[i] += sum;
  }
}
inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  c[0] = c[1] = c[2] = c[3] = 0;
  multiply_add(c, a, b0, b1);
}
[[gnu::noinline]] inline void load_matrices(unsigned (&r)[4], unsigned address) {
  bring(address);
  for (int m = 0; m < 4; m++) r[m] = load<unsigned>(of_lane<unsigned>(m * 8 + lane() / 4) + static_cast<unsigned>(lane() % 4 * 4));
}
[[gnu::noinline]] inline void load_transposed(unsigned (&r)[4], unsigned address) {
  bring(address);
  const auto element = [](int matrix, int row) {
    return load<unsigned short>(of_lane<unsigned>(matrix * 8 + row) + static_cast<unsigned>(lane() / 4 * 2));
  };
  for (int m = 0; m < 4; m++) r[m] = element(m, lane() % 4 * 2) | static_cast<unsigned>(element(m, lane() % 4 * 2 + 1)) << 16;
}
}  // namespace emulator

template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
  emulator::bring(value);
  return emulator::of_lane<T>(emulator::lane() ^ step);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  emulator::bring(value);
  return emulator::of_lane<T>(lane & 31);
}
inline unsigned __ballot_sync(unsigned, bool yes) {
  emulator::bring(yes);
  unsigned all = 0;
  for (int l = 0; l < 32; l++) all |= static_cast<unsigned>(emulator::of_lane<bool>(l)) << l;
  return all;
}
inline bool __any_sync(unsigned mask, bool yes) { return __ballot_sync(mask, yes) != 0; }
inline void __syncwarp() { emulator::wait_for(emulator::warp, emulator::WARP); }
inline void __syncthreads() { emulator::wait_for(emulator::block, emulator::threads); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline size_t __cvta_generic_to_shared(const void* p) {
  return static_cast<size_t>(static_cast<const unsigned char*>(p) - fa::cuda::shared);
}
