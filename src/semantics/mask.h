// Which keys a query sees. Every mask of this library is, for each row, one interval of keys whose two ends never move left from one
// row to the next: end of the sequence, causal, sliding window, chunk. So tiles can be skipped or left unmasked by looking at two rows.
#pragma once
#include "platform.h"
namespace fa {
// left, right: window around the diagonal, NO_LIMIT if open; causal is right = 0. shift: the diagonal of row 0. chunk: 0 if unused.
struct Mask {
  int rows, keys, left, right, shift, chunk;
};
template <class I>
struct Interval {
  I first, end;
};
FA_FN int no_limit() { return 1 << 29; }

// The mask of one sequence from that of the call: aligned at the bottom right corner unless the call gave its own shift.
FA_FN Mask sequence_mask(Mask m, int aligned, int rows, int keys) {
  return Mask{rows, keys, m.left, m.right, select(aligned != 0, keys - rows, m.shift), m.chunk};
}
// the largest multiple of the chunk that is <= x, for negative x too
template <class I>
FA_FN I chunk_start(I x, int chunk) {
  const I below = select(x < I(0), I(0) - (I(chunk - 1) - x) / I(chunk), x / I(chunk));
  return below * I(chunk);
}
// keys [first, end) that query `row` sees; empty if end <= first
template <class I>
FA_FN Interval<I> visible_keys(Mask m, I row) {
  const I diagonal = row + I(m.shift);
  const I chunk = chunk_start(diagonal, max(m.chunk, 1));
  const I low = max(I(0), diagonal - I(m.left));
  const I high = min(I(m.keys), diagonal + I(m.right + 1));
  const I first = select(I(m.chunk) > I(0), max(low, chunk), low);
  const I end = select(I(m.chunk) > I(0), min(high, chunk + I(m.chunk)), high);
  return Interval<I>{first, end};
}
// rows [first, end) that see `key`: the same relation read the other way, for dK and dV; keys of a tile beyond the last are seen by none
template <class I>
FA_FN Interval<I> visible_rows(Mask m, I key) {
  const I diagonal = key - I(m.shift);
  const I chunk = chunk_start(key, max(m.chunk, 1)) - I(m.shift);
  const I low = max(I(0), diagonal - I(m.right));
  const I high = min(I(m.rows), diagonal + I(m.left + 1));
  const I first = select(I(m.chunk) > I(0), max(low, chunk), low);
  const I end = select(I(m.chunk) > I(0), min(high, chunk + I(m.chunk)), high);
  return Interval<I>{first, select(key < I(m.keys), end, I(0))};
}
// rows [row0, row1] together: keys any of them sees, and keys all of them see (tiles inside need no mask)
FA_FN Interval<int> any_visible(Mask m, int row0, int row1) {
  return Interval<int>{visible_keys(m, row0).first, visible_keys(m, row1).end};
}
FA_FN Interval<int> all_visible(Mask m, int row0, int row1) {
  return Interval<int>{visible_keys(m, row1).first, visible_keys(m, row0).end};
}
}  // namespace fa
