#include "core/kernel_text.h"

#include <cctype>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string_view>

#include "core/env.h"
#include "core/error.h"

namespace fa {
namespace {
[[noreturn]] void bad(const std::string& message) { throw Error(Error::Kind::runtime, text("[kernel_text] ", message, ".")); }

// src/ as it was when the library was built, or as it is now.
class Files {
 public:
  Files() : folder_(env::kernels()) {}
  std::optional<std::string> read(const std::string& path) const {
    if (folder_.empty()) {
      for (const EmbeddedFile& f : embedded_files())
        if (path == f.path) return f.text;
      return std::nullopt;
    }
    std::ifstream file(folder_ + "/" + path, std::ios::binary);
    if (!file) return std::nullopt;
    std::ostringstream all;
    all << file.rdbuf();
    return all.str();
  }
  std::string where() const { return folder_.empty() ? "in this build" : text("in FLASH_ATTENTION_KERNELS=", folder_); }

 private:
  std::string folder_;
};

std::string folder_of(const std::string& path) { return path.substr(0, path.find_last_of('/') + 1); }

std::string_view trimmed(std::string_view s) {
  while (!s.empty() && std::isspace(static_cast<unsigned char>(s.front()))) s.remove_prefix(1);
  while (!s.empty() && std::isspace(static_cast<unsigned char>(s.back()))) s.remove_suffix(1);
  return s;
}
// what stands after `#word` on a line, or nothing
std::optional<std::string_view> directive(std::string_view line, std::string_view word) {
  line = trimmed(line);
  if (line.empty() || line.front() != '#') return std::nullopt;
  line = trimmed(line.substr(1));
  if (line.substr(0, word.size()) != word) return std::nullopt;
  return trimmed(line.substr(word.size()));
}
// the path of `#include "path"`
std::optional<std::string> included(std::string_view line) {
  const auto rest = directive(line, "include");
  if (!rest || rest->size() < 2 || rest->front() != '"') return std::nullopt;
  return std::string(rest->substr(1, rest->find('"', 1) - 1));
}

class Expansion {
 public:
  std::string of(const std::string& path) {
    if (!expand(path)) bad(text("source: expected a kernel file, found no ", path, " ", files_.where()));
    return std::move(out_);
  }

 private:
  bool expand(const std::string& path) {
    if (seen_.count(path)) return true;
    const std::optional<std::string> content = files_.read(path);
    if (!content) return false;
    seen_.insert(path);
    out_ += text("#line 1 \"", path, "\"\n");
    std::istringstream lines(*content);
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
      number++;
      for (char c : line)
        if (static_cast<unsigned char>(c) >= 128) bad(text("source: expected ASCII, found other characters at ", path, ":", number));
      if (const auto name = included(line)) {
        if (!expand(folder_of(path) + *name) && !expand(*name))
          bad(text("source: ", path, ":", number, " includes ", *name, ", found none"));
        out_ += text("#line ", number + 1, " \"", path, "\"\n");
      } else {
        out_ += directive(line, "pragma") == "once" ? "\n" : line + "\n";
      }
    }
    return true;
  }

  Files files_;
  std::set<std::string> seen_;
  std::string out_;
};
}  // namespace

std::string kernel_text(const std::string& backend, const std::string& source) {
  return Expansion().of(text(backend, "/kernels/", source));
}
}  // namespace fa
