// New keys and values into the caches, in place, turned by the rotary embedding; queries turned for them.
// Tile     a row of one head.
// Who      a warp a row; a lane has both elements of a pair, so what is turned may take the place of its source.
// Memory   arrays are read and written once. What lies outside of a cache or its pages is not written.
// Speed    bound by memory, in decoding by the launch.
//
//   append    new_k, new_v -> k, v (caches) at length + t, rotated_k; q -> rotated_q (mask.rows: rows of q)
//             grid: divide_up(max(new rows, rows of q), FA_WARPS), kv heads + heads (without rotated_q: kv heads), batch; see each_head()
#include "semantics/rotary.h"
#include "words/each.cuh"

namespace fa::cuda {
namespace {
constexpr int WARPS = FA_WARPS, THREADS = WARPS * 32;

// The first rotary_dim elements turn by the angle of `position`; `to` may be `from`. Positions without an angle take the nearest one's.
FA_FN void rotate_row(const Numbers& p, const Arrays& a, Element* to, const Element* from, int position) {
  const int half = a.positions > 0 ? p.rotary_dim / 2 : 0;
  const Int64 at = static_cast<Int64>(clamp(position, 0, a.positions - 1)) * half;
  for (int t = lane_of(); t < half; t += 32) {
    const int first = rotary_first(t, p.rotary_interleaved), second = rotary_second(t, p.rotary_dim, p.rotary_interleaved);
    const Real cos = to_real(static_cast<const Element*>(a.cos)[at + t]), sin = to_real(static_cast<const Element*>(a.sin)[at + t]);
    const Pair<Real> turned = rotate(to_real(from[first]), to_real(from[second]), cos, sin);
    to[first] = from_real<Element>(turned.x);
    to[second] = from_real<Element>(turned.y);
  }
  for (int d = 2 * half + lane_of(); d < p.dim; d += 32) to[d] = from[d];
}

// Where a slot of a sequence's cache lies, or nothing: a page that does not exist is not written.
struct Slot {
  bool exists;
  Int64 batch, row;
};
FA_FN Slot slot_of_cache(const Numbers& p, const Sequence& s, int position) {
  const bool inside = position < s.key_slots;
  if constexpr (PAGED_KEYS) {
    const int page = inside ? s.pages[page_of(position, p.page_size)] : -1;
    return Slot{page >= 0 && page <= s.last_page, page, slot_of(position, p.page_size)};
  }
  return Slot{inside, s.key_batch, position};
}
FA_FN void append_key(const Numbers& p, const Arrays& a, const Sequence& s, int head, int t, int length) {
  const Element* const k = static_cast<const Element*>(a.new_k) + offset_of(p.new_k, s.index, t, head);
  const Element* const v = static_cast<const Element*>(a.new_v) + offset_of(p.new_v, s.index, t, head);
  const int position = length + t;
  if (a.rotated_k != nullptr) rotate_row(p, a, static_cast<Element*>(a.rotated_k) + offset_of(p.dk, s.index, t, head), k, position);
  const Slot slot = slot_of_cache(p, s, position);
  if (a.k == nullptr || !slot.exists) return;
  rotate_row(p, a, static_cast<Element*>(a.k) + offset_of(p.k, slot.batch, slot.row, head), k, position);
  Element* const to = static_cast<Element*>(a.v) + offset_of(p.v, slot.batch, slot.row, head);
  for (int d = lane_of(); d < p.value_dim; d += 32) to[d] = v[d];
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) append(const __grid_constant__ Numbers p, const __grid_constant__ Arrays a) {
  const int count = p.kv_heads + (a.rotated_q != nullptr ? p.heads : 0), t = first_of_warp();
  each_head(p, a, count, [&](const Sequence& s, int head) {
    const int length = clamp(int_at(a.lengths, s.index, p.cache_length), 0, no_limit());
    if (head < p.kv_heads) {
      if (t < a.new_rows) append_key(p, a, s, head, t, length);
    } else if (t < p.mask.rows) {
      const int query_head = head - p.kv_heads;
      rotate_row(p, a, static_cast<Element*>(a.rotated_q) + offset_of(p.dq, s.index, t, query_head),
                 static_cast<const Element*>(a.q) + offset_of(p.q, s.index, t, query_head), length + (p.rotary_fixed != 0 ? 0 : t));
    }
  });
}
}  // namespace fa::cuda
