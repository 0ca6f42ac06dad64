// The Metal backend, as the registry sees it.
#pragma once
#include "core/plan.h"

namespace fa::metal {
extern const Backend BACKEND;
}  // namespace fa::metal
