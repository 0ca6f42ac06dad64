// How the keys of a sequence are cut: what its rows see, whatever the cache could hold, is shared out among all splits of the launch.
#pragma once
#include "where.cuh"
namespace fa::cuda {
constexpr int SPLIT_STEP = 64;  // keys of a split are a multiple of it
struct Splits {
  int first, size, count;  // split i: keys [first + i * size, first + (i + 1) * size); the others are empty, and nobody looks at them
  FA_MEMBER Interval<int> keys(int i, Interval<int> seen) const {
    const Interval<int> mine{first + i * size, first + (i + 1) * size};
    return Interval<int>{max(seen.first, mine.first), min(seen.end, mine.end)};
  }
};
// at least split_keys keys a split
FA_FN Splits splits_of(const Numbers& p, const Mask& mask) {
  const Interval<int> seen = any_visible(mask, 0, max(mask.rows - 1, 0));
  const int count = max(p.splits, 1), keys = max(seen.end - max(seen.first, 0), 0);
  const int size = max(max(p.split_keys, SPLIT_STEP), divide_up(divide_up(keys, count), SPLIT_STEP) * SPLIT_STEP);
  return Splits{max(seen.first, 0), size, max(divide_up(keys, size), 1)};
}
}  // namespace fa::cuda
