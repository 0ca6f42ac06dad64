// Memory of a worker: what kernels pack their tiles into.
#pragma once
#include <cstddef>

namespace fa::cpu {
// 64-byte aligned, in huge pages where that pays; to be given to free(). Throws std::bad_alloc.
void* allocate(size_t bytes);

// Uninitialised and 64-byte aligned. Each thread keeps its last one up to 16 MiB, so that small calls cost no page faults; a larger one
// goes back to the system when it is let go.
class Scratch {
 public:
  explicit Scratch(size_t bytes);  // throws std::bad_alloc
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  size_t bytes_;
};
}  // namespace fa::cpu
