// Shared libraries at run time.
#pragma once
#include <string>
#include <vector>

namespace fa::cuda::driver {
// The handle of a library that stays loaded, or null; `why` gets the loader's words.
void* open_library(const std::string& path, std::string& why);
// A symbol's address, cast to the type of `function`; null where the library lacks it.
void* symbol_of(void* library, const char* name);
template <class F>
void find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(symbol_of(library, name));
}
// Files of the libraries that this process has loaded, and the one we are in.
std::vector<std::string> loaded_libraries();
std::string own_library();
// Files that a pattern of the shell names, sorted.
std::vector<std::string> files(const std::string& pattern);
std::string folder_of(const std::string& path);
std::string name_of(const std::string& path);
}  // namespace fa::cuda::driver
