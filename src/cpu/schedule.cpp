#include "cpu/schedule.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>

#include "core/error.h"
#include "cpu/pool.h"
#include "cpu/scratch.h"

namespace fa::cpu {
namespace {
constexpr double SERIAL_NS = 20e3, THREAD_NS = 10e3;  // waking a sleeping thread takes 5 to 20 us
constexpr std::chrono::milliseconds POLL{50};

// How many threads are worth waking.
int useful_threads(const TaskList& list, int threads) {
  if (list.cost < SERIAL_NS) return 1;
  return static_cast<int>(std::min({static_cast<double>(threads), list.cost / THREAD_NS, static_cast<double>(list.tasks.size())}));
}

class Run {
 public:
  Run(const TaskList& list, size_t scratch_bytes, const std::function<void(const Task&, void*)>& body, Stop& stop)
      : list_(list), scratch_bytes_(scratch_bytes), body_(body), stop_(stop), next_(list.groups.size()) {}

  void work() {
    try {
      const Scratch scratch(scratch_bytes_);
      if (scratch_bytes_ > 0) std::memset(scratch.data(), 0, std::min(scratch_bytes_, size_t{64}));
      const size_t groups = list_.groups.size();
      size_t last = 0;
      for (size_t g; (g = next_group_.fetch_add(1, std::memory_order_relaxed)) < groups; last = g) drain(g, scratch.data());
      for (size_t i = 1; i <= groups; i++) drain((last + i) % groups, scratch.data());
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_lock_);
      if (!failure_) failure_ = std::current_exception();
      stop_.set();
    }
  }
  void finish() {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void drain(size_t g, void* scratch) {
    const Group group = list_.groups[g];
    const int count = group.end - group.first;
    std::atomic<int>& next = next_[g];
    while (next.load(std::memory_order_relaxed) < count && !stop_.now()) {
      const int t = next.fetch_add(1, std::memory_order_relaxed);
      if (t >= count) return;
      body_(list_.tasks[static_cast<size_t>(group.first + t)], scratch);
    }
  }
  const TaskList& list_;
  size_t scratch_bytes_;
  const std::function<void(const Task&, void*)>& body_;
  Stop& stop_;
  std::vector<std::atomic<int>> next_;
  std::atomic<size_t> next_group_{0};
  std::mutex failure_lock_;
  std::exception_ptr failure_;
};
}  // namespace

bool Stop::poll() {
  const auto now = std::chrono::steady_clock::now();
  if (now - polled_ < POLL) return false;
  polled_ = now;
  if (!interrupted_()) return false;
  was_interrupted_ = true;
  set();
  return true;
}

void run_tasks(const TaskList& list, int threads, size_t scratch_bytes, const std::function<void(const Task&, void*)>& body,
               const char* function, Stop& stop) {
  if (!list.tasks.empty()) {
    Run run(list, scratch_bytes, body, stop);
    on_workers(useful_threads(list, threads), [&run](int) { run.work(); });
    run.finish();
  }
  if (stop.was_interrupted()) throw Error(Error::Kind::interrupted, text("[", function, "] interrupted"));
}
}  // namespace fa::cpu
