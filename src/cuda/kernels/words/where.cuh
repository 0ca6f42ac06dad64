// Station "where": which rows and keys a sequence of the batch has and where they lie. Lengths, starts and indices were read from arrays
// that nobody has checked: each is clamped to what the arrays of the launch hold, so that no row or key inside the mask lies outside of
// them. FA_NEEDS is a constant: a dense call reads nothing here, and its mask is that of the launch.
#pragma once
#include "arrays.cuh"
#include "element.cuh"
#include "lanes.cuh"
namespace fa::cuda {
enum Need : unsigned { VARLEN = 1u, CACHED = 2u, PAGED = 4u, USED = 32u };  // as in core/problem.h
constexpr bool PACKED_ROWS = (FA_NEEDS & VARLEN) != 0, PAGED_KEYS = (FA_NEEDS & PAGED) != 0;
constexpr bool PACKED_KEYS = PACKED_ROWS && !PAGED_KEYS;
constexpr bool CACHE = !PACKED_ROWS && (FA_NEEDS & (CACHED | PAGED)) != 0;  // lengths say how many keys there are
constexpr bool SHORTENED = (FA_NEEDS & USED) != 0, PADDED = (FA_NEEDS & CACHED) != 0;

struct Sequence {
  int index;                  // in the batch: for slopes, bias and dropout
  Mask mask;                  // rows, keys and the diagonal of this sequence
  int row_slots, key_slots;   // rows and keys it has room for; those that the mask lacks belong to nobody, and are zeros in results
  Int64 row_base, batch;      // packed row of its row 0 (else 0), batch index of q, out, ... (0 when packed)
  Int64 key_base, key_batch;  // row of k, v of its key 0 (packed, or after leftpad), batch index of k, v
  const int* pages;           // its page numbers, or null
  int last_page;              // that k and v have
  Int64 lse_base;             // lse[lse_base + head * lse_head + row]; dlse and delta too
};

FA_FN int clamp(int x, int low, int high) { return min(max(x, low), high); }
FA_FN int int_at(const void* array, int i, int otherwise) { return array != nullptr ? static_cast<const int*>(array)[i] : otherwise; }
FA_FN int as_length(Int64 n) { return static_cast<int>(n < 0x7fffffff ? n : 0x7fffffff); }

// Entries b and b + 1 of cumulative lengths, both inside [0, total].
FA_FN Interval<int> packed_range(const void* cu, int b, int total) {
  const int first = clamp(int_at(cu, b, 0), 0, total);
  return Interval<int>{first, clamp(int_at(cu, b + 1, 0), first, total)};
}

FA_FN Sequence sequence_of(const Numbers& p, const Arrays& a, int b) {
  Sequence s{b, p.mask, p.mask.rows, p.mask.keys, 0, b, 0, b, nullptr, 0, b * p.lse_batch};
  if constexpr (PACKED_ROWS) {
    const Interval<int> rows = packed_range(a.cu_rows, b, as_length(a.total_rows));
    s.row_slots = rows.end - rows.first;
    s.row_base = s.lse_base = rows.first;
    s.batch = 0;
  }
  if constexpr (PACKED_KEYS) {
    const Interval<int> keys = packed_range(a.cu_keys, b, as_length(a.total_keys));
    s.key_slots = keys.end - keys.first;
    s.key_base = keys.first;
    s.key_batch = 0;
  }
  if constexpr (PAGED_KEYS) {
    s.key_slots = a.key_batches > 0 ? p.capacity : 0;
    s.pages = static_cast<const int*>(a.pages) + b * p.pages_batch;
    s.last_page = a.key_batches - 1;
  }
  if constexpr (CACHE && !PAGED_KEYS) {
    const int row = int_at(a.cache_rows, b, b);
    const bool exists = row >= 0 && row < a.key_batches;
    s.key_slots = exists ? p.capacity : 0;
    s.key_batch = exists ? row : 0;
  }

  int rows = s.row_slots, keys = s.key_slots;
  if constexpr (SHORTENED) rows = clamp(int_at(a.used_rows, b, rows), 0, s.row_slots);
  if constexpr (CACHE) {
    const int length = clamp(int_at(a.lengths, b, p.cache_length < 0 ? p.capacity : p.cache_length), 0, s.key_slots);
    keys = length + min(p.appended, s.key_slots - length);
  } else if constexpr (PACKED_ROWS && PAGED_KEYS) {
    const int length = a.cu_keys != nullptr ? max(int_at(a.cu_keys, b + 1, 0), 0) - max(int_at(a.cu_keys, b, 0), 0) : keys;
    keys = clamp(int_at(a.used_keys, b, length), 0, s.key_slots);
  } else if constexpr (SHORTENED) {
    keys = clamp(int_at(a.used_keys, b, keys), 0, s.key_slots);
  }
  if constexpr (PADDED) {
    const int skipped = clamp(int_at(a.leftpad, b, 0), 0, s.key_slots);
    s.key_base += skipped;
    keys = cached_keys(keys, 0, skipped);
  }
  if constexpr (PACKED_ROWS || CACHE || PAGED_KEYS || SHORTENED || PADDED) s.mask = sequence_mask(p.mask, p.aligned, rows, keys);
  return s;
}

// Offsets in elements: of a query row (q, out, dout, dq, ...), of a key (k, v; dk and dv, which have no pages), of a row's lse.
FA_FN Int64 row_offset(Strides strides, const Sequence& s, int row, int head) {
  return offset_of(strides, s.batch, s.row_base + row, head);
}
FA_FN Int64 key_offset(const Numbers& p, Strides strides, const Sequence& s, int key, int head) {
  if constexpr (PAGED_KEYS) {
    const int position = static_cast<int>(s.key_base) + key;
    const int page = clamp(s.pages[page_of(position, p.page_size)], 0, s.last_page);
    return offset_of(strides, page, slot_of(position, p.page_size), head);
  }
  return offset_of(strides, s.key_batch, s.key_base + key, head);
}
FA_FN Int64 lse_offset(const Numbers& p, const Sequence& s, int row, int head) { return s.lse_base + head * p.lse_head + row; }

// What belongs to one query head. Seeds are uint32[4] or int64[2]: the same bytes.
FA_FN Seed seed_of(const Arrays& a) {
  const unsigned* const words = static_cast<const unsigned*>(a.seed);
  return Seed{words[0], words[1], words[2]};
}
FA_FN float slope_of(const Numbers& p, const Arrays& a, const Sequence& s, int head) {
  return static_cast<const float*>(a.slopes)[static_cast<Int64>(s.index) * p.slopes_batch + head];
}
// dropout's number of the head
FA_FN unsigned stream_of(const Numbers& p, const Sequence& s, int head) { return static_cast<unsigned>(s.index * p.heads + head); }
using Bias = TypeOf<FA_BIAS>::Type;
// False of a bool mask hides its key, as a bias below -1e20 does
FA_FN Real bias_value(unsigned char visible) { return visible != 0 ? Real(0) : Real(hidden()); }
template <class T>
FA_FN Real bias_value(T x) {
  return to_real(x);
}
// The bias of element (0, 0) of the head; load_bias reads the one `at` elements further.
FA_FN const Bias* bias_of(const Numbers& p, const Arrays& a, const Sequence& s, int head) {
  return static_cast<const Bias*>(a.bias) + s.index * p.bias.batch + head * p.bias.head;
}
FA_FN Real load_bias(const void* bias, Int64 at) { return bias_value(static_cast<const Bias*>(bias)[at]); }
FA_FN Real sink_of(const Arrays& a, int head) { return to_real(static_cast<const TypeOf<FA_SINK>::Type*>(a.sink)[head]); }
}  // namespace fa::cuda
