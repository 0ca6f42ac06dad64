// The two products of decode: a tile of 16 keys with a block of at most 6 rows of a kv head. Lanes hold elements of a head.
// Scores   one row in a vector, or two with half of the elements each: then two or three steps of shuffles, not three or four, add up
//          the lanes, and they stay in registers (16 lanes: 21 cycles a key instead of 32 for 4 rows of 64).
// Output   lanes are elements of O, so nothing is added up.
// Memory   fetch() brings later rows near, a few lines between products: the processor drops prefetches that come in bursts.
#pragma once
#include "cpu/kernels/words.h"

namespace fa::cpu {
namespace {

// Half `side` of the 2 W elements at p, as floats. Both halves together hold each element once; those of bf16 are the even and the odd
// elements, which takes half the instructions of widening in order. V and O follow it.
template <class S, class T>
FA_FN typename S::F half_of(const T* p, int side) {
  return S::widen(p + side * S::W);
}
template <class S>
FA_FN typename S::F half_of(const Bf16* p, int side) {
  const typename S::U words = load_any<typename S::U>(p);
  return as_float(side == 0 ? words << 16 : words & typename S::U(0xffff0000u));
}
// Which of the 2 W elements lane `lane` of half `side` holds; the pointer only names the type.
template <class S, class T>
FA_FN int element_of(const T*, int side, int lane) {
  return side * S::W + lane;
}
template <class S>
FA_FN int element_of(const Bf16*, int side, int lane) {
  return 2 * lane + side;
}
// The same of W elements, in both halves of the lanes.
template <class S, class T>
FA_FN typename S::F half_twice(const T* p, int side) {
  return S::twice(p, side);
}
template <class S>
FA_FN typename S::F half_twice(const Bf16* p, int side) {
  const typename S::U words = bits_of(S::twice(reinterpret_cast<const float*>(p), 0));
  return as_float(side == 0 ? words << 16 : words & typename S::U(0xffff0000u));
}

// Rows of K or V that are brought near in the order of memory, `lines` cache lines a call.
struct Ahead {
  const char *at, *end;  // of the present row
  Int64 gap, step;       // from its end to the next row, from row to row
  int rows, lines;
};
static void fetch_rows(Ahead& ahead) {
  const char* at = ahead.at;
  for (int i = 0; i < ahead.lines; i++) {
    __builtin_prefetch(at, 0, 2);
    at += 64;
    if (at >= ahead.end) {
      if (--ahead.rows <= 0) ahead.lines = 0;
      at = ahead.end + ahead.gap;
      ahead.end += ahead.step;
    }
  }
  ahead.at = at;
}
FA_FN void fetch(Ahead& ahead) {
  const char* const after = ahead.at + 64 * ahead.lines;
  if (after >= ahead.end) return fetch_rows(ahead);
  for (; ahead.at < after; ahead.at += 64) __builtin_prefetch(ahead.at, 0, 2);
}

// A block of rows of one kv head. Its Q is [part of 2 W elements][vector of rows][lane], O is [half of 2 W elements][row][lane], its
// scores, then probabilities, [row][key].
struct DecodeBlock {
  float *q, *out, *scores;
  int q_width, out_width;  // elements of a row with its padding
  int rows;
};
// As many sums at a time as the register block of the instruction set has, a power of two for each row.
template <class S>
constexpr int decode_chains(int rows) {
  int n = 8;
  while (n > 2 && n * rows > S::MR * S::NV) n /= 2;
  return n;
}

template <class T>
constexpr bool is_half(const T*) {
  return false;
}
constexpr bool is_half(const Half*) { return true; }
// Rows whose scores are summed in one vector: of two rows, half of W elements each, a quarter of the steps adds up the lanes of all
// keys, but each element of K is widened twice. With 8 lanes that takes more than it saves for float16, and for one row nothing is saved.
template <class S, class T>
constexpr int rows_together(int rows) {
  return rows == 1 || (is_half(static_cast<const T*>(nullptr)) && S::W <= 8) ? 1 : 2;
}
// Part `part` of the 2 W elements at p, as such vectors hold them.
template <class S, int R, class T>
FA_FN typename S::F part_of(const T* p, int part) {
  if constexpr (R == 1) return half_of<S>(p, part);
  return half_twice<S>(p + part / 2 * S::W, part % 2);
}
// Keys whose scores are made together.
template <class S>
constexpr int score_keys(int vectors) {
  int n = S::W / 2;
  while (2 * n * vectors <= S::MR * S::NV) n *= 2;
  return n;
}

// Scores of B rows, one in a vector: products go to dots[key][row], then their lanes are added up.
template <class S, class T, int B>
FA_FN void decode_scores_apart(const DecodeBlock& block, const T* k, Int64 k_row, float* dots, Ahead& ahead) {
  using F = typename S::F;
  constexpr int W = S::W, C = decode_chains<S>(B);
  for (int i = 0; i < DECODE_KEYS; i += C) {
    F x[C][B];
    UNROLL
    for (int a = 0; a < C; a++) {
      UNROLL
      for (int g = 0; g < B; g++) x[a][g] = F(0.0f);
    }
    const T* row = k + i * k_row;
    const float* q = block.q;
    for (int t = 0; t < block.q_width; t += 2 * W) {
      fetch(ahead);
      UNROLL
      for (int part = 0; part < 2; part++) {
        F key[C];
        UNROLL
        for (int a = 0; a < C; a++) key[a] = part_of<S, 1>(row + a * k_row + t, part);
        UNROLL
        for (int g = 0; g < B; g++, q += W) {
          const F query = in_register(S::load(q));
          UNROLL
          for (int a = 0; a < C; a++) x[a][g] = fma(query, key[a], x[a][g]);
        }
      }
    }
    UNROLL
    for (int a = 0; a < C; a++) {
      UNROLL
      for (int g = 0; g < B; g++) S::store(dots + ((i + a) * B + g) * W, x[a][g]);
    }
  }
  for (int g = 0; g < B; g++) {
    for (int i = 0; i < DECODE_KEYS; i += W) {
      F r[W];
      UNROLL
      for (int a = 0; a < W; a++) r[a] = S::load(dots + ((i + a) * B + g) * W);
      S::store(block.scores + g * DECODE_KEYS + i, S::lane_sums(r));
    }
  }
}
// The same of two rows in a vector, in chains of SCORE_CHAIN products.
template <class S, class T, int B>
FA_FN void decode_scores_together(const DecodeBlock& block, const T* k, Int64 k_row, Ahead& ahead) {
  using F = typename S::F;
  constexpr int W = S::W, HALF = W / 2, N = (B + 1) / 2, C = score_keys<S>(N), PIECE = SCORE_CHAIN * HALF;
  for (int i = 0; i < DECODE_KEYS; i += C) {
    const T* row = k + i * k_row;
    const float* q = block.q;
    F sums[C / HALF][N];
    for (int first = 0; first < block.q_width; first += PIECE) {
      F x[C][N];
      UNROLL
      for (int a = 0; a < C; a++) {
        UNROLL
        for (int g = 0; g < N; g++) x[a][g] = F(0.0f);
      }
      for (int t = first; t < min(first + PIECE, block.q_width); t += 2 * W) {
        fetch(ahead);
        UNROLL
        for (int part = 0; part < 4; part += 2) {
          F query[2][N];
          UNROLL
          for (int side = 0; side < 2; side++) {
            UNROLL
            for (int g = 0; g < N; g++, q += W) query[side][g] = in_register(S::load(q));
          }
          UNROLL
          for (int a = 0; a < C; a++) {
            UNROLL
            for (int side = 0; side < 2; side++) {
              const F key = part_of<S, 2>(row + a * k_row + t, part + side);
              UNROLL
              for (int g = 0; g < N; g++) x[a][g] = fma(query[side][g], key, x[a][g]);
            }
          }
        }
      }
      UNROLL
      for (int b = 0; b < C / HALF; b++) {
        UNROLL
        for (int g = 0; g < N; g++) {
          F r[HALF];
          UNROLL
          for (int a = 0; a < HALF; a++) r[a] = x[b * HALF + a][g];
          const F sum = S::half_sums(r);
          sums[b][g] = first == 0 ? sum : sums[b][g] + sum;
        }
      }
    }
    UNROLL
    for (int b = 0; b < C / HALF; b++) {
      UNROLL
      for (int g = 0; g < N; g++) {
        float* to = block.scores + 2 * g * DECODE_KEYS + i + b * HALF;
        S::store_half(to, sums[b][g], 0);
        if (2 * g + 1 < B) S::store_half(to + DECODE_KEYS, sums[b][g], 1);
      }
    }
  }
}
template <class S, class T, int B>
static void decode_scores(const DecodeBlock& block, const T* k, Int64 k_row, float* dots, Ahead& ahead) {
  if constexpr (rows_together<S, T>(B) == 1) {
    decode_scores_apart<S, T, B>(block, k, k_row, dots, ahead);
  } else {
    decode_scores_together<S, T, B>(block, k, k_row, ahead);
  }
}
// Calls of fetch() in it.
template <class S, class T>
static int score_calls(int rows, int q_width) {
  const int together = rows_together<S, T>(rows), keys = together == 1 ? decode_chains<S>(rows) : score_keys<S>((rows + 1) / 2);
  return DECODE_KEYS / keys * (q_width / (2 * S::W));
}

// Keys of O += P V, `chains` halves a time, from fetch to fetch: few lines a call, but not a call a line.
template <class S>
constexpr int output_keys(int chains) {
  return S::W * chains < 128 ? 128 / (S::W * chains) : 1;
}
// O += P V of B rows and n keys, C halves of 2 W elements at a time.
template <class S, class T, int B, int C>
FA_FN void decode_output_piece(const float* p, const T* v, Int64 v_row, int n, float* out, Ahead& ahead) {
  using F = typename S::F;
  constexpr int W = S::W;
  F x[C][B];
  UNROLL
  for (int c = 0; c < C; c++) {
    UNROLL
    for (int g = 0; g < B; g++) x[c][g] = S::load(out + (c * B + g) * W);
  }
  for (int i = 0; i < n;) {
    fetch(ahead);
    for (const int end = min(i + output_keys<S>(C), n); i < end; i++, v += v_row) {
      F value[C];
      UNROLL
      for (int c = 0; c < C; c++) value[c] = half_of<S>(v + c / 2 * 2 * W, c % 2);
      UNROLL
      for (int g = 0; g < B; g++) {
        const F weight = S::bcast(p + g * DECODE_KEYS + i);
        UNROLL
        for (int c = 0; c < C; c++) x[c][g] = fma(weight, value[c], x[c][g]);
      }
    }
  }
  UNROLL
  for (int c = 0; c < C; c++) {
    UNROLL
    for (int g = 0; g < B; g++) S::store(out + (c * B + g) * W, x[c][g]);
  }
}
template <class S, class T, int B, int C>
FA_FN void decode_output_from(int t, const DecodeBlock& block, const T* v, Int64 v_row, int n, Ahead& ahead) {
  for (; t + C * S::W <= block.out_width; t += C * S::W) {
    decode_output_piece<S, T, B, C>(block.scores, v + t, v_row, n, block.out + t * B, ahead);
  }
  if constexpr (C > 2) decode_output_from<S, T, B, C / 2>(t, block, v, v_row, n, ahead);
}
template <class S, class T, int B>
static void decode_output(const DecodeBlock& block, const T* v, Int64 v_row, int n, Ahead& ahead) {
  decode_output_from<S, T, B, decode_chains<S>(B)>(0, block, v, v_row, n, ahead);
}
// Calls of fetch() in it, for a whole tile.
template <class S>
static int output_calls(int rows, int width) {
  int calls = 0, t = 0;
  for (int chains = decode_chains<S>(rows); chains >= 2; chains /= 2) {
    for (; t + chains * S::W <= width; t += chains * S::W) calls += DECODE_KEYS / output_keys<S>(chains);
  }
  return calls;
}
template <class T>
struct DecodeProducts {
  void (*scores)(const DecodeBlock& block, const T* k, Int64 k_row, float* dots, Ahead& ahead);
  void (*output)(const DecodeBlock& block, const T* v, Int64 v_row, int n, Ahead& ahead);
};
template <class S, class T>
static DecodeProducts<T> decode_products(int rows) {
  switch (rows) {
    case 1: return {decode_scores<S, T, 1>, decode_output<S, T, 1>};
    case 2: return {decode_scores<S, T, 2>, decode_output<S, T, 2>};
    case 3: return {decode_scores<S, T, 3>, decode_output<S, T, 3>};
    case 4: return {decode_scores<S, T, 4>, decode_output<S, T, 4>};
    case 5: return {decode_scores<S, T, 5>, decode_output<S, T, 5>};
    default: return {decode_scores<S, T, 6>, decode_output<S, T, 6>};
  }
}
}  // namespace
}  // namespace fa::cpu
