// Atomics: threads of the emulator share one processor core, so plain accesses are atomic. memory_order_relaxed is all that Metal has.
#pragma once

namespace metal {

enum memory_order { memory_order_relaxed = 0 };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };
template <class T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

namespace emulated {
template <class P>
FA_UNCHECKED inline void touch(P* place, bool reads) {
  emulator_atomic_access((const volatile void*)place, sizeof place->value, reads);
}
}  // namespace emulated

#define FA_FETCH(SPACE, NAME, EXPRESSION)                                                                          \
  template <class T, class U>                                                                                      \
  FA_UNCHECKED inline T atomic_fetch_##NAME##_explicit(volatile SPACE atomic<T>* place, U operand, memory_order) { \
    emulated::touch(place, true);                                                                                  \
    const T before = place->value, x = static_cast<T>(operand);                                                    \
    place->value = static_cast<T>(EXPRESSION);                                                                     \
    return before;                                                                                                 \
  }
#define FA_ATOMICS(SPACE)                                                                                                             \
  template <class T>                                                                                                                  \
  FA_UNCHECKED inline T atomic_load_explicit(const volatile SPACE atomic<T>* place, memory_order) {                                   \
    emulated::touch(place, true);                                                                                                     \
    return place->value;                                                                                                              \
  }                                                                                                                                   \
  template <class T, class U>                                                                                                         \
  FA_UNCHECKED inline void atomic_store_explicit(volatile SPACE atomic<T>* place, U value, memory_order) {                            \
    emulated::touch(place, false);                                                                                                    \
    place->value = static_cast<T>(value);                                                                                             \
  }                                                                                                                                   \
  template <class T, class U>                                                                                                         \
  FA_UNCHECKED inline bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* place, T* expected, U value, memory_order, \
                                                                 memory_order) {                                                      \
    emulated::touch(place, true);                                                                                                     \
    const T before = place->value;                                                                                                    \
    const bool same = before == *expected;                                                                                            \
    if (same) place->value = static_cast<T>(value);                                                                                   \
    *expected = before;                                                                                                               \
    return same;                                                                                                                      \
  }                                                                                                                                   \
  template <class T, class U>                                                                                                         \
  FA_UNCHECKED inline T atomic_exchange_explicit(volatile SPACE atomic<T>* place, U value, memory_order) {                            \
    emulated::touch(place, true);                                                                                                     \
    const T before = place->value;                                                                                                    \
    place->value = static_cast<T>(value);                                                                                             \
    return before;                                                                                                                    \
  }                                                                                                                                   \
  FA_FETCH(SPACE, add, before + x)                                                                                                    \
  FA_FETCH(SPACE, sub, before - x)                                                                                                    \
  FA_FETCH(SPACE, max, before < x ? x : before)                                                                                       \
  FA_FETCH(SPACE, min, x < before ? x : before)                                                                                       \
  FA_FETCH(SPACE, or, before | x)                                                                                                     \
  FA_FETCH(SPACE, and, before& x)                                                                                                     \
  FA_FETCH(SPACE, xor, before ^ x)
FA_ATOMICS(FA_DEVICE)
FA_ATOMICS(FA_THREADGROUP)
#undef FA_ATOMICS
#undef FA_FETCH

// Order between threadgroups is beyond the emulator: groups run one after the other.
METAL_FUNC void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}

}  // namespace metal
