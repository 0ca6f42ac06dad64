// Barriers, and what the lanes of a simdgroup exchange. An operation is a function over all lanes' slots that the last lane runs.
#pragma once

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
METAL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
METAL_FUNC void threadgroup_barrier(mem_flags flags, FA_SITE) { emulator_threadgroup_barrier(int(flags), site); }
METAL_FUNC void simdgroup_barrier(mem_flags flags, FA_SITE) { emulator_simdgroup_barrier(int(flags), site); }

namespace emulated {

constexpr int WIDTH = ::emulator::SIMD_WIDTH;
inline bool has(uint32_t lanes, int lane) { return (lanes >> lane & 1) != 0; }

template <class T>
constexpr size_t slot_bytes = (sizeof(T) + 15) / 16 * 16;
template <class T>
FA_UNCHECKED inline T taken(const unsigned char* slots, int lane) {
  T value;
  __builtin_memcpy(&value, slots + lane * slot_bytes<T>, sizeof value);
  return value;
}
template <class T>
FA_UNCHECKED inline void give(unsigned char* slots, int lane, T value) {
  __builtin_memcpy(slots + lane * slot_bytes<T>, &value, sizeof value);
}
template <class T>
FA_UNCHECKED inline T exchange(int site, T value, ::emulator::Combine combine) {
  T result;
  emulator_exchange(site, &value, sizeof value, &result, sizeof result, combine);
  return result;
}

// ---- shuffles: each lane names the lane it reads; a lane that takes no part has nothing to give but NaN ----
template <class T>
struct Request {
  T value;
  int from;
};
template <class T>
FA_UNCHECKED inline void combine_shuffle(uint32_t active, const unsigned char* in, unsigned char* out) {
  for (int lane = 0; lane < WIDTH; lane++) {
    if (!has(active, lane)) continue;
    const int from = taken<Request<T>>(in, lane).from;
    T value;
    __builtin_memset(&value, 0xff, sizeof value);
    if (from >= 0 && from < WIDTH && has(active, from)) value = taken<Request<T>>(in, from).value;
    give(out, lane, value);
  }
}
template <class T>
FA_UNCHECKED inline T shuffle(int site, T value, int from) {
  const Request<T> request{value, from};
  T result;
  emulator_exchange(site, &request, sizeof request, &result, sizeof result, &combine_shuffle<T>);
  return result;
}

// ---- reductions: pairs of neighbours first, as a tree ----
template <class T, T (*F)(T, T)>
FA_UNCHECKED inline void combine_tree(uint32_t active, const unsigned char* in, unsigned char* out) {
  T values[WIDTH];
  bool present[WIDTH];
  for (int lane = 0; lane < WIDTH; lane++) {
    present[lane] = has(active, lane);
    if (present[lane]) values[lane] = taken<T>(in, lane);
  }
  for (int step = 1; step < WIDTH; step *= 2) {
    for (int lane = 0; lane < WIDTH; lane += 2 * step) {
      if (!present[lane + step]) continue;
      values[lane] = present[lane] ? F(values[lane], values[lane + step]) : values[lane + step];
      present[lane] = true;
    }
  }
  for (int lane = 0; lane < WIDTH; lane++) {
    if (has(active, lane)) give(out, lane, values[0]);
  }
}
template <class T, T (*F)(T, T), bool INCLUSIVE>
FA_UNCHECKED inline void combine_prefix(uint32_t active, const unsigned char* in, unsigned char* out) {
  T before = F(T(1), T(1)) == T(1) ? T(1) : T(0);  // neutral: 1 of a product, 0 of a sum
  for (int lane = 0; lane < WIDTH; lane++) {
    if (!has(active, lane)) continue;
    const T with = F(before, taken<T>(in, lane));
    give(out, lane, INCLUSIVE ? with : before);
    before = with;
  }
}
FA_UNCHECKED inline void combine_ballot(uint32_t active, const unsigned char* in, unsigned char* out) {
  uint32_t votes = 0;
  for (int lane = 0; lane < WIDTH; lane++) votes |= has(active, lane) && taken<uint>(in, lane) ? 1u << lane : 0u;
  for (int lane = 0; lane < WIDTH; lane++) {
    if (has(active, lane)) give(out, lane, votes);
  }
}
// Elements of a vector are reduced each for itself.
#define FA_PAIR(NAME, EXPRESSION)              \
  template <class T>                           \
  FA_UNCHECKED inline T NAME(T x, T y) {       \
    if constexpr (size_of<T> == 1) {           \
      return static_cast<T>(EXPRESSION);       \
    } else {                                   \
      T result = x;                            \
      for (int i = 0; i < size_of<T>; i++) {   \
        using E = element_of<T>;               \
        result[i] = NAME<E>(E(x[i]), E(y[i])); \
      }                                        \
      return result;                           \
    }                                          \
  }
FA_PAIR(plus, x + y)
FA_PAIR(times, x* y)
FA_PAIR(larger, x > y || y != y ? x : y)
FA_PAIR(smaller, x < y || y != y ? x : y)
FA_PAIR(both, x& y)
FA_PAIR(either, x | y)
FA_PAIR(differ, x ^ y)
#undef FA_PAIR
METAL_FUNC int lane() { return static_cast<int>(emulator_lane()); }

}  // namespace emulated

