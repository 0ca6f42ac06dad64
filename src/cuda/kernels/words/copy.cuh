// Rows from global to shared memory behind the arithmetic (cp.async), zeros where there is nothing to read.
#pragma once
#include "width.cuh"
namespace fa::cuda {
FA_FN unsigned shared_address(const void* pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }

// `valid` of the 16 (8) bytes are read, the rest become 0.
FA_FN void copy_16(unsigned to, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
}
FA_FN void copy_16(unsigned to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
FA_FN void copy_8(unsigned to, const void* from, int valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
}
FA_FN void store_16(unsigned to, uint4 words) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w) : "memory");
}
FA_FN void store_4(unsigned to, unsigned word) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(word) : "memory"); }
FA_FN void store_8(unsigned to, float x, float y) { asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(to), "f"(x), "f"(y) : "memory"); }
FA_FN float load_float(unsigned from) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from) : "memory");
  return x;
}
FA_FN float2 load_floats(unsigned from) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
  return x;
}
FA_FN uint4 load_16(unsigned from) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w) : "r"(from) : "memory");
  return words;
}
FA_FN void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// until at most `pending` of this thread's groups are under way
template <int PENDING>
FA_FN void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

FA_FN unsigned bits_of(float x) { return __float_as_uint(x); }
template <class T>
FA_FN unsigned bits_of(T x) {
  return x.bits;
}
// element i of 16 bytes
FA_FN Element element_of(const unsigned (&words)[4], int i) {
  if constexpr (ELEMENT_BYTES == 4)
    return Element{__uint_as_float(words[i])};
  else
    return Element{static_cast<unsigned short>(words[i / 2] >> (16 * (i % 2)))};
}
// The first `valid` bytes of 16, from memory aligned to `width` (8, or an element) bytes only; the rest become 0.
FA_FN void copy_narrow(unsigned to, const Element* from, int valid, int width) {
  if (width == 8) {
    copy_8(to, from, min(valid, 8));
    copy_8(to + 8, valid > 8 ? from + 8 / ELEMENT_BYTES : from, max(valid - 8, 0));
  } else {
    unsigned words[4] = {};
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
      if (i < valid / ELEMENT_BYTES) words[i * ELEMENT_BYTES / 4] |= bits_of(from[i]) << (8 * ELEMENT_BYTES * i % 32);
    store_16(to, uint4{words[0], words[1], words[2], words[3]});
  }
}
}  // namespace fa::cuda
