// Tiles of scores of a simdgroup: one side is held for the whole loop (columns, HELD_TILES * 8 of them), the other streams by (rows,
// STREAM_TILES * 8). Keys stream in forward, decode and dQ; queries do in dK and dV. A tile is thus transposed with respect to the product
// that it feeds, for which it becomes the left factor, while what streams, read once as it lies, is left factor here and right factor
// there.
#pragma once
#include "score.metal"
namespace fa {
constant constexpr const int HELD_TILES = FA_HELD_TILES, STREAM_TILES = FA_STREAM_TILES;
constant constexpr const bool KEYS_STREAM = FA_KEYS_STREAM != 0;

struct Tile {
  float2 x[STREAM_TILES][HELD_TILES];
};
struct Factors {
  ElementPair x[STREAM_TILES][HELD_TILES];  // left factors: rows are what is held
  bool seen[STREAM_TILES];                  // with a bias: whether the row of this lane is seen by anything that is held
};
// Where the rows that stream by begin for this lane, as lane_row() says.
template <class P>
struct StreamRows {
  P at[STREAM_TILES];
};
// The columns: their rows or keys, slopes, and dropout's decisions on the rows.
struct Columns {
  int2 at[HELD_TILES];
  float2 slope[HELD_TILES];
  uint2 kept[HELD_TILES];
};
FA_FN Columns columns_of(int first, float slope, Lane l) {
  Columns c;
  FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
    c.at[r] = int2(first + 8 * r + 2 * int(l.pair), first + 8 * r + 2 * int(l.pair) + 1);
    c.slope[r] = float2(slope);
    c.kept[r] = uint2(0u);
  }
  return c;
}
// Results that add up: rows are what is held.
template <int DIM>
struct Sums {
  float2 x[HELD_TILES][DIM / 8];
};
template <int DIM>
FA_FN Sums<DIM> zero_sums() {
  Sums<DIM> sums;
  FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
    FA_UNROLL for (int f = 0; f < DIM / 8; f++) { sums.x[r][f] = float2(0.0f); }
  }
  return sums;
}
// What streamed by, kept as the right factor of a second product.
template <int DIM, bool KEEP>
struct Fragments {
  ElementPair x[KEEP ? STREAM_TILES : 1][KEEP ? Spread<DIM>::FRAGMENTS : 1];
};

// The products of the rows and the columns.
template <int DIM, bool VECTOR, bool IN_REGISTERS, bool KEEP, class P>
FA_FN void multiply(thread Tile& tile, const thread Held<DIM, HELD_TILES, IN_REGISTERS>& held, Reader<DIM, VECTOR> reader,
                    const thread StreamRows<P>& rows, thread Fragments<DIM, KEEP>& fragments) {
  typedef Spread<DIM> S;
  FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) { tile.x[k][r] = float2(0.0f); }
  }
  reload(held);
  FA_UNROLL for (int g = 0; g < S::GROUPS; g++) {
    if (g > 0) {
      keep_order();
    }
    ElementPair a[STREAM_TILES][S::GROUP], b[HELD_TILES][S::GROUP];
    FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
      read_group(reader, rows.at[k], g, a[k]);
      if constexpr (KEEP) {
        FA_UNROLL for (int t = 0; t < S::GROUP; t++) { fragments.x[k][g * S::GROUP + t] = a[k][t]; }
      }
    }
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) { held_group(held, r, g, b[r]); }
    FA_UNROLL for (int t = 0; t < S::GROUP; t++) {
      FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
        FA_UNROLL for (int r = 0; r < HELD_TILES; r++) { tile.x[k][r] = multiply_add(tile.x[k][r], a[k][t], b[r][t]); }
      }
    }
  }
  FA_UNROLL for (int t = 0; t < S::REST; t++) {
    FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
      const ElementPair a = read_rest(reader, rows.at[k], t);
      if constexpr (KEEP) {
        fragments.x[k][S::REST_AT + t] = a;
      }
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++) { tile.x[k][r] = multiply_add(tile.x[k][r], a, held_rest(held, r, t)); }
    }
  }
}
FA_FN Interval<int> seen_from(Mask mask, int n) {
  if constexpr (KEYS_STREAM) {
    return visible_keys(mask, n);
  }
  return visible_rows(mask, n);
}
template <int N>
FA_FN void add_product(thread Sums<N>& sums, int f, const thread Factors& factors, int k, ElementPair x) {
  if constexpr ((F & BIAS) != 0) {
    x = factors.seen[k] ? x : pair_of(float2(0.0f));
  }
  FA_UNROLL for (int r = 0; r < HELD_TILES; r++) { sums.x[r][f] = multiply_add(sums.x[r][f], factors.x[k][r], x); }
}
// sums += factors * rows, the rows read from memory
template <int DIM, bool VECTOR, class P>
FA_FN void add_products(thread Sums<DIM>& sums, const thread Factors& factors, Reader<DIM, VECTOR> reader,
                        const thread StreamRows<P>& rows) {
  typedef Spread<DIM> S;
  FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
    keep_order();
    FA_UNROLL for (int g = 0; g < S::GROUPS; g++) {
      ElementPair x[S::GROUP];
      read_group(reader, rows.at[k], g, x);
      FA_UNROLL for (int t = 0; t < S::GROUP; t++) { add_product(sums, g * S::GROUP + t, factors, k, x[t]); }
    }
    FA_UNROLL for (int t = 0; t < S::REST; t++) { add_product(sums, S::REST_AT + t, factors, k, read_rest(reader, rows.at[k], t)); }
  }
}
// the same, with the rows still in registers: where KEEP, and N == DIM (other variants have no such call, but must parse it)
template <int N, int DIM, bool KEEP>
FA_FN void add_products(thread Sums<N>& sums, const thread Factors& factors, const thread Fragments<DIM, KEEP>& fragments) {
  FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
    FA_UNROLL for (int f = 0; f < DIM / 8; f++) { add_product(sums, f, factors, k, fragments.x[k][f]); }
  }
}

