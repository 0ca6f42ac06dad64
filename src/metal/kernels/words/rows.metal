// How a row of the head dimension is spread over fragments, and the ways rows are read and written.
// The order of a contraction is free, so a row is dealt to its four lanes in 16-byte chunks: one load fills GROUP fragments. Inside such a
// group the order of elements is permuted, the same for both factors, and undone where results are stored. What no group holds (dim mod
// 32 elements of 16 bits, mod 16 of 32) comes in pairs.
#pragma once
#include "fragment.metal"
namespace fa {
template <int DIM>
struct Spread {
  enum { GROUP = 8 / int(sizeof(Element)), FRAGMENTS = DIM / 8, GROUPS = FRAGMENTS / GROUP, REST = FRAGMENTS - GROUPS * GROUP };
  enum { REST_AT = GROUPS * GROUP };                                         // first fragment of the rest
  enum { WORDS = GROUPS * 32 + REST * 2 * int(sizeof(Element)) * 32 / 16 };  // of 16 bytes: 8 rows
};
// The element at a position (0..7) of a fragment.
template <int DIM>
FA_FN int element_of(int fragment, int position) {
  typedef Spread<DIM> S;
  if (fragment < S::REST_AT) {
    return 8 * S::GROUP * (fragment / S::GROUP) + (position >> 1) * 2 * S::GROUP + 2 * (fragment % S::GROUP) + (position & 1);
  }
  return 8 * fragment + position;
}
FA_FN uint4 load_words(const device Element* p) { return *reinterpret_cast<const device uint4*>(p); }
FA_FN uint4 load_words(const constant Element* p) { return *reinterpret_cast<const constant uint4*>(p); }
FA_FN ElementPair load_pair(const device Element* p) { return *reinterpret_cast<const device ElementPair*>(p); }
FA_FN ElementPair load_pair(const constant Element* p) { return *reinterpret_cast<const constant ElementPair*>(p); }
template <class Pair>
FA_FN void unpack(uint4 words, thread Pair* to) {
  if constexpr (sizeof(Pair) == 4) {
    to[0] = as_type<Pair>(words.x);
    to[1] = as_type<Pair>(words.y);
    to[2] = as_type<Pair>(words.z);
    to[3] = as_type<Pair>(words.w);
  } else {
    to[0] = as_type<Pair>(words.xy);
    to[1] = as_type<Pair>(words.zw);
  }
}
template <class Pair>
FA_FN uint4 pack(const thread Pair* from) {
  if constexpr (sizeof(Pair) == 4) {
    return uint4(as_type<uint>(from[0]), as_type<uint>(from[1]), as_type<uint>(from[2]), as_type<uint>(from[3]));
  } else {
    return uint4(as_type<uint2>(from[0]), as_type<uint2>(from[1]));
  }
}

// Reads rows of `dim` elements that are `step` apart; with VECTOR in words of 16 bytes, for which dim is DIM, step is 1 and rows lie at
// multiples of 16 bytes.
template <int DIM, bool VECTOR>
struct Reader {
  Int64 step;
  int dim;
  ushort pair;
};
template <int DIM, bool VECTOR, class P>
FA_FN P lane_row(Reader<DIM, VECTOR> r, P row) {
  if constexpr (VECTOR) {
    return row + 2 * Spread<DIM>::GROUP * int(r.pair);
  }
  return row;
}
template <int DIM, bool VECTOR, class P>
FA_FN Element read_element(Reader<DIM, VECTOR> r, P row, int d) {
  return d < r.dim ? row[d * r.step] : Element(0.0f);
}
// `row` is what lane_row() made of the row.
template <int DIM, bool VECTOR, class P>
FA_FN void read_group(Reader<DIM, VECTOR> r, P row, int group, thread ElementPair* to) {
  if constexpr (VECTOR) {
    unpack(load_words(row + 8 * Spread<DIM>::GROUP * group), to);
  } else {
    FA_UNROLL for (int t = 0; t < Spread<DIM>::GROUP; t++) {
      const int d = element_of<DIM>(group * Spread<DIM>::GROUP + t, 2 * int(r.pair));
      to[t] = pair_of(read_element(r, row, d), read_element(r, row, d + 1));
    }
  }
}
template <int DIM, bool VECTOR, class P>
FA_FN ElementPair read_rest(Reader<DIM, VECTOR> r, P row, int t) {
  const int d = 8 * (Spread<DIM>::REST_AT + t) + 2 * int(r.pair);
  if constexpr (VECTOR) {
    return load_pair(row + d - 2 * Spread<DIM>::GROUP * int(r.pair));
  } else {
    return pair_of(read_element(r, row, d), read_element(r, row, d + 1));
  }
}

// The factor that stays for the whole loop, transposed: rows are the head dimension, columns the rows 2 pair and 2 pair + 1 of a tile. In
// registers, or in threadgroup memory that only its own lane reads, which needs no barrier.
template <int DIM, int TILES, bool IN_REGISTERS>
struct Held {
  ElementPair x[TILES][Spread<DIM>::FRAGMENTS];
};
template <int DIM, int TILES>
struct Held<DIM, TILES, false> {
  threadgroup uint4* words;
  threadgroup ElementPair* rest;
};
template <int DIM, int TILES>
FA_FN void place_held(thread Held<DIM, TILES, true>&, threadgroup uint4*, Lane) {}
template <int DIM, int TILES>
FA_FN void place_held(thread Held<DIM, TILES, false>& held, threadgroup uint4* memory, Lane l) {
  held.words = memory + l.lane;
  held.rest = reinterpret_cast<threadgroup ElementPair*>(memory + TILES * Spread<DIM>::GROUPS * 32) + l.lane;
}
// `a`, `b`: the rows of columns 2 pair and 2 pair + 1.
template <int DIM, int TILES, bool VECTOR, class P>
FA_FN void hold(thread Held<DIM, TILES, true>& held, int tile, Reader<DIM, VECTOR> r, P a, P b, Lane l) {
  FA_UNROLL for (int f = 0; f < Spread<DIM>::FRAGMENTS; f++) {
    const int d = element_of<DIM>(f, l.row);
    held.x[tile][f] = pair_of(read_element(r, a, d), read_element(r, b, d));
  }
}
template <int DIM, int TILES, bool VECTOR, class P>
FA_FN void hold(thread Held<DIM, TILES, false>& held, int tile, Reader<DIM, VECTOR> r, P a, P b, Lane l) {
  typedef Spread<DIM> S;
  for (int g = 0; g < S::GROUPS; g++) {
    ElementPair x[S::GROUP];
    FA_UNROLL for (int t = 0; t < S::GROUP; t++) {
      const int d = element_of<DIM>(g * S::GROUP + t, l.row);
      x[t] = pair_of(read_element(r, a, d), read_element(r, b, d));
    }
    held.words[(tile * S::GROUPS + g) * 32] = pack(x);
  }
  FA_UNROLL for (int t = 0; t < S::REST; t++) {
    const int d = element_of<DIM>(S::REST_AT + t, l.row);
    held.rest[(tile * S::REST + t) * 32] = pair_of(read_element(r, a, d), read_element(r, b, d));
  }
}
template <int DIM, int TILES>
FA_FN void held_group(const thread Held<DIM, TILES, true>& held, int tile, int group, thread ElementPair* to) {
  FA_UNROLL for (int t = 0; t < Spread<DIM>::GROUP; t++) { to[t] = held.x[tile][group * Spread<DIM>::GROUP + t]; }
}
template <int DIM, int TILES>
FA_FN void held_group(const thread Held<DIM, TILES, false>& held, int tile, int group, thread ElementPair* to) {
  unpack(held.words[(tile * Spread<DIM>::GROUPS + group) * 32], to);
}
template <int DIM, int TILES>
FA_FN ElementPair held_rest(const thread Held<DIM, TILES, true>& held, int tile, int t) {
  return held.x[tile][Spread<DIM>::REST_AT + t];
}
template <int DIM, int TILES>
FA_FN ElementPair held_rest(const thread Held<DIM, TILES, false>& held, int tile, int t) {
  return held.rest[(tile * Spread<DIM>::REST + t) * 32];
}
// Keeps loads of it inside the loop over tiles: the compiler would move them in front of it, into registers.
template <int DIM, int TILES>
FA_FN void reload(const thread Held<DIM, TILES, true>&) {}
template <int DIM, int TILES>
FA_FN void reload(const thread Held<DIM, TILES, false>&) {
  metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
}

// The lane's part of a row of results.
template <int DIM, bool VECTOR, class T>
FA_FN void store_row(device T* row, int dim, const thread float2* sum, float factor, Lane l) {
  typedef Spread<DIM> S;
  if constexpr (VECTOR && sizeof(T) == sizeof(Element)) {
    FA_UNROLL for (int g = 0; g < S::GROUPS; g++) {
      ElementPair x[S::GROUP];
      FA_UNROLL for (int t = 0; t < S::GROUP; t++) {
        const float2 v = sum[g * S::GROUP + t] * factor;
        x[t] = pair_of(v);
      }
      *reinterpret_cast<device uint4*>(row + 8 * S::GROUP * g + 2 * S::GROUP * int(l.pair)) = pack(x);
    }
    FA_UNROLL for (int t = 0; t < S::REST; t++) {
      const float2 v = sum[S::REST_AT + t] * factor;
      *reinterpret_cast<device ElementPair*>(row + 8 * (S::REST_AT + t) + 2 * int(l.pair)) = pair_of(v);
    }
  } else {
    FA_UNROLL for (int f = 0; f < S::FRAGMENTS; f++) {
      const int d = element_of<DIM>(f, 2 * int(l.pair));
      const float2 v = sum[f] * factor;
      if (d < dim) {
        row[d] = T(v.x);
      }
      if (d + 1 < dim) {
        row[d + 1] = T(v.y);
      }
    }
  }
}
// Zeros in a row that belongs to nobody.
template <class T>
FA_FN void clear_row(device T* row, int dim, ushort lane) {
  for (int d = lane; d < dim; d += 32) {
    row[d] = T(0.0f);
  }
}
// Whether an array begins at a multiple of 16 bytes. Metal turns device pointers into numbers (since 2.3: compilers that write Metal text
// rely on it); of constant ones nothing is known, but what lies there has fewer than 8 elements.
template <class T>
FA_FN bool at_word(const device T* array) {
  return (reinterpret_cast<ulong>(array) & 15ul) == 0;
}
template <class T>
FA_FN bool at_word(const constant T*) {
  return false;
}
// Whether words of 16 bytes may be read at every row of an array.
template <class P>
FA_FN bool has_words(P array, RowStrides s) {
  const int step = 16 / int(sizeof(Element));
  return s.step == 1 && s.rows.batch % step == 0 && s.rows.row % step == 0 && s.rows.head % step == 0 && at_word(array);
}
template <class P>
FA_FN bool has_words(P array, const FA_PARAMS_SPACE Strides& s) {
  return has_words(array, RowStrides{copy_strides(s), 1});
}
}  // namespace fa
