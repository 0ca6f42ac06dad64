// Forward over the keys that stream by: one simdgroup, ROW_TILES * 8 query rows. Scores are made transposed (rows are keys, columns are
// queries), so that K is read as it lies, as the left factor; P is transposed back by shuffles to be the left factor of P V.
#pragma once
#include "score.metal"
namespace fa {
constant constexpr const int ROW_TILES = FA_ROW_TILES, KEY_TILES = FA_KEY_TILES;  // matrices of 8 rows, 8 keys
constant constexpr const int PART = FA_PART;  // columns of the result that this launch's simdgroups take
constant constexpr const float SLACK = 8.0f;  // powers of 2 by which a score may pass the maximum before everything is scaled anew

struct Running {
  float2 out[ROW_TILES][PART / 8];
  float2 top[ROW_TILES], sum[ROW_TILES];
};
// The queries of the columns, their slopes, and dropout's decisions on 32 keys.
struct Queries {
  int2 row[ROW_TILES];
  float2 slope[ROW_TILES];
  uint2 kept[ROW_TILES];
};
struct Scores {
  float2 x[KEY_TILES][ROW_TILES];
};
struct Weights {
  ElementPair x[KEY_TILES][ROW_TILES];  // left factors: rows are queries
  bool seen[KEY_TILES];                 // with a bias: whether some row sees the key of this lane's row
};
template <class P>
struct KeyRows {
  P at[KEY_TILES];
};
FA_FN void start(thread Running& state) {
  FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
    state.top[r] = float2(no_maximum());
    state.sum[r] = float2(0.0f);
    FA_UNROLL for (int f = 0; f < PART / 8; f++) { state.out[r][f] = float2(0.0f); }
  }
}

// Scores of keys j0... ; `edge`: some row does not see some key.
template <bool VECTOR, bool IN_REGISTERS, class K, class Bias>
FA_FN void scores(thread Scores& x, const thread Held<FA_DIM, ROW_TILES, IN_REGISTERS>& held, Reader<FA_DIM, VECTOR> reader,
                  const thread KeyRows<K>& rows, Elements<Bias> e, const thread Queries& queries, int j0, bool edge, Lane l) {
  typedef Spread<FA_DIM> S;
  FA_UNROLL for (int k = 0; k < KEY_TILES; k++) {
    FA_UNROLL for (int r = 0; r < ROW_TILES; r++) { x.x[k][r] = float2(0.0f); }
  }
  reload(held);
  FA_UNROLL for (int g = 0; g < S::GROUPS; g++) {
    if (g > 0) {
      keep_order();
    }
    ElementPair a[KEY_TILES][S::GROUP], b[ROW_TILES][S::GROUP];
    FA_UNROLL for (int k = 0; k < KEY_TILES; k++) { read_group(reader, rows.at[k], g, a[k]); }
    FA_UNROLL for (int r = 0; r < ROW_TILES; r++) { held_group(held, r, g, b[r]); }
    FA_UNROLL for (int t = 0; t < S::GROUP; t++) {
      FA_UNROLL for (int k = 0; k < KEY_TILES; k++) {
        FA_UNROLL for (int r = 0; r < ROW_TILES; r++) { x.x[k][r] = multiply_add(x.x[k][r], a[k][t], b[r][t]); }
      }
    }
  }
  FA_UNROLL for (int t = 0; t < S::REST; t++) {
    FA_UNROLL for (int k = 0; k < KEY_TILES; k++) {
      const ElementPair a = read_rest(reader, rows.at[k], t);
      FA_UNROLL for (int r = 0; r < ROW_TILES; r++) { x.x[k][r] = multiply_add(x.x[k][r], a, held_rest(held, r, t)); }
    }
  }
  if constexpr ((F & CHANGES_SCORE) != 0) {
    FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
      FA_UNROLL for (int k = 0; k < KEY_TILES; k++) {
        const int j = j0 + 8 * k + int(l.row);
        x.x[k][r].x = element_score(e, x.x[k][r].x, queries.slope[r].x, queries.row[r].x, j);
        x.x[k][r].y = element_score(e, x.x[k][r].y, queries.slope[r].y, queries.row[r].y, j);
      }
    }
  }
  if (edge) {
    FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
      const Interval<int> a = visible_keys(e.mask, queries.row[r].x), b = visible_keys(e.mask, queries.row[r].y);
      FA_UNROLL for (int k = 0; k < KEY_TILES; k++) {
        const int j = j0 + 8 * k + int(l.row);
        x.x[k][r] = float2(hide_unless(within(a, j), x.x[k][r].x), hide_unless(within(b, j), x.x[k][r].y));
      }
    }
  }
}
template <class Bias>
FA_FN void decide(thread Queries& queries, Elements<Bias> e, int j0, Lane l) {
  if constexpr ((F & DROPOUT) != 0) {
    if (((j0 + e.k_offset) & 31) == 0) {
      FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
        const int j = j0 + int(l.row);
        queries.kept[r] = uint2(kept_bits(e, queries.row[r].x, j), kept_bits(e, queries.row[r].y, j));
      }
    }
  }
}
// Scores become weights, of which `state` keeps the sums, as the left factor of P V.
template <class Bias>
FA_FN void weigh(thread Scores& x, thread Weights& weights, thread Running& state, Elements<Bias> e, const thread Queries& queries, int j0,
                 Lane l) {
  float2 top[ROW_TILES];
  bool rises = false;
  FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
    top[r] = x.x[0][r];
    FA_UNROLL for (int k = 1; k < KEY_TILES; k++) { top[r] = metal::max(top[r], x.x[k][r]); }
    top[r] *= e.unit;
    rises = rises || top[r].x > state.top[r].x + SLACK || top[r].y > state.top[r].y + SLACK;
  }
  if (metal::simd_any(rises)) {  // rare behind the first tiles
    FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
      const float2 now = metal::max(state.top[r], column_max(top[r]));
      const float2 factor = float2(rescale(state.top[r].x, now.x), rescale(state.top[r].y, now.y));
      state.top[r] = now;
      state.sum[r] *= factor;
      const float row_factor = to_rows(factor, l);
      FA_UNROLL for (int f = 0; f < PART / 8; f++) { state.out[r][f] *= row_factor; }
    }
  }
  if constexpr ((F & BIAS) != 0) {
    FA_UNROLL for (int k = 0; k < KEY_TILES; k++) {
      bool any = false;
      FA_UNROLL for (int r = 0; r < ROW_TILES; r++) { any = any || x.x[k][r].x != hidden() || x.x[k][r].y != hidden(); }
      weights.seen[k] = any_in_row(any);
    }
  }
  FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
    FA_UNROLL for (int k = 0; k < KEY_TILES; k++) {
      float2 w = float2(probability(x.x[k][r].x, e.unit, state.top[r].x), probability(x.x[k][r].y, e.unit, state.top[r].y));
      state.sum[r] += w;
      if constexpr ((F & DROPOUT) != 0) {
        const int j = j0 + 8 * k + int(l.row);
        w.x = is_kept(e, queries.kept[r].x, queries.row[r].x, j) ? w.x : 0.0f;
        w.y = is_kept(e, queries.kept[r].y, queries.row[r].y, j) ? w.y : 0.0f;
      }
      weights.x[k][r] = transpose(pair_of(w), l);
    }
  }
}
template <bool VECTOR, class V>
FA_FN void add_values(thread Running& state, const thread Weights& weights, Reader<PART, VECTOR> reader, const thread KeyRows<V>& rows) {
  typedef Spread<PART> S;
  const ElementPair zero = pair_of(float2(0.0f));
  FA_UNROLL for (int k = 0; k < KEY_TILES; k++) {
    keep_order();
    FA_UNROLL for (int g = 0; g < S::GROUPS; g++) {
      ElementPair v[S::GROUP];
      read_group(reader, rows.at[k], g, v);
      FA_UNROLL for (int t = 0; t < S::GROUP; t++) {
        if constexpr ((F & BIAS) != 0) {
          v[t] = weights.seen[k] ? v[t] : zero;
        }
        FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
          state.out[r][g * S::GROUP + t] = multiply_add(state.out[r][g * S::GROUP + t], weights.x[k][r], v[t]);
        }
      }
    }
    FA_UNROLL for (int t = 0; t < S::REST; t++) {
      ElementPair v = read_rest(reader, rows.at[k], t);
      if constexpr ((F & BIAS) != 0) {
        v = weights.seen[k] ? v : zero;
      }
      FA_UNROLL for (int r = 0; r < ROW_TILES; r++) {
        state.out[r][S::REST_AT + t] = multiply_add(state.out[r][S::REST_AT + t], weights.x[k][r], v);
      }
    }
  }
}

