// Which rows and keys a sequence of the batch has and where they lie: cu_rows, cu_keys, lengths, used_rows, used_keys, leftpad,
// cache_rows and pages, read once a threadgroup. Lengths are clamped to what the arrays hold.
#pragma once
#include "arrays.metal"
namespace fa {
template <class CuRows, class CuKeys, class UsedRows, class UsedKeys, class Lengths, class CacheRows, class Leftpad, class Pages>
struct Places {
  CuRows cu_rows;
  CuKeys cu_keys;
  UsedRows used_rows;
  UsedKeys used_keys;
  Lengths lengths;
  CacheRows cache_rows;
  Leftpad leftpad;
  Pages pages;
};
template <class A, class B, class C, class D, class E, class F, class G, class H>
FA_FN Places<A, B, C, D, E, F, G, H> places_of(A a, B b, C c, D d, E e, F f, G g, H h) {
  return Places<A, B, C, D, E, F, G, H>{a, b, c, d, e, f, g, h};
}
#define FA_PLACES                                                                                                                  \
  fa::places_of(FA_ARRAY_CU_ROWS, FA_ARRAY_CU_KEYS, FA_ARRAY_USED_ROWS, FA_ARRAY_USED_KEYS, FA_ARRAY_LENGTHS, FA_ARRAY_CACHE_ROWS, \
                FA_ARRAY_LEFTPAD, FA_ARRAY_PAGES)

enum Needs : unsigned { VARLEN = 1u, CACHED = 2u, PAGED = 4u };  // as in core/problem.h
constant constexpr const bool IS_PACKED = (FA_NEEDS & VARLEN) != 0;
constant constexpr const bool IS_PAGED = (FA_NEEDS & PAGED) != 0;
constant constexpr const bool IS_CACHED = !IS_PACKED && (FA_NEEDS & (CACHED | PAGED)) != 0;

struct Sequence {
  int index;                  // in the batch: for slopes, bias and dropout
  Mask mask;                  // rows, keys and the diagonal of this sequence
  int row_slots, key_slots;   // rows and keys it has room for; those beyond its own belong to nobody, and hold zeros in results
  Int64 row_base, batch;      // packed row of its row 0, batch index of q, out, ...
  Int64 key_base, key_batch;  // row of k, v of its key 0 (packed, or after a left padding), batch index of k, v
  Int64 page_base;            // of its page numbers
  Int64 lse_base;             // lse[lse_base + head * lse_head + row], dlse and delta too
};

// b == batch, of packed calls: the empty sequence behind the last one, whose slots belong to nobody. In such calls `capacity` is the
// number of keys there are.
template <class P>
FA_FN Sequence sequence_of(ParamsPointer p, P a, int b) {
  const bool last = IS_PACKED && b == p->batch;
  const int first_row = int_at(a.cu_rows, b, 0);
  const int first_key = IS_PACKED && !IS_PAGED ? int_at(a.cu_keys, b, 0) : 0;
  Sequence s;
  s.index = b;
  s.row_base = first_row;
  s.batch = IS_PACKED ? 0 : b;
  s.lse_base = IS_PACKED ? Int64(first_row) : b * p->lse_batch;
  s.page_base = b * p->pages_batch;
  s.key_batch = IS_PACKED ? 0 : int_at(a.cache_rows, last ? 0 : b, b);
  s.row_slots = IS_PACKED ? int(p->lse_head) - first_row : p->mask.rows;
  s.key_slots = p->mask.keys;
  if (IS_PACKED && !IS_PAGED) {
    s.key_slots = p->capacity - first_key;
  }
  int rows = 0, keys = 0, skipped = 0;
  if (!last) {
    if (IS_PACKED) {
      s.row_slots = min(s.row_slots, int_at(a.cu_rows, b + 1, 0) - first_row);
      const int length = int_at(a.cu_keys, b + 1, s.key_slots) - int_at(a.cu_keys, b, 0);
      s.key_slots = min(s.key_slots, length);
    }
    skipped = int_at(a.leftpad, b, 0);
    rows = min(s.row_slots, int_at(a.used_rows, b, s.row_slots));
    if (IS_CACHED) {
      const int length = int_at(a.lengths, b, p->cache_length < 0 ? p->capacity : p->cache_length);
      keys = min(cached_keys(length, p->appended, skipped), p->capacity - skipped);
    } else {
      keys = min(s.key_slots, int_at(a.used_keys, b, s.key_slots)) - skipped;
    }
  }
  s.key_base = first_key + skipped;
  const Mask m = Mask{0, 0, p->mask.left, p->mask.right, p->mask.shift, p->mask.chunk};
  s.mask = sequence_mask(m, p->aligned, max(rows, 0), max(keys, 0));
  return s;
}
FA_FN Int64 row_offset(Strides s, Sequence q, int row, int head) { return offset_of(s, q.batch, q.row_base + row, head); }
// through the page table where there is one; a page number that is none is page 0, whose keys nobody sees
template <class Pages>
FA_FN Int64 key_offset(Strides s, Sequence q, int page_size, Pages pages, int key, int head) {
  if constexpr (IS_PAGED) {
    const int position = int(q.key_base) + key;
    const int page = max(int_at(pages, q.page_base + page_of(position, page_size), 0), 0);
    return offset_of(s, page, slot_of(position, page_size), head);
  }
  return offset_of(s, q.key_batch, q.key_base + key, head);
}
// The element's own mask, score and dropout of one query head.
struct Head {
  int head, kv_head;
  float slope;
  unsigned stream;  // of dropout's random numbers
  Int64 lse, bias;  // offsets of row 0 in lse and in the bias
};
template <class Slopes>
FA_FN Head head_of(ParamsPointer p, Sequence s, int head, Slopes slopes) {
  const bool nobody = IS_PACKED && s.index == p->batch;  // the sequence behind the last one has no slopes
  return Head{head,
              kv_head_of(head, p->group),
              nobody ? 0.0f : float_at(slopes, Int64(s.index) * p->slopes_batch + head),
              unsigned(s.index * p->heads + head),
              s.lse_base + head * p->lse_head,
              s.index * p->bias.batch + head * p->bias.head};
}
FA_FN ScoreT<float> score_numbers(ParamsPointer p) { return ScoreT<float>{p->score.scale, p->score.softcap}; }
}  // namespace fa
