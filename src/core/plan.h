// A Plan is data: which kernels run, on which arrays, with which temporaries. Planning touches no device, so the plans of every chip
// are tested on any machine; a runner executes launches and knows nothing else.
#pragma once
#include <string>
#include <vector>

#include "core/problem.h"

namespace fa {

// What planning needs to know of a chip. arch: compute capability (CUDA), or 0; the CPU's instruction set is chosen by cpu/dispatch.
struct Device {
  DeviceKind kind;
  int arch;
  int cores;         // threads a CPU call may use
  int shared_bytes;  // of a block (GPUs)
};

constexpr unsigned dtype_bit(DType t) { return 1u << static_cast<int>(t); }

// A row of a backend's table: what a kernel can do. Best first; the first row that takes a call wins.
struct Kernel {
  const char* name;
  Pass pass;
  int arch_first, arch_last;                              // of the device, inclusive; 0, 0 for CPUs
  unsigned dtypes;                                        // dtype_bit()s
  int max_dim;                                            // of dim and value_dim
  unsigned features, needs;                               // what it can do
  const char* (*refuses)(const Problem&, const Device&);  // null, or a rule bits cannot say; returns null or the sentence
};

// Where a launch finds an array that it knows by role: the caller's array of some role, or a temporary of the plan.
struct Source {
  Role role = Role::COUNT;
  int temporary = -1;
};
struct Argument {
  Role as;
  Source from;
};
struct Temporary {
  DType dtype;
  int64_t count;
};
struct Launch {
  const Kernel* row;
  const char* kernel;  // the job inside the backend: "forward", "delta", ...
  ParamsT<double> params;
  std::vector<Argument> arguments;
};
struct Plan {
  Problem problem;
  const char* backend;
  const Kernel* row;
  std::vector<Launch> launches;
  std::vector<Temporary> temporaries;
};

struct Backend {
  const char* name;
  const Kernel* first;
  int count;
  Plan (*plan)(const Problem&, const Kernel&, const Device&);
};

// The first row of a device's backends that fits. `reasons` says, a sentence for each row before it, why it does not.
struct Choice {
  const Backend* backend = nullptr;
  const Kernel* row = nullptr;
  std::vector<std::string> reasons;
};
Choice choose(const Problem& problem, const Device& device);
// choose() and plan(); throws Error (unsupported) with every reason when no row fits.
Plan make_plan(const Problem& problem, const Device& device);
std::string explain(const Problem& problem, const Device& device);

// Backends of one kind of device, best first (registry.cpp is the only file that lists them).
std::vector<const Backend*> backends_of(DeviceKind kind);

// The arrays of a run: the caller's by role, temporaries by index.
struct Buffers {
  const Tensor* arrays;  // ROLES of them
  std::vector<void*> temporaries;
  const Tensor& operator[](Role role) const { return arrays[static_cast<int>(role)]; }
};
}  // namespace fa
