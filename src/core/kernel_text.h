// The text of GPU kernels as their compilers get it. All of src/semantics and src/<backend>/kernels is inside the library
// (cmake/embed_kernels.cmake); FLASH_ATTENTION_KERNELS=<src> reads a checkout's instead.
#pragma once
#include <span>
#include <string>

namespace fa {
// src/<backend>/kernels/<source> with every #include "..." expanded where it is met first: a path beside the file that includes it, or from
// src/. Includes stand outside of any #if. #line says where each piece comes from. Throws Error (runtime) where a file is missing.
std::string kernel_text(const std::string& backend, const std::string& source);

struct EmbeddedFile {
  const char *path, *text;  // path: from src/
};
std::span<const EmbeddedFile> embedded_files();  // generated at build
}  // namespace fa
