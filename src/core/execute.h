// From a Call to its result: the one flow that the C++ API and the Python bindings share.
#pragma once
#include <span>

#include "core/plan.h"

namespace fa {
// describe, check_values (where the host can read, or FLASH_ATTENTION_CHECK=1 copies; else check_memory), choose, plan
Plan prepare(const Call& call, const Device& device);
// The device of a call's arrays, for planning.
Device device_of(const Call& call);
// Runs a prepared plan on the call's arrays with the backend that planned it. Outputs must be there, and plan.temporaries of
// `temporaries` unless the backend allocates them.
void execute(const Plan& plan, const Call& call, std::span<void* const> temporaries, Stream stream, bool (*interrupted)());
// The temporaries that execute() wants of its caller: none where the backend allocates.
std::span<const Temporary> wanted_temporaries(const Plan& plan);
}  // namespace fa
