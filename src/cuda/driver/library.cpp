#include "cuda/driver/library.h"

#include <dlfcn.h>
#include <glob.h>
#ifdef __linux__
#include <link.h>
#endif

namespace fa::cuda::driver {
void* open_library(const std::string& path, std::string& why) {
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library)
    if (const char* words = ::dlerror()) why = words;
  return library;
}

void* symbol_of(void* library, const char* name) { return ::dlsym(library, name); }

std::vector<std::string> loaded_libraries() {
  std::vector<std::string> paths;
#ifdef __linux__
  const auto add = [](dl_phdr_info* info, size_t, void* to) {
    if (info->dlpi_name && info->dlpi_name[0] == '/') static_cast<std::vector<std::string>*>(to)->emplace_back(info->dlpi_name);
    return 0;
  };
  ::dl_iterate_phdr(add, &paths);
#endif
  return paths;
}

std::string own_library() {
  Dl_info info;
  return ::dladdr(reinterpret_cast<const void*>(&loaded_libraries), &info) && info.dli_fname ? info.dli_fname : "";
}

std::vector<std::string> files(const std::string& pattern) {
  std::vector<std::string> found;
  glob_t all{};
  if (::glob(pattern.c_str(), 0, nullptr, &all) == 0) found.assign(all.gl_pathv, all.gl_pathv + all.gl_pathc);
  ::globfree(&all);
  return found;
}

std::string folder_of(const std::string& path) {
  const size_t at = path.find_last_of('/');
  return at == std::string::npos ? "." : path.substr(0, at);
}
std::string name_of(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }
}  // namespace fa::cuda::driver
