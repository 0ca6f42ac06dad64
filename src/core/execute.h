// From a Call to its result on the CPU: the one flow that the C++ API and the Python bindings share.
#pragma once
#include "core/plan.h"

namespace fa {
// describe, check_values (where the host can read), choose, plan
Plan prepare(const Call& call, const Device& device);
// Device of an array, for planning.
Device device_of(Place place);
// Runs a prepared plan on the call's arrays. Temporaries are allocated here; outputs must be there.
void execute(const Plan& plan, const Call& call, bool (*interrupted)());
}  // namespace fa
