// Errors in the house form: [function] argument: expected ..., found ...
#pragma once
#include <sstream>
#include <string>

#include "flash_attn/flash_attn.h"

namespace fa {
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream s;
  (s << ... << parts);
  return s.str();
}
[[noreturn]] void fail(Error::Kind kind, const char* function, const std::string& argument, const std::string& message);
std::string shape_text(const Tensor& t);  // (2, 512, 8, 64)
const char* dtype_name(DType t);          // float16
inline int64_t element_bytes(DType t) {
  switch (t) {
    case DType::f16:
    case DType::bf16: return 2;
    case DType::f32:
    case DType::i32:
    case DType::u32: return 4;
    case DType::f64:
    case DType::i64: return 8;
    case DType::u8: return 1;
    case DType::none: break;
  }
  return 0;
}
}  // namespace fa
