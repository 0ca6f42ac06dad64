// How a kernel is entered: arguments by the parameters' attributes, and what the host must know of each parameter.
#pragma once

namespace emulator {

// threadgroup T x[N]; of kernel text: storage in the runtime's arena.
template <class A, int ID, size_t ALIGNMENT = alignof(A)>
METAL_FUNC A& threadgroup_variable(const char* name) {
  return *(std::remove_reference_t<A>*)emulator_threadgroup_variable(ID, sizeof(A), ALIGNMENT, name);
}

template <class T>
constexpr int space_of = 0;
template <class T>
constexpr int space_of<FA_DEVICE T> = SPACE_DEVICE;
template <class T>
constexpr int space_of<FA_CONSTANT T> = SPACE_CONSTANT;
template <class T>
constexpr int space_of<FA_THREADGROUP T> = SPACE_THREADGROUP;

// By value: what the thread knows of itself.
template <class A>
struct Argument {
  static constexpr bool is_buffer = false;
  using Item = A;
  FA_UNCHECKED static inline A get(int code, void* const*, const ThreadInfo* thread) {
    A value;
    if constexpr (metal::emulated::size_of<A> == 1) {
      value = static_cast<A>(thread->value[code][0]);
    } else {
      for (int i = 0; i < metal::emulated::size_of<A>; i++) value[i] = static_cast<metal::emulated::element_of<A>>(thread->value[code][i]);
    }
    return value;
  }
};
template <class T>
struct Argument<T*> {
  static constexpr bool is_buffer = true;
  using Item = T;
  FA_UNCHECKED static inline T* get(int code, void* const* buffers, const ThreadInfo*) { return (T*)buffers[code - attribute::buffer]; }
};
template <class T>
struct Argument<T&> {
  static constexpr bool is_buffer = true;
  using Item = T;
  FA_UNCHECKED static inline T& get(int code, void* const* buffers, const ThreadInfo*) { return *(T*)buffers[code - attribute::buffer]; }
};

template <class A>
constexpr Parameter describe(const char* name, int code) {
  using Item = typename Argument<A>::Item;
  if constexpr (Argument<A>::is_buffer) {
    constexpr bool writable = !std::is_const_v<std::remove_reference_t<Item>> && space_of<Item> == SPACE_DEVICE;
    return {name, code, space_of<std::remove_cv_t<Item>>, writable, static_cast<int>(sizeof(Item))};
  } else {
    return {name, code, 0, 0, 0};
  }
}

// codes: an attribute::Code a parameter.
template <auto F, const int* CODES>
struct Thunk;
template <class... A, void (*F)(A...), const int* CODES>
struct Thunk<F, CODES> {
  static constexpr int count = sizeof...(A);
  template <size_t... I>
  FA_UNCHECKED static inline void call(void* const* buffers, const ThreadInfo* thread, std::index_sequence<I...>) {
    F(Argument<A>::get(CODES[I], buffers, thread)...);
  }
  FA_UNCHECKED static void run(void* const* buffers, const ThreadInfo* thread) {
    call(buffers, thread, std::make_index_sequence<sizeof...(A)>());
  }
  template <size_t... I>
  static constexpr auto described(const char* const* names, std::index_sequence<I...>) {
    struct Table {
      Parameter parameter[sizeof...(A)];
    };
    return Table{{describe<A>(names[I], CODES[I])...}};
  }
  static constexpr auto table(const char* const* names) { return described(names, std::make_index_sequence<sizeof...(A)>()); }
};

}  // namespace emulator
