// Which probabilities dropout keeps: a function of (seed, offset, batch * heads + head, row, key) and nothing else, so forward,
// backward, every tiling and every backend agree. One Philox4x32-7 call decides rows {i, i + 8} x keys {j, j + 8, j + 16, j + 24} by
// 16 bits each: the elements one lane holds of an MMA fragment, in either orientation.
#pragma once
#include "platform.h"
namespace fa {
struct Dropout {
  unsigned threshold;  // keep iff 16 bits < threshold = round((1 - p) * 65536)
};
template <class U>
struct Words {
  U x, y, z, w;
};
struct Seed {
  unsigned low, high, offset;  // Role SEED: uint32[4] = low, high, offset, 0
};

template <class U>
FA_FN Words<U> philox_round(Words<U> c, unsigned k0, unsigned k1) {
  const U hi0 = mulhi(U(0xD2511F53u), c.x);
  const U lo0 = U(0xD2511F53u) * c.x;
  const U hi1 = mulhi(U(0xCD9E8D57u), c.z);
  const U lo1 = U(0xCD9E8D57u) * c.z;
  return Words<U>{hi1 ^ c.y ^ U(k0), lo1, hi0 ^ c.w ^ U(k1), lo0};
}
template <class U>
FA_FN Words<U> philox7(Words<U> c, unsigned k0, unsigned k1) {
  const unsigned a = 0x9E3779B9u;
  const unsigned b = 0xBB67AE85u;
  const Words<U> c1 = philox_round(c, k0, k1);
  const Words<U> c2 = philox_round(c1, k0 + a, k1 + b);
  const Words<U> c3 = philox_round(c2, k0 + 2u * a, k1 + 2u * b);
  const Words<U> c4 = philox_round(c3, k0 + 3u * a, k1 + 3u * b);
  const Words<U> c5 = philox_round(c4, k0 + 4u * a, k1 + 4u * b);
  const Words<U> c6 = philox_round(c5, k0 + 5u * a, k1 + 5u * b);
  return philox_round(c6, k0 + 6u * a, k1 + 6u * b);
}
// the four words that decide rows 16 a + b + {0, 8} and keys 32 c + d + {0, 8, 16, 24}, from any row and key among them
template <class U>
FA_FN Words<U> dropout_words(Seed s, U head, U row, U key) {
  const U rows = (row >> 4) * U(8u) + (row & U(7u));
  const U keys = (key >> 5) * U(8u) + (key & U(7u));
  return philox7(Words<U>{rows, keys, head, U(s.offset)}, s.low, s.high);
}
// group = ((row / 8) % 2) * 4 + (key / 8) % 4 names the 16 bits of one element; the low half of a word comes first
template <class U>
FA_FN U dropout_bits(Words<U> w, U row, U key) {
  const U group = ((row >> 3) & U(1u)) * U(4u) + ((key >> 3) & U(3u));
  const U pair = group >> 1;
  const U word = select(pair < U(2u), select(pair == U(0u), w.x, w.y), select(pair == U(2u), w.z, w.w));
  return (word >> ((group & U(1u)) * U(16u))) & U(65535u);
}
// head: batch * heads + head; row and key are absolute positions
template <class U>
FA_FN auto keeps(Dropout d, Seed s, U head, U row, U key) {
  return dropout_bits(dropout_words(s, head, row, key), row, key) < U(d.threshold);
}
}  // namespace fa
