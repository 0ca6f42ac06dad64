// The tasks of one launch on the workers.
#pragma once
#include <cstddef>
#include <functional>

#include "cpu/plan.h"

namespace fa::cpu {
// Workers take groups of tasks, longest first, and stay with a group while it has tasks; when no group is left they help with those of
// others. `body` gets scratch of the worker's own: scratch_bytes, the first 64 of them zeroed before its first task. The first
// exception of a task ends the launch and is thrown here; so is Error (interrupted) when `interrupted` (or null), which is polled on
// the calling thread alone, returns true.
void run_tasks(const TaskList& list, int threads, size_t scratch_bytes, const std::function<void(const Task&, void*)>& body,
               const char* function, bool (*interrupted)());
}  // namespace fa::cpu
