// Launches of a plan as Python's runners take them, and what the environment says about Metal.
#include <nanobind/stl/string.h>

#include "bindings/shared.h"
#include "core/env.h"

namespace nb = nanobind;

namespace fa::bindings {
namespace {
nb::tuple triple(const int (&n)[3]) { return nb::make_tuple(n[0], n[1], n[2]); }

// (source, kernel, ((constant, value), ...), blocks, threads of a block, ((role, caller's role or -1, temporary or -1, written), ...),
// bytes of Params)
nb::tuple launch_tuple(const Launch& l) {
  nb::list constants, arguments;
  for (const Constant& c : l.constants) constants.append(nb::make_tuple(c.name, c.value));
  for (const Argument& a : l.arguments) {
    const int role = a.from.temporary >= 0 ? -1 : static_cast<int>(a.from.role);
    arguments.append(nb::make_tuple(static_cast<int>(a.as), role, a.from.temporary, a.written));
  }
  const Params params = narrow(l.params);
  return nb::make_tuple(l.source ? l.source : "", l.kernel, nb::tuple(constants), triple(l.grid.blocks), triple(l.grid.threads),
                        nb::tuple(arguments), nb::bytes(reinterpret_cast<const char*>(&params), sizeof params));
}
}  // namespace

nb::list launches_of(const Plan& plan) {
  nb::list list;
  for (const Launch& l : plan.launches) list.append(launch_tuple(l));
  return list;
}

void bind_launches(nb::module_& m) { m.def("metal_mode", env::metal); }
}  // namespace fa::bindings
