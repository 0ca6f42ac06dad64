// Forward over the keys that stream by: the stations range to weigh of one simdgroup. Shared by forward and decode.
#pragma once
#include "tile.metal"
namespace fa {
constant constexpr const int PART = FA_PART;  // columns of the result that this launch's simdgroups add up
constant constexpr const float SLACK = 8.0f;  // powers of 2 by which a score may pass the maximum before everything is scaled anew

struct Running {
  Sums<PART> out;
  float2 top[HELD_TILES], sum[HELD_TILES];
};
FA_FN Running start() {
  Running state;
  state.out = zero_sums<PART>();
  FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
    state.top[r] = float2(no_maximum());
    state.sum[r] = float2(0.0f);
  }
  return state;
}
// Raises the maxima where a score passes them by so much that powers of 2 would grow too large: rare behind the first tiles.
FA_FN void raise(thread Running& state, const thread Tile& tile, float unit, Lane l) {
  float2 top[HELD_TILES];
  bool rises = false;
  FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
    top[r] = tile.x[0][r];
    FA_UNROLL for (int k = 1; k < STREAM_TILES; k++) { top[r] = metal::max(top[r], tile.x[k][r]); }
    top[r] *= unit;
    rises = rises || top[r].x > state.top[r].x + SLACK || top[r].y > state.top[r].y + SLACK;
  }
  if (metal::simd_any(rises)) {
    FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
      const float2 now = metal::max(state.top[r], column_max(top[r]));
      const float2 factor = float2(rescale(state.top[r].x, now.x), rescale(state.top[r].y, now.y));
      state.top[r] = now;
      state.sum[r] *= factor;
      const float row_factor = to_rows(factor, l);
      FA_UNROLL for (int f = 0; f < PART / 8; f++) { state.out.x[r][f] *= row_factor; }
    }
  }
}
// Scores become weights, whose sums `state` keeps.
template <class Bias>
FA_FN void weigh(const thread Tile& tile, thread Factors& weights, thread Running& state, Elements<Bias> e, const thread Columns& queries,
                 int j0, Lane l) {
  raise(state, tile, e.unit, l);
  find_seen(weights, tile);
  FA_UNROLL for (int r = 0; r < HELD_TILES; r++) {
    FA_UNROLL for (int k = 0; k < STREAM_TILES; k++) {
      const float2 x = tile.x[k][r];
      float2 w = float2(probability(x.x, e.unit, state.top[r].x), probability(x.y, e.unit, state.top[r].y));
      state.sum[r] += w;
      if constexpr ((F & DROPOUT) != 0) {
        const Both kept = is_kept(e, queries, r, j0 + 8 * k + int(l.row));
        w.x = kept.x ? w.x : 0.0f;
        w.y = kept.y ? w.y : 0.0f;
      }
      weights.x[k][r] = transpose(pair_of(w), l);
    }
  }
}
// One tile of keys. `some`: those that some row of the simdgroup sees; no other is read.
template <bool VECTOR, bool IN_REGISTERS, class K, class V, class Bias, class Pages>
FA_FN void forward_tile(thread Running& state, const thread Held<FA_DIM, HELD_TILES, IN_REGISTERS>& held, thread Columns& queries,
                        Elements<Bias> e, Sequence s, K k, RowStrides ks, V v, RowStrides vs, int part, ParamsPointer p, Pages pages,
                        int kv_head, Interval<int> some, int j0, bool edge, Lane l) {
  const Reader<FA_DIM, VECTOR> k_reader = Reader<FA_DIM, VECTOR>{ks.step, p->dim, l.pair};
  const Reader<PART, VECTOR> v_reader = Reader<PART, VECTOR>{vs.step, p->value_dim - part, l.pair};
  StreamRows<K> k_rows;
  StreamRows<V> v_rows;
  FA_UNROLL for (int t = 0; t < STREAM_TILES; t++) {
    const int j = min(max(j0 + 8 * t + int(l.row), some.first), some.end - 1);
    k_rows.at[t] = lane_row(k_reader, k + key_offset(ks.rows, s, p->page_size, pages, j, kv_head));
    v_rows.at[t] = lane_row(v_reader, v + (key_offset(vs.rows, s, p->page_size, pages, j, kv_head) + part * vs.step));
  }
  Tile tile;
  Factors weights;
  Fragments<FA_DIM, false> none;
  multiply(tile, held, k_reader, k_rows, none);
  score_tile(tile, e, queries, j0, edge, l);
  decide(queries, e, j0, l);
  weigh(tile, weights, state, e, queries, j0, l);
  add_products(state.out, weights, v_reader, v_rows);
}
}  // namespace fa
