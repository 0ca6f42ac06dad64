// Attention forward by the tensor operations of Metal 4, for GPUs that have units for them (M5): what forward.metal computes, for float16
// and bfloat16 and head dims up to 128.
// Tile     16 rows a simdgroup, 32 keys: one product of words/matmul.metal.
// Who      each simdgroup has rows of its own and reads K and V through the cache, 16 bytes a lane. No barrier between simdgroups.
// Memory   registers only: Q, scores, Out, maximum and sum of each row; 144 of them at head dim 128.
// Speed    scores become the left factor of the second product where they are: no shuffle but for a row's maximum and sum. Never measured.
// Features enter through semantics/ only.
#pragma once
#include "words/matmul.metal"
#include "words/score.metal"
namespace fa {
constant constexpr const int ROWS = 16, KEYS = 32;
constant constexpr const int DIM_SPANS = Spans<FA_DIM>::COUNT, VALUE_SPANS = Spans<FA_VALUE_DIM>::COUNT;
constant constexpr const float SLACK = 8.0f;  // powers of 2 by which a score may pass the maximum before everything is scaled anew

struct Running {
  Sum out[VALUE_SPANS];
  float2 top, sum;  // of rows Lane.row and Lane.row + 8; each lane sums its own keys
};
struct Queries {
  Chunk at[2][DIM_SPANS];  // of rows Lane.row and Lane.row + 8
};
FA_FN int key_of(int j0, int fragment, int i, Lane l) { return j0 + 16 * fragment + 4 * int(l.pair) + i; }

// Scores of 32 keys, whose rows begin at `at`.
template <bool VECTOR, class P>
FA_FN Sum scores_of(const thread Queries& queries, const thread P* at, Int64 step, int dim, Lane l) {
  Sum scores = zero_sum();
  FA_UNROLL for (int g = 0; g < DIM_SPANS; g++) {
    keep_order();
    Chunk x[4];
    FA_UNROLL for (int n = 0; n < 4; n++) { x[n] = read_chunk<FA_DIM, VECTOR>(at[n], step, dim, g, l); }
    FA_UNROLL for (int t = 0; t < 2; t++) {
      add_product<true>(scores, fragment_of(queries.at[0][g], queries.at[1][g], t), fragment_of(x[0], x[1], t), fragment_of(x[2], x[3], t));
    }
  }
  return scores;
}
// Products become scores; what a bias or, in an `edge` tile, the mask hides becomes hidden().
template <class Bias>
FA_FN void score_keys(thread Sum& scores, Elements<Bias> e, int row, int j0, bool edge, Lane l) {
  FA_UNROLL for (int h = 0; h < 2; h++) {
    if constexpr ((F & CHANGES_SCORE) != 0) {
      FA_UNROLL for (int n = 0; n < 8; n++) {
        const float dot = scores.at[n / 4][h][n % 4];
        scores.at[n / 4][h][n % 4] = element_score(e, dot, e.slope, row + 8 * h, key_of(j0, n / 4, n % 4, l));
      }
    }
    if (edge) {
      const Interval<int> keys = visible_keys(e.mask, row + 8 * h);
      FA_UNROLL for (int n = 0; n < 8; n++) {
        const bool seen = within(keys, key_of(j0, n / 4, n % 4, l));
        scores.at[n / 4][h][n % 4] = seen ? scores.at[n / 4][h][n % 4] : hidden();
      }
    }
  }
}
FA_FN float highest(float4 x) { return metal::max(metal::max(x.x, x.y), metal::max(x.z, x.w)); }
// Raises the maxima where a score passes them by so much that powers of 2 would grow too large: rare behind the first tiles.
FA_FN void raise(thread Running& state, const thread Sum& scores, float unit) {
  float2 top;
  top.x = highest(metal::max(scores.at[0][0], scores.at[1][0]));
  top.y = highest(metal::max(scores.at[0][1], scores.at[1][1]));
  top *= unit;
  if (metal::simd_any(top.x > state.top.x + SLACK || top.y > state.top.y + SLACK)) {
    const float2 now = metal::max(state.top, row_max(top));
    const float2 factor = float2(rescale(state.top.x, now.x), rescale(state.top.y, now.y));
    state.top = now;
    state.sum *= factor;
    FA_UNROLL for (int g = 0; g < VALUE_SPANS; g++) {
      FA_UNROLL for (int t = 0; t < 2; t++) {
        state.out[g].at[t][0] *= factor.x;
        state.out[g].at[t][1] *= factor.y;
      }
    }
  }
}
// Of 32 keys, one bit each: whether some row sees it. Others may hold a NaN, times which even zero is one. (Keys that a mask hides from all
// rows are not read at all.)
FA_FN uint seen_keys(const thread Sum& scores, Lane l) {
  if constexpr ((F & BIAS) == 0) {
    return ~0u;
  }
  uint seen = 0;
  FA_UNROLL for (int n = 0; n < 8; n++) {
    const bool some = scores.at[n / 4][0][n % 4] != hidden() || scores.at[n / 4][1][n % 4] != hidden();
    seen |= some ? 1u << uint(key_of(0, n / 4, n % 4, l)) : 0u;
  }
  return metal::simd_or(seen);
}
// Scores become weights, whose sums `state` keeps.
template <class Bias>
FA_FN void weigh(thread Fragment* weights, const thread Sum& scores, thread Running& state, Elements<Bias> e, int row, int j0, Lane l) {
  raise(state, scores, e.unit);
  FA_UNROLL for (int i = 0; i < 4; i++) {
    uint2 kept = uint2(0u);
    if constexpr ((F & DROPOUT) != 0) {
      const int key = key_of(j0, 0, i, l);
      kept.x = kept_bits(e, row, key);
      kept.y = (uint(row + e.q_offset) & 8u) == 0u ? kept.x : kept_bits(e, row + 8, key);
    }
    FA_UNROLL for (int t = 0; t < 2; t++) {
      const int key = key_of(j0, t, i, l);
      float2 w = float2(probability(scores.at[t][0][i], e.unit, state.top.x), probability(scores.at[t][1][i], e.unit, state.top.y));
      state.sum += w;
      if constexpr ((F & DROPOUT) != 0) {
        w.x = is_kept(e, kept.x, row, key) ? w.x : 0.0f;
        w.y = is_kept(e, kept.y, row + 8, key) ? w.y : 0.0f;
      }
      weights[t].at[0][i] = Element(w.x);
      weights[t].at[1][i] = Element(w.y);
    }
  }
}
// Out += weights * V, the rows of V beginning at `at`.
template <bool VECTOR, class P>
FA_FN void add_values(thread Running& state, const thread Fragment* weights, uint seen, const thread P* at, Int64 step, int dim, Lane l) {
  FA_UNROLL for (int t = 0; t < 2; t++) {
    FA_UNROLL for (int g = 0; g < VALUE_SPANS; g++) {
      keep_order();
      Chunk x[2];
      FA_UNROLL for (int h = 0; h < 2; h++) {
        x[h] = read_chunk<FA_VALUE_DIM, VECTOR>(at[2 * t + h], step, dim, g, l);
        if constexpr ((F & BIAS) != 0) {
          if ((seen >> uint(16 * t + 8 * h + int(l.row)) & 1u) == 0u) {
            x[h] = zero_chunk();
          }
        }
      }
      add_product<false>(state.out[g], weights[t], fragment_of(x[0], x[1], 0), fragment_of(x[0], x[1], 1));
    }
  }
}

template <bool VECTOR, class Q, class K, class V, class T, class Lse, class SeedArray, class Slopes, class Bias, class Sink, class P>
FA_FN void forward_rows(Place place, ParamsPointer p, Q q, RowStrides qs, K k, RowStrides ks, V v, RowStrides vs, device T* out, Lse lse,
                        SeedArray seed, Slopes slopes, Bias bias, Sink sink, P places) {
  const Lane l = lane_of(place.lane);
  const Sequence s = sequence_of(p, places, int(place.group.z));
  const Head h = head_of(p, s, int(place.group.y), slopes);
  const Elements<Bias> e = elements_of(p, s, h, bias, seed);
  const Strides outs = copy_strides(p->out);
  const int block = ROWS * FA_SIMDGROUPS;
  // the last blocks first: where the mask is causal they are the longest
  const int i0 = int(place.groups.x - 1 - place.group.x) * block + int(place.simdgroup) * ROWS;
  if (i0 < s.mask.rows) {
    const int row = i0 + int(l.row), last = min(i0 + ROWS, s.mask.rows) - 1;
    Queries queries;
    FA_UNROLL for (int n = 0; n < 2; n++) {
      const Q at = q + row_offset(qs.rows, s, min(row + 8 * n, last), h.head);
      FA_UNROLL for (int g = 0; g < DIM_SPANS; g++) { queries.at[n][g] = read_chunk<FA_DIM, VECTOR>(at, qs.step, p->dim, g, l); }
    }
    Running state;
    state.top = float2(no_maximum());
    state.sum = float2(0.0f);
    FA_UNROLL for (int g = 0; g < VALUE_SPANS; g++) { state.out[g] = zero_sum(); }
    const Interval<int> some = any_visible(s.mask, i0, last), all = all_visible(s.mask, i0, last);
    // tiles and dropout's words end together
    const int first = (F & DROPOUT) != 0 ? some.first - ((some.first + e.k_offset) & (KEYS - 1)) : some.first;
    for (int j0 = first; j0 < some.end && some.first < some.end; j0 += KEYS) {
      K k_rows[4];
      V v_rows[4];
      FA_UNROLL for (int n = 0; n < 4; n++) {
        const int j = min(max(j0 + 8 * n + int(l.row), some.first), some.end - 1);
        k_rows[n] = k + key_offset(ks.rows, s, p->page_size, places.pages, j, h.kv_head);
        v_rows[n] = v + key_offset(vs.rows, s, p->page_size, places.pages, j, h.kv_head);
      }
      Sum scores = scores_of<VECTOR>(queries, k_rows, ks.step, p->dim, l);
      score_keys(scores, e, row, j0, j0 < all.first || j0 + KEYS > all.end, l);
      Fragment weights[2];
      weigh(weights, scores, state, e, row, j0, l);
      add_values<VECTOR>(state, weights, seen_keys(scores, l), v_rows, vs.step, p->value_dim, l);
    }
    const float2 sums = row_sum(state.sum);
    FA_UNROLL for (int n = 0; n < 2; n++) {
      const float top = n == 0 ? state.top.x : state.top.y;
      Softmax<float> a = Softmax<float>{top, n == 0 ? sums.x : sums.y};
      if constexpr ((F & SINK) != 0) {
        a = add_sink(a, float_at(sink, h.head));
      }
      float factor = rescale(top, a.max) * inverse_sum(a);
      if constexpr ((F & DROPOUT) != 0) {
        factor *= p->keep_scale;
      }
      if (row + 8 * n <= last) {
        device T* to = out + row_offset(outs, s, row + 8 * n, h.head);
        FA_UNROLL for (int g = 0; g < VALUE_SPANS; g++) {
          store_chunk<FA_VALUE_DIM, VECTOR>(to, p->value_dim, g, state.out[g].at[0][n] * factor, state.out[g].at[1][n] * factor, l);
        }
        if (l.pair == 0) {
          lse[h.lse + row + 8 * n] = log_sum_exp(a);
        }
      }
    }
  }
  for (int first = i0; first < s.row_slots; first += int(place.groups.x) * block) {
    for (int i = max(first, s.mask.rows); i < min(first + ROWS, s.row_slots); i++) {
      clear_row(out + row_offset(outs, s, i, h.head), p->value_dim, place.lane);
      if (place.lane == 0) {
        lse[h.lse + i] = minus_infinity();
      }
    }
  }
}

template <class Q, class K, class V, class T, class Lse, class SeedArray, class Slopes, class Bias, class Sink, class P, class SQ, class SK,
          class SV>
FA_FN void forward(Place place, ParamsPointer p, Q q, K k, V v, device T* out, Lse lse, SeedArray seed, Slopes slopes, Bias bias, Sink sink,
                   P places, SQ sq, SK sk, SV sv) {
  const RowStrides qs = row_strides(p->q, sq, IS_PACKED), ks = row_strides(p->k, sk, IS_PACKED && !IS_PAGED);
  const RowStrides vs = row_strides(p->v, sv, IS_PACKED && !IS_PAGED);
  if (FA_VECTOR == 1 || (FA_VECTOR == 2 && has_words(q, qs) && has_words(k, ks) && has_words(v, vs))) {
    if constexpr (FA_VECTOR != 0) {
      forward_rows<true>(place, p, q, qs, k, ks, v, vs, out, lse, seed, slopes, bias, sink, places);
    }
  } else {
    if constexpr (FA_VECTOR != 1) {
      forward_rows<false>(place, p, q, qs, k, ks, v, vs, out, lse, seed, slopes, bias, sink, places);
    }
  }
}
}  // namespace fa
#define FA_ENTRY_forward_tensor(lane, simdgroup, group, groups)                                                                      \
  fa::forward(fa::place_of(lane, simdgroup, group, groups), fa::params_of(params), FA_ARRAY_Q, FA_ARRAY_K, FA_ARRAY_V, FA_ARRAY_OUT, \
              FA_ARRAY_LSE, FA_ARRAY_SEED, FA_ARRAY_SLOPES, FA_ARRAY_BIAS, FA_ARRAY_SINK, FA_PLACES, FA_STRIDES_Q, FA_STRIDES_K,     \
              FA_STRIDES_V)
