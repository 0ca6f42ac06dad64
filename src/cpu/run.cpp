#include "cpu/run.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "core/error.h"
#include "cpu/jobs.h"
#include "cpu/plan.h"
#include "cpu/schedule.h"
#include "cpu/scratch.h"
#include "cpu/sequences.h"
#include "cpu/threads.h"

namespace fa::cpu {
namespace {
struct Free {
  void operator()(void* data) const { std::free(data); }
};
using Memory = std::unique_ptr<void, Free>;

// What all launches of a plan share.
struct Context {
  const Plan& plan;
  const Buffers& buffers;
  const std::vector<Sequence>& sequences;
  int threads;
  Stop& stop;
};

// Everything a launch needs besides its tasks.
template <class Real>
JobT<Real> make_job(const Context& c, const Launch& launch) {
  const Problem& p = c.plan.problem;
  JobT<Real> job{};
  if constexpr (sizeof(Real) == 4) {
    job.params = narrow(launch.params);
  } else {
    job.params = launch.params;
  }
  job.features = p.features;
  job.dtype = p.dtype;
  job.out_dtype = p.out_dtype;
  job.bias_dtype = p.bias_dtype;
  job.sink_dtype = p.sink_dtype;
  job.part_rows = p.total_rows * p.params.heads;
  job.sequences = c.sequences.data();
  job.sequence_count = static_cast<int>(c.sequences.size()) - 1;
  job.stopped = [](void* stop) { return static_cast<Stop*>(stop)->now(); };
  job.stop = &c.stop;
  for (const Argument& a : launch.arguments) {
    job.arrays[static_cast<int>(a.as)] = c.buffers.at(a.from);
    if (a.as == Role::part_out) {
      const int own = a.from.temporary;
      job.part_dtype = own >= 0 ? c.plan.temporaries[static_cast<size_t>(own)].dtype : c.buffers[a.from.role].dtype;
    }
  }
  if (const void* seed = job.arrays[static_cast<int>(Role::seed)]) {  // uint32[4] or int64[2]: the same bytes
    uint32_t words[3];
    std::memcpy(words, seed, sizeof(words));
    job.seed = Seed{words[0], words[1], words[2]};
  }
  return job;
}

void run_launch(const Context& c, const Launch& launch) {
  const Work& work = work_of(launch.kernel);
  const Problem& problem = c.plan.problem;
  const auto list = [&](int step) { return tasks(work.cut, problem, launch.params, c.sequences, step, work.price(launch.params)); };
  if (work.entries) {
    const Entry& entry = entry_of(isa(), work.entries, problem.dtype);
    const Job job = make_job<float>(c, launch);
    const auto body = [&](const Task& task, void* scratch) { entry.run(job, task, scratch); };
    return run_tasks(list(entry.task_rows(job, c.threads)), c.threads, entry.scratch_bytes(job), body, problem.function, c.stop);
  }
  const JobT<double> job = make_job<double>(c, launch);
  const auto body = [&](const Task& task, void*) { work.run(job, task); };
  run_tasks(list(0), c.threads, 0, body, problem.function, c.stop);
}
}  // namespace

Device device(Place) { return Device{DeviceKind::cpu, 0, thread_count(), 0}; }

void run(const Plan& plan, const Buffers& given, Stream, bool (*interrupted)()) {
  const std::vector<Sequence> sequences = read_sequences(plan.problem, given);
  std::vector<Memory> owned;
  std::vector<void*> temporaries;
  for (const Temporary& t : plan.temporaries) {
    owned.emplace_back(allocate(static_cast<size_t>(t.count * element_bytes(t.dtype))));
    temporaries.push_back(owned.back().get());
  }
  const Buffers buffers{given.arrays, temporaries};
  Stop stop(interrupted);
  const Context context{plan, buffers, sequences, thread_count(), stop};
  for (const Launch& launch : plan.launches) run_launch(context, launch);
}
}  // namespace fa::cpu
