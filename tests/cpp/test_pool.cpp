// Threads: every task is done once whoever calls, exceptions arrive at the caller, a forked child works, interruption ends a call.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/pool.h"
#include "cpu/schedule.h"
#include "cpu/threads.h"

namespace {
using namespace fa;
using cpu::Task;
using cpu::TaskList;

// n tasks in groups of `together`, costly enough to wake every thread
TaskList many(int n, int together = 7) {
  TaskList list;
  for (int i = 0; i < n; i++) list.tasks.push_back(Task{0, 0, i, i + 1, 0});
  for (int i = 0; i < n; i += together) list.groups.push_back(cpu::Group{i, std::min(n, i + together)});
  list.cost = 1e9;
  return list;
}
using Body = std::function<void(const Task&, void*)>;
void run(const TaskList& list, int threads, const Body& body, bool (*interrupted)() = nullptr, size_t scratch = 0) {
  cpu::Stop stop(interrupted);
  cpu::run_tasks(list, threads, scratch, body, "test", stop);
}
// a while that the compiler cannot remove, so that several threads meet inside a job
void work_a_little() {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(30);
  while (std::chrono::steady_clock::now() < end) {
  }
}
void expect_all_done_once(int n, int threads) {
  std::vector<std::atomic<int>> done(static_cast<size_t>(n));
  run(many(n), threads, [&](const Task& t, void*) { done[static_cast<size_t>(t.first)]++; });
  for (const auto& d : done) ASSERT_EQ(d.load(), 1);
}

TEST(Pool, EveryTaskOnce) {
  for (int threads : {1, 2, 3, 8})
    for (int n : {0, 1, 2, 6, 7, 100, 1000}) expect_all_done_once(n, threads);
}

TEST(Pool, ManyShortJobs) {
  for (int i = 0; i < 3000; i++) expect_all_done_once(9, 1 + i % 5);
}

TEST(Pool, WorkersHaveNumbersOfTheirOwn) {
  for (int i = 0; i < 200; i++) {
    std::atomic<int> inside[4] = {}, left{40}, clashes{0}, outside{0};
    cpu::on_workers(4, [&](int worker) {
      if (worker < 0 || worker >= 4) outside++;
      if (inside[worker]++ != 0) clashes++;
      while (left-- > 0) work_a_little();
      inside[worker]--;
    });
    EXPECT_EQ(clashes.load(), 0);
    EXPECT_EQ(outside.load(), 0);
  }
}

TEST(Pool, SeveralThreadsWorkTogether) {
  std::mutex lock;
  std::set<std::thread::id> who;
  for (int i = 0; i < 100 && who.size() < 2; i++)
    run(many(200), 2, [&](const Task&, void*) {
      work_a_little();
      const std::lock_guard<std::mutex> guard(lock);
      who.insert(std::this_thread::get_id());
    });
  EXPECT_EQ(who.size(), 2u);
}

TEST(Pool, CallsFromManyThreadsAtOnce) {
  std::vector<std::thread> callers;
  for (int c = 0; c < 6; c++)
    callers.emplace_back([] {
      for (int i = 0; i < 200; i++) expect_all_done_once(50, 4);
    });
  for (std::thread& t : callers) t.join();
}

TEST(Pool, ATaskMayCallAgain) {
  std::atomic<int> inner{0};
  run(many(20), 3, [&](const Task&, void*) { run(many(10), 3, [&](const Task&, void*) { inner++; }); });
  EXPECT_EQ(inner.load(), 200);
}

TEST(Pool, ExceptionsArriveAtTheCaller) {
  for (int threads : {1, 4})
    for (int bad = 0; bad < 100; bad += 9) {
      const auto body = [&](const Task& t, void*) {
        if (t.first == bad) throw std::runtime_error("task " + std::to_string(bad));
        work_a_little();
      };
      try {
        run(many(100), threads, body);
        FAIL() << "nothing was thrown";
      } catch (const std::runtime_error& e) {
        EXPECT_EQ(e.what(), "task " + std::to_string(bad));
      }
    }
  expect_all_done_once(100, 4);  // and the pool still works
}

TEST(Pool, TooMuchScratchIsBadAlloc) {
  EXPECT_THROW(run(many(10), 2, [](const Task&, void*) {}, nullptr, size_t{1} << 62), std::bad_alloc);
  expect_all_done_once(10, 2);
}

TEST(Pool, ScratchBelongsToOneWorkerAndBeginsAsZeros) {
  std::atomic<int> wrong{0};
  for (size_t bytes : {size_t{64}, size_t{5000}, size_t{20} << 20})
    for (int i = 0; i < 5; i++)
      run(
          many(60), 3,
          [&](const Task&, void* scratch) {
            auto* words = static_cast<std::atomic<uint64_t>*>(scratch);
            if (reinterpret_cast<uintptr_t>(scratch) % 64 != 0) wrong++;
            const uint64_t me = std::hash<std::thread::id>()(std::this_thread::get_id());
            const uint64_t before = words[0].exchange(me);
            if (before != 0 && before != me) wrong++;
            for (int w = 1; w < 8; w++)
              if (words[w].load() != 0) wrong++;
            work_a_little();
          },
          nullptr, bytes);
  EXPECT_EQ(wrong.load(), 0);
}

std::atomic<int> polls{0};
TEST(Pool, InterruptionEndsACall) {
  polls = 0;
  std::atomic<int> done{0};
  const auto start = std::chrono::steady_clock::now();
  const auto body = [&](const Task&, void*) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    done++;
  };
  try {
    run(many(4000, 50), 2, body, [] { return ++polls >= 3; });
    FAIL() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, Error::Kind::interrupted);
  }
  EXPECT_EQ(polls.load(), 3);
  EXPECT_LT(done.load(), 1000);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

