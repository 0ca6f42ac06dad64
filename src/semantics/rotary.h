// Rotary position embedding: element pairs (x, y) of a head turn by the angle of their position. Pairs are (2t, 2t + 1) when
// interleaved, otherwise (t, t + rotary_dim / 2); cos and sin have rotary_dim / 2 columns.
#pragma once
#include "platform.h"
namespace fa {
template <class V>
struct Pair {
  V x, y;
};
template <class V>
FA_FN Pair<V> rotate(V x, V y, V cos, V sin) {
  return Pair<V>{x * cos - y * sin, x * sin + y * cos};
}
FA_FN int rotary_first(int t, int interleaved) { return select(interleaved != 0, 2 * t, t); }
FA_FN int rotary_second(int t, int rotary_dim, int interleaved) { return select(interleaved != 0, 2 * t + 1, t + rotary_dim / 2); }
}  // namespace fa