#define FA_REDUCTION(NAME, F)                                                            \
  template <class T>                                                                     \
  METAL_FUNC T NAME(T value, FA_SITE) {                                                  \
    return emulated::exchange(site, value, &emulated::combine_tree<T, &emulated::F<T>>); \
  }
FA_REDUCTION(simd_sum, plus)
FA_REDUCTION(simd_product, times)
FA_REDUCTION(simd_max, larger)
FA_REDUCTION(simd_min, smaller)
FA_REDUCTION(simd_and, both)
FA_REDUCTION(simd_or, either)
FA_REDUCTION(simd_xor, differ)
#undef FA_REDUCTION
#define FA_PREFIX(NAME, F, INCLUSIVE)                                                                 \
  template <class T>                                                                                  \
  METAL_FUNC T NAME(T value, FA_SITE) {                                                               \
    return emulated::exchange(site, value, &emulated::combine_prefix<T, &emulated::F<T>, INCLUSIVE>); \
  }
FA_PREFIX(simd_prefix_inclusive_sum, plus, true)
FA_PREFIX(simd_prefix_exclusive_sum, plus, false)
FA_PREFIX(simd_prefix_inclusive_product, times, true)
FA_PREFIX(simd_prefix_exclusive_product, times, false)
#undef FA_PREFIX
#define FA_SHUFFLE(NAME, ARGUMENT, FROM)                 \
  template <class T>                                     \
  METAL_FUNC T NAME(T value, ushort ARGUMENT, FA_SITE) { \
    return emulated::shuffle(site, value, FROM);         \
  }
FA_SHUFFLE(simd_shuffle, from, from)
FA_SHUFFLE(simd_broadcast, from, from)
FA_SHUFFLE(simd_shuffle_xor, mask, emulated::lane() ^ mask)
FA_SHUFFLE(simd_shuffle_rotate_up, delta, (emulated::lane() - delta) & 31)
FA_SHUFFLE(simd_shuffle_rotate_down, delta, (emulated::lane() + delta) & 31)
FA_SHUFFLE(simd_shuffle_up, delta, emulated::lane() < delta ? emulated::lane() : emulated::lane() - delta)
FA_SHUFFLE(simd_shuffle_down, delta, emulated::lane() + delta > 31 ? emulated::lane() : emulated::lane() + delta)
FA_SHUFFLE(quad_shuffle, from, (emulated::lane() & ~3) | (from & 3))
FA_SHUFFLE(quad_broadcast, from, (emulated::lane() & ~3) | (from & 3))
FA_SHUFFLE(quad_shuffle_xor, mask, emulated::lane() ^ (mask & 3))
#undef FA_SHUFFLE
template <class T>
METAL_FUNC T simd_broadcast_first(T value, FA_SITE) {
  return emulated::shuffle(site, value, 0);
}
template <class T>
METAL_FUNC T simd_shuffle_and_fill_up(T value, T fill, ushort delta, FA_SITE) {
  const int from = emulated::lane() - delta;
  const T moved = emulated::shuffle(site, value, from & 31), filled = emulated::shuffle(site, fill, from & 31);
  return from < 0 ? filled : moved;
}
template <class T>
METAL_FUNC T simd_shuffle_and_fill_down(T value, T fill, ushort delta, FA_SITE) {
  const int from = emulated::lane() + delta;
  const T moved = emulated::shuffle(site, value, from & 31), filled = emulated::shuffle(site, fill, from & 31);
  return from > 31 ? filled : moved;
}
template <class T>
METAL_FUNC T quad_sum(T value, FA_SITE) {
  const T pair = value + quad_shuffle_xor(value, 1, site);
  return pair + quad_shuffle_xor(pair, 2, site);
}
template <class T>
METAL_FUNC T quad_max(T value, FA_SITE) {
  const T pair = max(value, quad_shuffle_xor(value, 1, site));
  return max(pair, quad_shuffle_xor(pair, 2, site));
}

struct simd_vote {
  ulong votes;
  explicit operator ulong() const { return votes; }
  bool all() const { return static_cast<uint>(votes) == ~0u; }
  bool any() const { return votes != 0; }
};
METAL_FUNC simd_vote simd_ballot(bool vote, FA_SITE) { return {emulated::exchange<uint>(site, vote, &emulated::combine_ballot)}; }
METAL_FUNC bool simd_any(bool vote, FA_SITE) { return simd_ballot(vote, site).any(); }
METAL_FUNC bool simd_all(bool vote, FA_SITE) { return !simd_ballot(!vote, site).any(); }
METAL_FUNC bool simd_is_first() { return emulated::lane() == 0; }

}  // namespace metal
