// SHA-256, for the names and the integrity of cache entries.
#pragma once
#include <string>
#include <string_view>

namespace fa {
std::string sha256(std::string_view bytes);  // 64 hexadecimal digits
}  // namespace fa