// Products become scores; what a bias or, in an `edge` tile, the mask hides becomes hidden(). m0: the first row of the tile.
template <class Bias>
FA_FN void score_tile(thread Tile& tile, Elements<Bias> e, const thread Columns& columns, int m0, bool edge, Lane l) {
  if constexpr ((F & CHANGES_SCORE) != 0) {
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
        const int m = m0 + 8 * k + int(l.row);
        const int2 n = columns.at[r];
        const float2 x = tile.x[k][r];
        tile.x[k][r].x =
            KEYS_STREAM ? element_score(e, x.x, columns.slope[r].x, n.x, m) : element_score(e, x.x, columns.slope[r].x, m, n.x);
        tile.x[k][r].y =
            KEYS_STREAM ? element_score(e, x.y, columns.slope[r].y, n.y, m) : element_score(e, x.y, columns.slope[r].y, m, n.y);
      }
    }
  }
  if (edge) {
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      const Interval<int> a = seen_from(e.mask, columns.at[r].x), b = seen_from(e.mask, columns.at[r].y);
      FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
        const int m = m0 + 8 * k + int(l.row);
        tile.x[k][r].x = within(a, m) ? tile.x[k][r].x : hidden();
        tile.x[k][r].y = within(b, m) ? tile.x[k][r].y : hidden();
      }
    }
  }
}
// Says of each row whether some column sees it: others may hold a NaN, times which even zero is one. (Rows that a mask hides from all
// columns are not read at all.)
FA_FN void find_seen(thread Factors& factors, const thread Tile& tile) {
  if constexpr ((F & BIAS) != 0) {
    FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
      bool any = false;
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++) { any = any || tile.x[k][r].x != hidden() || tile.x[k][r].y != hidden(); }
      factors.seen[k] = any_in_row(any);
    }
  }
}
// Dropout's decisions for the next rows: a word of them says what becomes of 32 keys or 16 rows.
template <class Bias>
FA_FN void decide(thread Columns& columns, Elements<Bias> e, int m0, Lane l) {
  if constexpr ((F & DROPOUT) != 0) {
    if (((m0 + (KEYS_STREAM ? e.k_offset : e.q_offset)) & (KEYS_STREAM ? 31 : 15)) == 0) {
      const int m = m0 + int(l.row);
      FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
        const int2 n = columns.at[r];
        columns.kept[r].x = KEYS_STREAM ? kept_bits(e, n.x, m) : kept_bits(e, m, n.x);
        columns.kept[r].y = KEYS_STREAM ? kept_bits(e, n.y, m) : kept_bits(e, m, n.y);
      }
    }
  }
}
struct Both {
  bool x, y;  // of a pair
};
template <class Bias>
FA_FN Both is_kept(Elements<Bias> e, const thread Columns& columns, int r, int m) {
  const int2 n = columns.at[r];
  const uint2 bits = columns.kept[r];
  Both kept;
  kept.x = KEYS_STREAM ? is_kept(e, bits.x, n.x, m) : is_kept(e, bits.x, m, n.x);
  kept.y = KEYS_STREAM ? is_kept(e, bits.y, n.y, m) : is_kept(e, bits.y, m, n.y);
  return kept;
}
// Where the loop over tiles begins, so that tiles and dropout's words end together.
template <class Bias>
FA_FN int first_tile(Elements<Bias> e, int first) {
  if constexpr ((F & DROPOUT) != 0) {
    return first - ((first + (KEYS_STREAM ? e.k_offset : e.q_offset)) & (KEYS_STREAM ? 31 : 15));
  }
  return first;
}
}  // namespace fa
