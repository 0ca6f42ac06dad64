// What users call each array.
#pragma once
#include <string>

#include "flash_attn/flash_attn.h"

namespace fa {
std::string argument_name(const Call& call, Role role);
std::string max_seqlen_name(const Call& call, Role role);  // of q or k
std::string shape_text(const int64_t* shape, int rank);
}  // namespace fa
