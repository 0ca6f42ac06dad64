#include "cpu/scratch.h"

#include <cstdlib>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fa::cpu {
namespace {
constexpr size_t KEPT = size_t{16} << 20;
constexpr size_t HUGE_PAGE = size_t{2} << 20;

}  // namespace

void* allocate(size_t bytes) {
  const bool large = bytes >= HUGE_PAGE;
  void* data = nullptr;
  if (posix_memalign(&data, large ? HUGE_PAGE : 64, bytes > 0 ? bytes : 1) != 0) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (large) madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);  // 1-2 % faster; a hint, so failure does not matter
#endif
  return data;
}

namespace {
struct Kept {
  void* data = nullptr;
  size_t bytes = 0;
  ~Kept() { std::free(data); }
};
thread_local Kept kept;
}  // namespace

Scratch::Scratch(size_t bytes) : data_(nullptr), bytes_(bytes) {
  if (bytes == 0) return;
  if (kept.bytes >= bytes) {
    data_ = std::exchange(kept.data, nullptr);
    bytes_ = std::exchange(kept.bytes, 0);
    return;
  }
  data_ = allocate(bytes);
}
Scratch::~Scratch() {
  if (bytes_ <= KEPT && bytes_ > kept.bytes) {
    std::swap(kept.data, data_);
    kept.bytes = bytes_;
  }
  std::free(data_);
}
}  // namespace fa::cpu