// One tile of keys: all stations up to weigh, and the sum. `seers`: keys that some row of the simdgroup sees; no other is read.
template <bool VECTOR, bool IN_REGISTERS, class K, class V, class Bias, class Pages>
FA_FN void forward_tile(thread Running& state, const thread Held<FA_DIM, ROW_TILES, IN_REGISTERS>& held, thread Queries& queries,
                        Elements<Bias> e, Sequence s, K k, RowStrides ks, V v, RowStrides vs, int part, ParamsPointer p, Pages pages,
                        int kv_head, Interval<int> seen_by_some, int j0, bool edge, Lane l) {
  const Reader<FA_DIM, VECTOR> k_reader = Reader<FA_DIM, VECTOR>{ks.step, p->dim, l.pair};
  const Reader<PART, VECTOR> v_reader = Reader<PART, VECTOR>{vs.step, p->value_dim - part, l.pair};
  KeyRows<K> k_rows;
  KeyRows<V> v_rows;
  FA_UNROLL for (int t = 0; t < KEY_TILES; t++) {
    const int j = min(max(j0 + 8 * t + int(l.row), seen_by_some.first), seen_by_some.end - 1);
    k_rows.at[t] = lane_row(k_reader, k + key_offset(ks.rows, s, p->page_size, pages, j, kv_head));
    v_rows.at[t] = lane_row(v_reader, v + (key_offset(vs.rows, s, p->page_size, pages, j, kv_head) + part * vs.step));
  }
  Scores x;
  Weights weights;
  scores(x, held, k_reader, k_rows, e, queries, j0, edge, l);
  decide(queries, e, j0, l);
  weigh(x, weights, state, e, queries, j0, l);
  add_values(state, weights, v_reader, v_rows);
}
// The first key of the loop over tiles: dropout decides 32 keys at a time.
template <class Bias>
FA_FN int first_key(Elements<Bias> e, int first) {
  if constexpr ((F & DROPOUT) != 0) {
    return first - ((first + e.k_offset) & 31);
  }
  return first;
}
}  // namespace fa
