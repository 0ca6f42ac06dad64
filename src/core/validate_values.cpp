// check_values(): memory, and the values inside lengths, cumulative lengths and page tables; the arrays must be readable by the host.
#include <algorithm>
#include <vector>

#include "core/validate.h"

namespace fa {
namespace {
struct Values {
  const Call& call;
  const Problem& p;

  const int32_t* ints(Role r) const { return static_cast<const int32_t*>(call[r].data); }
  bool has(Role r) const { return p.has(r); }
  [[noreturn]] void bad(Role r, const std::string& message) const {
    fail(Error::Kind::value, call.function, argument_name(call, r), message);
  }

  // every array with elements has memory, aligned as C++ wants it
  void memory() const {
    for (uint64_t left = p.given; left != 0; left &= left - 1) {
      const Role r = static_cast<Role>(__builtin_ctzll(left));
      const Tensor& t = call[r];
      const uintptr_t address = reinterpret_cast<uintptr_t>(t.data), bytes = static_cast<uintptr_t>(element_bytes(t.dtype));
      if (address != 0 && (address & (bytes - 1)) == 0) continue;
      if (std::find(t.shape, t.shape + t.rank, 0) != t.shape + t.rank) continue;
      if (address == 0) bad(r, "expected an array with memory, found a null pointer");
      bad(r, text("expected memory aligned to its elements of ", bytes, " bytes, found address ", t.data));
    }
  }

  // cu[0] = 0, never decreasing, ending inside `total` (-1: anywhere); no sequence longer than `longest`
  void cumulative(Role r, int64_t total, int64_t longest, const std::string& max_name) const {
    const int32_t* cu = ints(r);
    const int batch = p.params.batch;
    if (cu[0] != 0) bad(r, text("expected 0 first, found ", cu[0]));
    int64_t most = 0;
    for (int b = 0; b < batch; b++) {
      if (cu[b + 1] < cu[b]) bad(r, text("expected values that never decrease, found ", cu[b], " then ", cu[b + 1]));
      most = std::max<int64_t>(most, cu[b + 1] - cu[b]);
    }
    if (total >= 0 && cu[batch] > total) bad(r, text("expected an end within the ", total, " packed rows, found ", cu[batch]));
    if (most > longest)
      fail(Error::Kind::value, call.function, max_name, text("expected at least ", most, ", the longest sequence, found ", longest));
  }
  int64_t sequence_length(Role cu, int64_t dense, int b) const { return has(cu) ? ints(cu)[b + 1] - ints(cu)[b] : dense; }
  void within(Role r, int b, int64_t limit, const char* what) const {
    const int64_t value = ints(r)[b];
    if (value < 0 || value > limit) bad(r, text("expected 0 to ", limit, " (", what, "), found ", value, " for sequence ", b));
  }

  void lengths() const {
    const bool paged = has(Role::pages);
    if (has(Role::cu_rows)) cumulative(Role::cu_rows, p.total_rows, p.max_rows, max_seqlen_name(call, Role::q));
    if (has(Role::cu_keys)) cumulative(Role::cu_keys, paged ? -1 : p.total_keys, p.max_keys, max_seqlen_name(call, Role::k));
    for (int b = 0; b < p.params.batch; b++) {
      if (has(Role::used_rows)) within(Role::used_rows, b, sequence_length(Role::cu_rows, p.max_rows, b), "its rows");
      const int64_t keys =
          paged && !has(Role::cu_keys) ? std::min<int64_t>(p.max_keys, p.params.capacity) : sequence_length(Role::cu_keys, p.max_keys, b);
      if (has(Role::used_keys)) within(Role::used_keys, b, keys, "its keys");
    }
  }

  int64_t added() const { return p.pass == Pass::append ? p.new_rows : p.params.appended; }
  int64_t cache_length(int b) const {
    if (has(Role::lengths)) return ints(Role::lengths)[b];
    return p.params.cache_length >= 0 ? p.params.cache_length : p.params.capacity;
  }
  // of a sequence: in a cache, or packed
  int64_t keys(int b) const {
    if (!has(Role::cu_rows)) return cache_length(b) + added();
    return has(Role::used_keys) ? ints(Role::used_keys)[b] : sequence_length(Role::cu_keys, p.max_keys, b);
  }
  void cache() const {
    const int64_t capacity = p.params.capacity;
    for (int b = 0; b < p.params.batch; b++) {
      if (!has(Role::cu_rows)) cached_sequence(b, cache_length(b), capacity);
      if (has(Role::leftpad)) within(Role::leftpad, b, keys(b), "its keys");
    }
    if (has(Role::cache_rows)) cache_rows();
  }
  void cached_sequence(int b, int64_t length, int64_t capacity) const {
    if (length < 0 || length > MAX_LENGTH) bad(Role::lengths, text("expected 0 to ", MAX_LENGTH, ", found ", length, " for sequence ", b));
    if (has(Role::k) && length + added() > capacity)
      bad(Role::lengths, text("expected at most ", capacity - added(), " keys before ", added(), " new ones in the capacity ", capacity,
                              " of the cache, found ", length, " for sequence ", b));
    if (has(Role::cos)) {
      const int64_t rows = p.params.rotary_fixed ? std::min<int64_t>(p.max_rows, 1) : p.max_rows,
                    last = length + std::max<int64_t>(rows, p.new_rows);
      if (last > p.cos_positions) bad(Role::cos, text("expected at least ", last, " positions, found ", p.cos_positions));
    }
  }
  void cache_rows() const {
    const int64_t count = call[Role::k].shape[0];
    std::vector<int32_t> rows(ints(Role::cache_rows), ints(Role::cache_rows) + p.params.batch);
    for (int32_t row : rows)
      if (row < 0 || row >= count) bad(Role::cache_rows, text("expected rows of the cache, 0 to ", count - 1, ", found ", row));
    std::sort(rows.begin(), rows.end());
    const auto twice = std::adjacent_find(rows.begin(), rows.end());
    if (added() > 0 && twice != rows.end())
      bad(Role::cache_rows, text("expected each cache row at most once when k is given, found ", *twice, " twice"));
  }

  // every page that holds a key of a sequence must be there; the rest of the table may hold anything
  void pages() const {
    const Tensor& table = call[Role::pages];
    const int64_t count = call[Role::k].shape[0], size = p.params.page_size;
    for (int b = 0; b < p.params.batch; b++) {
      const int64_t needed = (keys(b) + size - 1) / size;
      if (needed > table.shape[1])
        bad(Role::pages, text("expected ", needed, " pages for sequence ", b, " with ", keys(b), " keys, found ", table.shape[1]));
      for (int64_t i = 0; i < needed; i++) {
        const int32_t page = ints(Role::pages)[b * table.stride[0] + i];
        if (page < 0 || page >= count)
          bad(Role::pages, text("expected pages 0 to ", count - 1, ", found ", page, " at (", b, ", ", i, ")"));
      }
    }
  }
};
}  // namespace

void check_memory(const Call& call, const Problem& problem) { Values{call, problem}.memory(); }

void check_values(const Call& call, const Problem& problem) {
  const Values v{call, problem};
  v.memory();
  if (problem.pass == Pass::merge) return;
  v.lengths();
  if (problem.needs & CACHED) v.cache();
  if (problem.needs & PAGED) v.pages();
}
}  // namespace fa
