#include "cuda/driver/kernels.h"

#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "core/cache.h"
#include "core/error.h"
#include "core/kernel_text.h"
#include "core/sha256.h"

namespace fa::cuda::driver {
namespace {
// ---- from text to an image

std::string image_of(const std::string& source, std::span<const Constant> constants, int arch) {
  const std::string text_ = kernel_text("cuda", source);
  std::string all = text("NVRTC ", compiler().version, "\nsm ", arch, '\n');
  for (const Constant& c : constants) all += text(c.name, '=', c.value, '\n');
  const std::string name = sha256(all + text_);
  if (std::optional<std::string> found = cache::read(name)) return *found;
  const Compiled compiled = compile(text_, source, options_for(constants, arch));
  cache::write(name, compiled.image);
  return compiled.image;
}

// Made once, by whoever comes first; others wait for it.
template <class T>
struct Once {
  std::once_flag flag;
  T value{};
};
// Entries stay where they are, so that they can be made without holding the map.
template <class T>
class Table {
 public:
  Once<T>& operator[](const std::string& key) {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Once<T>>& entry = entries_[key];
    if (!entry) entry = std::make_unique<Once<T>>();
    return *entry;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Once<T>>> entries_;
};

// Never destroyed: other threads may still launch while the process ends.
template <class T>
T& immortal() {
  static T* const object = new T;
  return *object;
}
struct Images : Table<std::string> {};
struct Modules : Table<Module> {};

std::string variant(const Launch& launch, int arch) {
  std::string key = text(launch.source, " sm_", arch);
  for (const Constant& c : launch.constants) key += text(' ', c.name, '=', c.value);
  return key;
}
const std::string& image(const Launch& launch, int arch) {
  Once<std::string>& entry = immortal<Images>()[variant(launch, arch)];
  std::call_once(entry.flag, [&] { entry.value = image_of(launch.source, launch.constants, arch); });
  return entry.value;
}

// ---- from an image to a function

Function load(const Launch& launch, const Current& current, int arch) {
  const std::string key = variant(launch, arch);
  Once<Module>& entry = immortal<Modules>()[text(current.id(), ' ', key)];
  std::call_once(entry.flag, [&] {
    const Relaxed relaxed;
    check(libcuda().module_load(&entry.value, image(launch, arch).c_str()), "loading ", key);
  });
  Function function = nullptr;
  check(libcuda().module_function(&function, entry.value, launch.kernel), "kernel ", launch.kernel, " of ", key);
  if (launch.shared_bytes > 0)
    check(libcuda().function_set(function, MAX_DYNAMIC_SHARED_BYTES, launch.shared_bytes), "kernel ", launch.kernel, " of ", key, ": ",
          launch.shared_bytes, " bytes of shared memory");
  return function;
}

// Names a function for the lookup that every call makes. Names are addresses of the planner's literals.
struct Key {
  uint64_t context;
  const char *source, *kernel;
  int shared_bytes;
  std::vector<Constant> constants;
  bool operator==(const Key& other) const {
    const auto same = [](const Constant& a, const Constant& b) { return a.name == b.name && a.value == b.value; };
    return context == other.context && source == other.source && kernel == other.kernel && shared_bytes == other.shared_bytes &&
           std::equal(constants.begin(), constants.end(), other.constants.begin(), other.constants.end(), same);
  }
};
struct Hash {
  size_t operator()(const Key& key) const {
    uint64_t h = key.context;
    const auto add = [&](uint64_t x) { h = (h ^ x) * 0x9E3779B97F4A7C15u, h ^= h >> 29; };
    add(reinterpret_cast<uint64_t>(key.source));
    add(reinterpret_cast<uint64_t>(key.kernel));
    add(static_cast<uint64_t>(key.shared_bytes));
    for (const Constant& c : key.constants) add(reinterpret_cast<uint64_t>(c.name)), add(static_cast<uint64_t>(c.value));
    return static_cast<size_t>(h);
  }
};
struct Functions {
  std::shared_mutex mutex;
  std::unordered_map<Key, Function, Hash> known;
  Function find(const Key& key) {
    const std::shared_lock lock(mutex);
    const auto at = known.find(key);
    return at == known.end() ? nullptr : at->second;
  }
  void add(const Key& key, Function function) {
    const std::unique_lock lock(mutex);
    known.emplace(key, function);
  }
};

// Images of all these launches, at the same time where there are several.
void make_images(const std::vector<const Launch*>& launches, int arch) {
  std::map<std::string, const Launch*> different;
  for (const Launch* l : launches) different.emplace(variant(*l, arch), l);
  std::vector<std::future<void>> others;
  for (auto it = std::next(different.begin()); it != different.end(); ++it)
    others.push_back(std::async(std::launch::async, [launch = it->second, arch] { image(*launch, arch); }));
  image(*different.begin()->second, arch);
  for (std::future<void>& other : others) other.get();
}
}  // namespace

std::vector<std::string> options_for(std::span<const Constant> constants, int arch) {
  std::vector<std::string> options{"--gpu-architecture=" + architecture(arch), "-default-device", "--std=c++20"};
  for (const Constant& c : constants) options.push_back(text("-D", c.name, '=', c.value));
  return options;
}

Compiled compile_kernel(const std::string& source, std::span<const Constant> constants, int arch, const std::vector<std::string>& more) {
  std::vector<std::string> options = options_for(constants, arch);
  options.insert(options.end(), more.begin(), more.end());
  return compile(kernel_text("cuda", source), source, options);
}

std::vector<Function> functions_of(std::span<const Launch> launches, const Current& current, int arch) {
  Functions& table = immortal<Functions>();
  std::vector<Function> functions;
  std::vector<const Launch*> missing;
  const auto key_of = [&](const Launch& l) { return Key{current.id(), l.source, l.kernel, l.shared_bytes, l.constants}; };
  for (const Launch& l : launches) {
    functions.push_back(table.find(key_of(l)));
    if (!functions.back()) missing.push_back(&l);
  }
  if (missing.empty()) return functions;
  make_images(missing, arch);
  for (size_t i = 0; i < functions.size(); i++)
    if (!functions[i]) {
      functions[i] = load(launches[i], current, arch);
      table.add(key_of(launches[i]), functions[i]);
    }
  return functions;
}
}  // namespace fa::cuda::driver
