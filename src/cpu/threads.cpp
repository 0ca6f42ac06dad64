#include "cpu/threads.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "core/env.h"
#include "core/error.h"
#if defined(__linux__)
#include <sched.h>
#endif

namespace fa::cpu {
namespace {
constexpr int NO_LIMIT = 1 << 16;

// a positive number at the start of `words` ("4", or "4,2" as OpenMP has it), else 0
int leading_number(const std::string& words) {
  int value = 0;
  const auto [end, error] = std::from_chars(words.data(), words.data() + words.size(), value);
  const bool ends = end == words.data() + words.size() || *end == ',' || *end == ' ';
  return error == std::errc() && ends && value > 0 ? value : 0;
}

int wanted() {
  const std::string own = env::num_threads();
  if (!own.empty()) {
    const int n = leading_number(own);
    if (n == 0 || own.find_first_not_of("0123456789") != std::string::npos)
      fail(Error::Kind::value, "flash_attn", "FLASH_ATTENTION_NUM_THREADS", text("expected a positive number, found ", own));
    return n;
  }
  const int omp = leading_number(env::omp_num_threads());
  return omp > 0 ? omp : NO_LIMIT;
}

int count_affinity() {
#if defined(__linux__)
  for (int cpus = 1024; cpus <= NO_LIMIT; cpus *= 8) {  // more than 1024 CPUs need a larger set
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(cpus));
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(cpus));
    const int n = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (n > 0) return n;
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Looked up again after a while: programs may change it, but asking the system takes longer than planning a small call.
int affinity() {
  using Clock = std::chrono::steady_clock;
  thread_local int count = 0;
  thread_local Clock::time_point until;
  const Clock::time_point now = Clock::now();
  if (count == 0 || now >= until) {
    count = count_affinity();
    until = now + std::chrono::milliseconds(100);
  }
  return count;
}

int cpus_of(double quota, double period) {
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period))) : NO_LIMIT;
}
bool read_words(const std::string& path, std::string& first, std::string& second) {
  std::ifstream file(path);
  file >> first;
  file >> second;
  return !first.empty();
}
double number(const std::string& words) {
  std::istringstream s(words);
  double value = 0;
  s >> value;
  return s.fail() ? 0 : value;
}
// `path` and its parents: the tightest quota counts
template <class Quota>
int tightest(const std::string& root, std::string path, const Quota& quota) {
  int cpus = NO_LIMIT;
  for (;;) {
    cpus = std::min(cpus, quota(root + path));
    const size_t slash = path.rfind('/');
    if (path.empty() || slash == std::string::npos) return cpus;
    path.resize(slash);
  }
}
// cgroup v2: cpu.max holds "quota period" or "max period"; v1: two files. /proc/self/cgroup says which group is ours.
int cgroup_quota() {
  int cpus = NO_LIMIT;
#if defined(__linux__)
  const auto v2 = [](const std::string& folder) {
    std::string quota, period;
    return read_words(folder + "/cpu.max", quota, period) ? cpus_of(number(quota), number(period)) : NO_LIMIT;
  };
  const auto v1 = [](const std::string& folder) {
    std::string quota, period, rest;
    if (!read_words(folder + "/cpu.cfs_quota_us", quota, rest) || !read_words(folder + "/cpu.cfs_period_us", period, rest)) return NO_LIMIT;
    return cpus_of(number(quota), number(period));
  };
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:path
    const size_t a = line.find(':'), b = a == std::string::npos ? a : line.find(':', a + 1);
    if (b == std::string::npos) continue;
    const std::string controllers = "," + line.substr(a + 1, b - a - 1) + ",", path = line.substr(b + 1);
    if (controllers == ",,") cpus = std::min(cpus, tightest("/sys/fs/cgroup", path, v2));
    if (controllers.find(",cpu,") != std::string::npos) cpus = std::min(cpus, tightest("/sys/fs/cgroup/cpu", path, v1));
  }
#endif
  return cpus;
}
}  // namespace

int thread_count() {
  static const int quota = cgroup_quota();  // of the process's life: reading it takes longer than a small call
  return std::max(1, std::min({wanted(), affinity(), quota}));
}
}  // namespace fa::cpu