TEST(Pool, ALongTaskCanSeeThatItShallEnd) {
  polls = 0;
  cpu::Stop stop([] { return ++polls >= 2; });
  const auto body = [&](const Task&, void*) {
    while (!stop.now()) work_a_little();
  };
  EXPECT_THROW(cpu::run_tasks(many(4), 2, 0, body, "test", stop), Error);
  EXPECT_EQ(polls.load(), 2);
}

// exit status of `body` in a forked child, or -1 if it does not end within ten seconds
template <class Child>
int in_child(const Child& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  for (int i = 0; i < 1000; i++) {
    int status = 0;
    if (waitpid(child, &status, WNOHANG) == child) return WIFEXITED(status) ? WEXITSTATUS(status) : -2;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return -1;
}
int count_in_child() {
  std::atomic<int> done{0};
  std::set<std::thread::id> who;
  std::mutex lock;
  for (int i = 0; i < 50; i++)
    run(many(40), 3, [&](const Task&, void*) {
      done++;
      work_a_little();
      const std::lock_guard<std::mutex> guard(lock);
      who.insert(std::this_thread::get_id());
    });
  return done.load() == 2000 && who.size() > 1 ? 7 : 1;
}

TEST(Pool, AForkedChildHasItsOwnThreads) {
  expect_all_done_once(100, 3);
  EXPECT_EQ(in_child(count_in_child), 7);
  expect_all_done_once(100, 3);
}

TEST(Pool, AChildForkedDuringAJobWorks) {
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) run(many(100), 3, [](const Task&, void*) { work_a_little(); });
  });
  for (int i = 0; i < 5; i++) EXPECT_EQ(in_child(count_in_child), 7);
  stop = true;
  busy.join();
}

TEST(Pool, ExitWhileOthersWork) {
  const int status = in_child([] {
    std::thread([] {
      for (;;) run(many(100), 3, [](const Task&, void*) { work_a_little(); });
    }).detach();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::exit(5);  // static objects are destroyed while the pool works
    return 0;
  });
  EXPECT_EQ(status, 5);
}

TEST(Threads, TheEnvironmentLimitsThem) {
  const auto with = [](const char* own, const char* omp) {
    own ? setenv("FLASH_ATTENTION_NUM_THREADS", own, 1) : unsetenv("FLASH_ATTENTION_NUM_THREADS");
    omp ? setenv("OMP_NUM_THREADS", omp, 1) : unsetenv("OMP_NUM_THREADS");
    return cpu::thread_count();
  };
  const int all = with(nullptr, nullptr);
  EXPECT_GE(all, 1);
  EXPECT_EQ(with("1", nullptr), 1);
  EXPECT_EQ(with(nullptr, "1"), 1);
  EXPECT_EQ(with(nullptr, "1,4"), 1);
  EXPECT_EQ(with("1", "8"), 1);
  EXPECT_EQ(with("100000", "1"), all);
  EXPECT_EQ(with(nullptr, "nonsense"), all);
  for (const char* bad : {"0", "-2", "x", "3x", "99999999999999999999"}) EXPECT_THROW(with(bad, nullptr), Error) << bad;
  with(nullptr, nullptr);
}
}  // namespace
