// The tasks of one launch on the workers.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <thread>

#include "cpu/plan.h"

namespace fa::cpu {
// Why a run should end early: somebody asked for it, or a task threw. Made by the calling thread, which alone may ask `interrupted` (or
// null), at most every 50 ms; kernels look at it inside long tasks.
class Stop {
 public:
  explicit Stop(bool (*interrupted)()) : interrupted_(interrupted) {}
  bool now() {
    if (stop_.load(std::memory_order_relaxed)) return true;
    return interrupted_ && std::this_thread::get_id() == caller_ && poll();
  }
  void set() { stop_.store(true, std::memory_order_relaxed); }
  bool was_interrupted() const { return was_interrupted_; }

 private:
  bool poll();
  bool (*interrupted_)();
  std::thread::id caller_ = std::this_thread::get_id();
  std::chrono::steady_clock::time_point polled_ = std::chrono::steady_clock::now();
  bool was_interrupted_ = false;
  std::atomic<bool> stop_{false};
};

// Workers take groups of tasks, longest first, and stay with a group while it has tasks; when no group is left they help with those of
// others. `body` gets scratch of the worker's own: scratch_bytes, the first 64 of them zeroed before its first task. The first
// exception of a task ends the launch and is thrown here; so is Error (interrupted), with `function` as the name of the call.
void run_tasks(const TaskList& list, int threads, size_t scratch_bytes, const std::function<void(const Task&, void*)>& body,
               const char* function, Stop& stop);
}  // namespace fa::cpu
