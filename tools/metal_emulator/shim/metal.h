// Metal's standard library as far as attention kernels and MLX's own need it, for clang on Linux: the prefix of every kernel's
// translation unit. C++ with address spaces as attributes; the keywords of kernel text are rewritten to the same ones.
#pragma once
#include "macros.h"
// Below macros.h: they must not see its words.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "../runtime/services.h"

#define FA_DEVICE __attribute__((address_space(1)))
#define FA_CONSTANT __attribute__((address_space(2)))
#define FA_THREADGROUP __attribute__((address_space(3)))
// Code of the emulator that runs inside a kernel and is no access of the kernel.
#define FA_UNCHECKED __attribute__((no_sanitize("thread")))
// The place of a call, for operations in which lanes meet.
#define FA_SITE int site = ::emulator::site_of(__builtin_LINE(), __builtin_COLUMN())

// In the order in which they need each other.
// clang-format off
#include "types.h"
#include "math.h"
#include "simdgroup.h"
#include "atomic.h"
#include "simdgroup_matrix.h"
#include "compiler_words.h"
#include "tensor_ops.h"
#include "entry.h"
// clang-format on
