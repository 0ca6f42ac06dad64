// The loops every kernel is made of, and the packing of tiles. Scores, output, dQ, dK and dV are all accumulate() with different
// pointers: C[R rows][NV vectors] += sum over t of A(i, t) * B[t][lanes], where A is read as scalar broadcasts and B as full vectors.
// 94 - 97 % of the FMA peak; nothing else in a kernel needs tuning. Arrays of vectors stay in registers only if every loop over them
// is indexed and unrolled (g++ spills others: 2.3x).
#pragma once
#include "cpu/job.h"
#include "cpu/simd/vector.h"
#include "cpu/tiles.h"

namespace fa::cpu {
namespace {

template <class S, int R, int N>
FA_FN void accumulate(typename S::F (&c)[R][N], const typename S::Lane* a, long a_row, long a_step, const typename S::Lane* b, long b_row,
                      int depth) {
  for (int t = 0; t < depth; t++) {
    typename S::F x[N];
    UNROLL
    for (int j = 0; j < N; j++) x[j] = S::load_lanes(b + t * b_row + j * S::W);
    UNROLL
    for (int i = 0; i < R; i++) {
      const typename S::F y = S::bcast(a + i * a_row + t * a_step);
      UNROLL
      for (int j = 0; j < N; j++) c[i][j] = S::dot(y, x[j], c[i][j]);
    }
  }
}

// Products of MR rows of K with N vectors of a panel, in chains of SCORE_CHAIN that are added at the end.
template <class S, int N>
FA_FN void products(typename S::F (&c)[S::MR][N], const typename S::Lane* k, long k_pitch, const typename S::Lane* q, long q_pitch,
                    int depth) {
  constexpr int MR = S::MR;
  UNROLL
  for (int i = 0; i < MR; i++) {
    UNROLL
    for (int j = 0; j < N; j++) c[i][j] = typename S::F(0.0f);
  }
  accumulate<S, MR, N>(c, k, k_pitch, 1, q, q_pitch, min(depth, SCORE_CHAIN));
  for (int t = SCORE_CHAIN; t < depth; t += SCORE_CHAIN) {
    typename S::F d[MR][N];
    UNROLL
    for (int i = 0; i < MR; i++) {
      UNROLL
      for (int j = 0; j < N; j++) d[i][j] = typename S::F(0.0f);
    }
    accumulate<S, MR, N>(d, k + t, k_pitch, 1, q + t * q_pitch, q_pitch, min(depth - t, SCORE_CHAIN));
    UNROLL
    for (int i = 0; i < MR; i++) {
      UNROLL
      for (int j = 0; j < N; j++) c[i][j] = c[i][j] + d[i][j];
    }
  }
}

// c[R rows][N vectors] += A B in memory.
template <class S, int R, int N>
FA_FN void update_block(float* c, long c_row, const typename S::Lane* a, long a_row, long a_step, const typename S::Lane* b, long b_row,
                        int depth) {
  typename S::F x[R][N];
  UNROLL
  for (int i = 0; i < R; i++) {
    UNROLL
    for (int j = 0; j < N; j++) x[i][j] = S::load(c + i * c_row + j * S::W);
  }
  accumulate<S, R, N>(x, a, a_row, a_step, b, b_row, depth);
  UNROLL
  for (int i = 0; i < R; i++) {
    UNROLL
    for (int j = 0; j < N; j++) S::store(c + i * c_row + j * S::W, x[i][j]);
  }
}
// n rows of N vectors, where A(i, t) = a[i + t * a_step]: O^T += V^T P^T, dQ^T += K^T dS^T. A block of fewer than MR - 2 rows has too
// few chains to fill the pipes, so a remainder is made of blocks of MR - 2 where that is possible.
template <class S, int N = S::NV>
__attribute__((noinline)) static void update_rows(int n, float* c, long c_row, const typename S::Lane* a, long a_step,
                                                  const typename S::Lane* b, long b_row, int depth) {
  constexpr int R = S::MR;
  int small = 0;
  while (small < R && n - small * (R - 2) >= 0 && (n - small * (R - 2)) % R != 0) small++;
  if (small == R || n < small * (R - 2)) small = 0;
  int i = 0;
  for (; i + R <= n - small * (R - 2); i += R) update_block<S, R, N>(c + i * c_row, c_row, a + i, 1, a_step, b, b_row, depth);
  for (; small > 0; small--, i += R - 2) update_block<S, R - 2, N>(c + i * c_row, c_row, a + i, 1, a_step, b, b_row, depth);
  for (; i < n; i++) update_block<S, 1, N>(c + i * c_row, c_row, a + i, 1, a_step, b, b_row, depth);
}

// Row pitch of a packed tile, in lanes: an odd number of cache lines, so that columns of the tile spread over all sets of the cache.
template <class S>
FA_FN int tile_pitch(int lanes) {
  const int line = 64 / static_cast<int>(sizeof(typename S::Lane));
  return (divide_up(round_up(lanes, S::W), line) | 1) * line;
}

// STEP * W elements of a row from element t on as W lanes, or W elements as W floats; zero from element n on.
template <class S, class T>
FA_FN typename S::F row_lanes(const T* row, int t, int n) {
  if (t + S::W * S::STEP <= n) return S::lanes(row + t);
  T tail[S::W * S::STEP] = {};
  if (t < n) __builtin_memcpy(tail, row + t, static_cast<size_t>(n - t) * sizeof(T));
  return S::lanes(tail);
}
template <class S, class T>
FA_FN typename S::F widen_lanes(const T* row, int t, int n) {
  if (t + S::W <= n) return S::widen(row + t);
  T tail[S::W] = {};
  if (t < n) __builtin_memcpy(tail, row + t, static_cast<size_t>(n - t) * sizeof(T));
  return S::widen(tail);
}
template <class S, class T>
FA_FN void narrow_lanes(T* row, int t, int n, typename S::F v) {
  if (t + S::W <= n) {
    S::narrow(row + t, v);
  } else if (t < n) {
    T tail[S::W];
    S::narrow(tail, v);
    __builtin_memcpy(row + t, tail, static_cast<size_t>(n - t) * sizeof(T));
  }
}

// Scratch handed out piece by piece, each on a cache line of its own. With a null base it only counts.
struct Scratch {
  char* base;
  size_t used = 0;
  template <class E>
  FA_INLINE E* take(Int64 count) {
    E* piece = reinterpret_cast<E*>(base + used);
    used += (static_cast<size_t>(count) * sizeof(E) + 63) / 64 * 64;
    return piece;
  }
};

// An array of the launch, null where absent (a free function: a member of Job would be a symbol shared with other instruction sets).
template <class T>
FA_FN T* array_of(const Job& job, Role role) {
  return static_cast<T*>(job.arrays[static_cast<int>(role)]);
}

// The keys (or values) of one kv head of one sequence: row by row, or through a page table.
template <class T>
struct KeyRows {
  const T* base;
  Int64 row, page;  // strides
  int first;        // row of key 0; when paged: of the pages' rows put end to end
  int page_size;    // 0: not paged
  const int* pages;
  FA_INLINE const T* at(int key) const {
    const int j = first + key;
    if (page_size == 0) return base + j * row;
    return base + pages[page_of(j, page_size)] * page + slot_of(j, page_size) * row;
  }
};
template <class T>
FA_FN KeyRows<T> key_rows(const Job& job, const Sequence& s, Role role, Strides stride, int kv_head) {
  const bool paged = s.pages != nullptr;
  const T* base = array_of<const T>(job, role) + offset_of(stride, paged ? 0 : s.key_batch, paged ? 0 : s.key_base, kv_head);
  return KeyRows<T>{base, stride.row, stride.batch, paged ? static_cast<int>(s.key_base) : 0, paged ? job.params.page_size : 0, s.pages};
}
// Packed row of a query: its place when the rows of all sequences are put end to end.
FA_FN Int64 packed_row(const Job& job, const Sequence& s, int position) { return s.batch * job.params.mask.rows + s.row_base + position; }
}  // namespace
}  // namespace fa::cpu
