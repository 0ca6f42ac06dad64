#include "cpu/pool.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif

namespace fa::cpu {
namespace {
constexpr int SPINS = 400;  // about 10 us: a plan's next launch comes sooner than that

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Signals belong to the program's own threads: a worker inherits a mask that blocks all of them.
class SignalsBlocked {
 public:
#if defined(__unix__) || defined(__APPLE__)
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
#endif
};

class Pool {
 public:
  bool try_take() { return !taken_.exchange(true, std::memory_order_acquire); }
  void release() { taken_.store(false, std::memory_order_release); }

  // By whoever took the pool.
  void run(int threads, const std::function<void(int)>& work) {
    grow(threads - 1);
    work_ = &work;
    limit_ = std::min(threads, workers_ + 1);
    state_.store(ENTERED, std::memory_order_release);  // open, the caller has entered
    generation_.fetch_add(1, std::memory_order_release);
    if (limit_ - 1 < workers_) {
      for (int i = 1; i < limit_; i++) generation_.notify_one();
    } else {
      generation_.notify_all();
    }
    work(0);
    int now = state_.fetch_or(CLOSED, std::memory_order_acq_rel) | CLOSED;
    for (int spin = 0; (now & INSIDE) != 0; spin++) {
      if (spin < SPINS) {
        pause();
      } else {
        state_.wait(now, std::memory_order_acquire);
      }
      now = state_.load(std::memory_order_acquire);
    }
  }

 private:
  // state_: how many workers are inside the job, how many ever entered it, and whether it is closed to more of them
  static constexpr int INSIDE = 0x7fff, ENTERED = 0x8000, CLOSED = 1 << 30;

  void grow(int wanted) {
    const SignalsBlocked blocked;
    while (workers_ < wanted) {
      try {
        std::thread([this] { live(); }).detach();
      } catch (const std::exception&) {
        return;  // no more threads to be had: fewer will do
      }
      workers_++;
    }
  }
  void live() {
    unsigned seen = 0;
    for (;;) {
      for (int spin = 0; spin < SPINS && generation_.load(std::memory_order_acquire) == seen; spin++) pause();
      generation_.wait(seen, std::memory_order_acquire);
      seen = generation_.load(std::memory_order_acquire);
      enter();
    }
  }
  void enter() {
    int now = state_.load(std::memory_order_acquire);
    do {
      if ((now & CLOSED) != 0 || now / ENTERED >= limit_.load(std::memory_order_relaxed)) return;
    } while (!state_.compare_exchange_weak(now, now + ENTERED + 1, std::memory_order_acq_rel, std::memory_order_acquire));
    // only now, inside, is this the limit of the job entered: it may be another one than the one looked at above
    if (now / ENTERED < limit_.load(std::memory_order_relaxed)) (*work_)(now / ENTERED);
    const int after = state_.fetch_sub(1, std::memory_order_acq_rel) - 1;
    if ((after & CLOSED) != 0 && (after & INSIDE) == 0) state_.notify_all();
  }

  std::atomic<bool> taken_{false};
  std::atomic<unsigned> generation_{0};
  std::atomic<int> state_{CLOSED};
  std::atomic<int> limit_{0};
  const std::function<void(int)>* work_ = nullptr;
  int workers_ = 0;
};

std::atomic<Pool*> pool_now{nullptr};

// Never destroyed: workers may outlive every static object, as when another thread still computes while the process exits.
Pool& pool() {
  Pool* now = pool_now.load(std::memory_order_acquire);
  if (now) return *now;
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool_now.store(nullptr, std::memory_order_release); });
  static_cast<void>(registered);
#endif
  auto fresh = std::make_unique<Pool>();
  if (pool_now.compare_exchange_strong(now, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
  return *now;
}
}  // namespace

void on_workers(int threads, const std::function<void(int)>& work) {
  if (threads <= 1 || !pool().try_take()) return work(0);
  Pool& mine = pool();
  mine.run(threads, work);
  mine.release();
}
}  // namespace fa::cpu
