#include "cuda/driver/context.h"

#include <array>
#include <mutex>

namespace fa::cuda::driver {
namespace {
constexpr int MAX_DEVICES = 64;

// Of one device, each read or made once, by whoever comes first.
struct Entry {
  std::once_flag read, retained;
  DeviceId id = 0;
  Device device{};
  Context primary = nullptr;
};
Entry& entry(int index) {
  static std::array<Entry, MAX_DEVICES> entries;
  if (index < 0 || index >= device_count() || index >= MAX_DEVICES)
    throw Error(Error::Kind::runtime, text("[cuda] device: expected 0 to ", device_count() - 1, ", found ", index, "."));
  Entry& e = entries[static_cast<size_t>(index)];
  std::call_once(e.read, [&] {
    check(libcuda().device_get(&e.id, index), "device ", index);
    const auto ask = [&](Attribute which) {
      int value = 0;
      check(libcuda().device_attribute(&value, which, e.id), "attribute ", static_cast<int>(which), " of device ", index);
      return value;
    };
    e.device = Device{DeviceKind::cuda, ask(MAJOR) * 10 + ask(MINOR), ask(CORES), ask(SHARED_BYTES_OPTIN)};
  });
  return e;
}
}  // namespace

int device_count() {
  static const int count = [] {
    int n = 0;
    check(libcuda().device_count(&n), "number of devices");
    return n;
  }();
  return count;
}

Device device_of(int index) { return entry(index).device; }

std::string device_name(int index) {
  char name[256] = {};
  check(libcuda().device_name(name, sizeof(name), entry(index).id), "name of device ", index);
  return name;
}

Current::Current(int index) {
  const Libcuda& cu = libcuda();
  Entry& e = entry(index);
  Context current = nullptr;
  DeviceId device = -1;
  check(cu.context_current(&current), "current context");
  if (current) check(cu.context_device(&device), "device of the current context");
  if (!current || device != e.id) {
    std::call_once(e.retained, [&] { check(cu.primary_context_retain(&e.primary, e.id), "context of device ", index); });
    current = e.primary;
    check(cu.context_push(current), "context of device ", index);
    pushed_ = true;
  }
  unsigned long long number = 0;
  id_ = cu.context_id && cu.context_id(current, &number) == 0 ? number : reinterpret_cast<uint64_t>(current);
}
Current::~Current() {
  Context popped = nullptr;
  if (pushed_) libcuda().context_pop(&popped);
}

Relaxed::Relaxed() { libcuda().exchange_capture_mode(&mode_); }
Relaxed::~Relaxed() { libcuda().exchange_capture_mode(&mode_); }
}  // namespace fa::cuda::driver
