// The ceiling that a benchmark's share of the peak refers to: float32 fused multiply-adds of the calling thread, from registers only.
// machine.py compiles it for the machine it runs on: -O3 -march=native -shared.
#include <ctime>

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
typedef float Vector __attribute__((vector_size(BYTES)));
constexpr int LANES = BYTES / 4, CHAINS = 12;  // chains hide the latency (4 or 5 cycles, two a cycle); 16 registers hold them all

static volatile float sink;

// of the calling thread: what others do on the machine does not count
static double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// `steps` rounds of 12 independent multiply-adds; returns operations a second.
extern "C" double multiply_add_rate(long steps) {
  Vector sum[CHAINS], factor = {}, term = {};
  for (int lane = 0; lane < LANES; lane++) factor[lane] = 1.0001f, term[lane] = 1e-9f;
#pragma GCC unroll 12
  for (int i = 0; i < CHAINS; i++) sum[i] = term * static_cast<float>(i);
  const double start = cpu_seconds();
  for (long step = 0; step < steps; step++) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) {
      sum[i] = sum[i] * factor + term;  // one instruction: -ffp-contract=fast
#if defined(__x86_64__)
      asm volatile("" : "+v"(sum[i]));  // kept in a register, and not worked out in advance
#endif
    }
  }
  const double seconds = cpu_seconds() - start;
#pragma GCC unroll 12
  for (int i = 1; i < CHAINS; i++) sum[0] += sum[i];
  sink = sum[0][0];
  return 2.0 * CHAINS * LANES * static_cast<double>(steps) / seconds;
}
