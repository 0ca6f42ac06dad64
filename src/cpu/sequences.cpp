#include "cpu/sequences.h"

#include <algorithm>

namespace fa::cpu {
namespace {
struct Ints {
  const int32_t* data;
  Ints(const Buffers& buffers, Role role) : data(static_cast<const int32_t*>(buffers[role].data)) {}
  explicit operator bool() const { return data != nullptr; }
  int at(int i, int otherwise) const { return data ? data[i] : otherwise; }
  int length(int i, int otherwise) const { return data ? data[i + 1] - data[i] : otherwise; }
};
}  // namespace

std::vector<Sequence> read_sequences(const Problem& problem, const Buffers& buffers) {
  const ParamsT<double>& p = problem.params;
  const Ints cu_rows(buffers, Role::cu_rows), cu_keys(buffers, Role::cu_keys), lengths(buffers, Role::lengths);
  const Ints used_rows(buffers, Role::used_rows), used_keys(buffers, Role::used_keys), leftpad(buffers, Role::leftpad);
  const Ints cache_rows(buffers, Role::cache_rows), pages(buffers, Role::pages);
  const bool packed = (problem.needs & VARLEN) != 0, paged = (problem.needs & PAGED) != 0;
  const bool cached = !packed && (problem.needs & (CACHED | PAGED)) != 0;

  std::vector<Sequence> sequences(static_cast<size_t>(p.batch) + 1);
  for (int b = 0; b < p.batch; b++) {
    Sequence& s = sequences[static_cast<size_t>(b)];
    const int skipped = leftpad.at(b, 0);
    const int rows = used_rows.at(b, cu_rows.length(b, static_cast<int>(problem.max_rows)));
    int keys = used_keys.at(b, cu_keys.length(b, static_cast<int>(problem.max_keys)));
    if (cached) {
      const int length = lengths.at(b, p.cache_length < 0 ? p.capacity : p.cache_length);
      keys = cached_keys(length, p.appended, skipped);
    } else {
      keys = std::max(keys - skipped, 0);
    }
    s.index = b;
    s.mask = sequence_mask(p.mask, p.aligned, rows, keys);
    s.row_base = cu_rows.at(b, 0);
    s.batch = packed ? 0 : b;
    s.key_base = (packed && !paged ? cu_keys.at(b, 0) : 0) + skipped;
    s.key_batch = packed ? 0 : cache_rows.at(b, b);
    s.pages = pages ? pages.data + b * p.pages_batch : nullptr;
    s.lse_base = packed ? s.row_base : b * p.lse_batch;
  }
  Sequence& last = sequences.back();
  last = Sequence{};
  last.index = p.batch;
  last.mask = sequence_mask(p.mask, p.aligned, 0, 0);
  last.row_base = last.lse_base = cu_rows.at(p.batch, 0);
  last.key_base = cu_keys.at(p.batch, 0);
  return sequences;
}
}  // namespace fa::cpu
