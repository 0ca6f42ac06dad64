// The threads of the CPU backend. Workers are made when first needed, look for work for a few microseconds after a job and then sleep on
// a futex; they block signals, and live until the process ends. The caller is worker 0 and never waits for a worker that has not
// started: on a busy machine it simply does all the work. One job at a time has the workers; a second caller, or a task that
// calls again, works alone. In a forked child the parent's workers are gone: the first call there makes new ones.
#pragma once
#include <functional>

namespace fa::cpu {
// work(worker) on at most `threads` workers at once, numbered from 0 (the calling thread) to threads - 1; each must take its tasks
// from something shared until there are none. Returns when all that started have ended. `work` must not throw.
void on_workers(int threads, const std::function<void(int)>& work);
}  // namespace fa::cpu
