// A Plan is data: which kernels run, on which arrays, with which temporaries. Planning touches no device, so the plans of every chip
// are tested on any machine; a runner executes launches and knows nothing else.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "core/problem.h"

namespace fa {

// What planning needs to know of a chip. arch: compute capability (CUDA), generation (Metal, see Place), or 0; the CPU's instruction set is
// chosen by cpu/dispatch.
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
  bool written = false;  // by this launch: Metal's runners ask, where what a kernel writes is a new array (other backends need not say)
};
struct Temporary {
  DType dtype;
  int64_t count;
};
// A compile-time value of a GPU kernel, by the name that its text uses.
struct Constant {
  const char* name;
  int value;
};
struct Grid {  // of blocks (threadgroups), and the threads of each, on every backend
  int blocks[3] = {1, 1, 1}, threads[3] = {1, 1, 1};
};
struct Launch {
  const Kernel* row;
  const char* kernel;  // the job inside the backend: "forward", "delta", ...
  ParamsT<double> params;
  std::vector<Argument> arguments;
  // GPUs only:
  const char* source = nullptr;          // the file of the backend's kernels/ that has `kernel`: core/kernel_text.h gives its text
  std::vector<Constant> constants = {};  // NOLINT(readability-redundant-member-init): planners leave it out
  Grid grid = {};
  int shared_bytes = 0;  // of a block, beyond what the kernel declares
};
struct Backend;
struct Plan {
  Problem problem;
  const Kernel* row;
  std::vector<Launch> launches;
  std::vector<Temporary> temporaries;
  const Backend* backend = nullptr;  // make_plan() says whose it is
};

// The arrays of a run, on the plan's device: the caller's by role, temporaries by index.
struct Buffers {
  const Tensor* arrays;  // ROLES of them
  std::span<void* const> temporaries;
  const Tensor& operator[](Role role) const { return arrays[static_cast<int>(role)]; }
  void* at(const Source& s) const { return s.temporary >= 0 ? temporaries[static_cast<size_t>(s.temporary)] : (*this)[s.role].data; }
};
using Stream = void*;  // of the caller (a CUstream); null: the device's default, and the CPU's, which has none

struct Backend {
  const char* name;
  const Kernel* first;
  int count;
  Plan (*plan)(const Problem&, const Kernel&, const Device&);
  // The device of an array, as planning needs it; throws Error (runtime) where the machine lacks what the backend needs.
  Device (*device)(Place);
  // Launches a plan in the order of the stream. A GPU's neither waits nor allocates; the CPU's polls `interrupted` (or null) from the
  // calling thread, and ends with Error (interrupted) when it returns true. Null: launched from Python only.
  void (*run)(const Plan&, const Buffers&, Stream, bool (*interrupted)());
  bool allocates;  // run() has memory for the plan's temporaries itself; otherwise the caller brings them, aligned to TEMPORARY_ALIGNMENT
  // For memory that the host cannot read: copies a contiguous array to it, after all work that was queued before. Null elsewhere.
  void (*read)(const Tensor&, void* to) = nullptr;
};
constexpr int64_t TEMPORARY_ALIGNMENT = 256;

// The first row of a device's backends that fits; nulls where none does.
struct Choice {
  const Backend* backend = nullptr;
  const Kernel* row = nullptr;
};
Choice choose(const Problem& problem, const Device& device);
// choose() and plan(); throws Error (unsupported) with every reason when no row fits.
Plan make_plan(const Problem& problem, const Device& device);
// The same by the plain kernel, which is the last row of every table: what others are compared with.
Plan plain_plan(const Problem& problem, const Device& device);
std::string explain(const Problem& problem, const Device& device);

// Backends of one kind of device, best first (registry.cpp is the only file that lists them).
std::span<const Backend* const> backends_of(DeviceKind kind);
}  // namespace fa
