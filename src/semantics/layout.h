// Where a row lives: index arithmetic only. Kernels load cu_rows, lengths and page numbers themselves and pass the values in.
#pragma once
#include "platform.h"
namespace fa {
struct Strides {
  Int64 batch, row, head;  // in elements; the head dimension is contiguous
};
FA_FN Int64 offset_of(Strides s, Int64 batch, Int64 row, Int64 head) { return batch * s.batch + row * s.row + head * s.head; }
// Paged caches: key j of a sequence is slot j % page_size of its page j / page_size; `batch` is then the page number.
FA_FN int page_of(int key, int page_size) { return key / page_size; }
FA_FN int slot_of(int key, int page_size) { return key % page_size; }
// Query head h reads key/value head h / group.
FA_FN int kv_head_of(int head, int group) { return head / group; }
// How many keys a sequence has: what the cache held, plus what this call appended, minus the padding on the left.
FA_FN int cached_keys(int length, int appended, int leftpad) { return max(length + appended - leftpad, 0); }
}  // namespace fa
