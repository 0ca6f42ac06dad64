// Devices and contexts: the caller's own where it has one for the device, else the device's primary context, which all libraries share.
#pragma once
#include <cstdint>
#include <string>

#include "core/plan.h"
#include "cuda/driver/libcuda.h"

namespace fa::cuda::driver {
// What planning needs to know of device `index`; read once.
Device device_of(int index);
std::string device_name(int index);
int device_count();

// While one lives, a context of the device is current in this thread; afterwards the one that was.
class Current {
 public:
  explicit Current(int index);
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current();
  // Names the context: its number, or its address with drivers that have no numbers.
  uint64_t id() const { return id_; }

 private:
  uint64_t id_ = 0;
  bool pushed_ = false;
};

// While one lives, this thread may load modules though one of its streams is being captured into a graph.
class Relaxed {
 public:
  Relaxed();
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;
  ~Relaxed();

 private:
  int mode_ = RELAXED;
};
}  // namespace fa::cuda::driver
