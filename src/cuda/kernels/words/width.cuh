// How many bytes of a row may be read at once.
#pragma once
#include "element.cuh"
namespace fa::cuda {
constexpr int ELEMENT_BYTES = sizeof(Element), CHUNK = 16 / ELEMENT_BYTES;  // elements of 16 bytes

// The widest copy that an array's address and strides allow, in bytes: 16, 8, or 0 for one element at a time.
FA_FN int copy_width(const void* pointer, Int64 row, Int64 head, Int64 batch) {
  const unsigned long long bits =
      reinterpret_cast<unsigned long long>(pointer) | static_cast<unsigned long long>((row | head | batch) * ELEMENT_BYTES);
  return (bits & 15u) == 0 ? 16 : (bits & 7u) == 0 ? 8 : 0;
}
FA_FN int copy_width(const void* pointer, Strides s) { return copy_width(pointer, s.row, s.head, s.batch); }
}  // namespace fa::cuda
