// What the files of the bindings share.
#pragma once
#include <nanobind/nanobind.h>

#include "core/plan.h"

namespace fa::bindings {
// flash_attn/call.py lists the same names in the same order.
Options options_of(const nanobind::tuple& values);
// Whether all values are of Python's own types, whole numbers fit and what only few calls have is not there: no cache length. What is
// not, callers leave to the checks written in Python.
bool usual(const nanobind::tuple& values);
// Roles that kernels read through strides; all others are contiguous (frameworks/base.py, STRIDED).
constexpr uint64_t STRIDED = bit(Role::q) | bit(Role::k) | bit(Role::v) | bit(Role::out) | bit(Role::dout) | bit(Role::dq) | bit(Role::dk) |
                             bit(Role::dv) | bit(Role::bias) | bit(Role::new_k) | bit(Role::new_v) | bit(Role::pages);
// Views by role, [(role, View)], become the arrays of a call.
void set_arrays(Call& call, const nanobind::list& arrays);
// Whether rows (or only the last axis) lie without gaps.
bool contiguous(const Tensor& t, bool last_axis_only);
// Lets other threads run Python while it lives.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked();
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};
// Ctrl-C and other signals, asked for from a thread that does not hold the interpreter.
bool interrupted();

// The launches of a plan, for runners written in Python.
nanobind::list launches_of(const Plan& plan);

void bind_exchange(nanobind::module_& m);
void bind_gpu(nanobind::module_& m);
void bind_launches(nanobind::module_& m);
void bind_buffers(nanobind::module_& m);
}  // namespace fa::bindings
