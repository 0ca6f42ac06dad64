#include "core/cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "core/env.h"
#include "core/error.h"
#include "core/sha256.h"

namespace fa::cache {
namespace {
constexpr std::string_view MAGIC = "flash_attn 1\n";

std::string wanted() {
  if (std::string given = env::cache(); !given.empty()) return given;
  const std::string home = env::home();
#ifdef __APPLE__
  return home.empty() ? "" : home + "/Library/Caches/flash_attn";
#else
  if (const std::string base = env::cache_home(); !base.empty() && base.front() == '/') return base + "/flash_attn";
  return home.empty() ? "" : home + "/.cache/flash_attn";
#endif
}

// All folders of a path that are missing, for this user alone.
void make(const std::string& path) {
  for (size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
    ::mkdir(path.substr(0, at).c_str(), 0700);
    if (at == std::string::npos) return;
  }
}
bool is_ours(const struct stat& s) { return s.st_uid == ::geteuid() && (s.st_mode & (S_IWGRP | S_IWOTH)) == 0; }

struct Folder {
  std::string path, why;
};
Folder find() {
  const std::string path = wanted();
  if (path.empty()) return {"", "no home folder is known"};
  struct stat s;
  if (::stat(path.c_str(), &s) != 0) {
    make(path);
    if (::stat(path.c_str(), &s) != 0) return {"", text(path, " cannot be made")};
  }
  if (!S_ISDIR(s.st_mode)) return {"", text(path, " is no folder")};
  if (!is_ours(s)) return {"", text(path, " belongs to another user, or others may write there")};
  return {path, ""};
}

struct File {
  int fd;
  explicit File(int opened) : fd(opened) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (fd >= 0) ::close(fd);
  }
};
bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}
}  // namespace

std::string folder() { return find().path; }
std::string why_none() { return find().why; }

std::optional<std::string> read(const std::string& name) {
  const std::string at = folder();
  if (at.empty()) return std::nullopt;
  const File file(::open((at + "/" + name).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  struct stat s;
  if (file.fd < 0 || ::fstat(file.fd, &s) != 0 || !S_ISREG(s.st_mode) || !is_ours(s)) return std::nullopt;
  std::string all(static_cast<size_t>(s.st_size), '\0');
  for (size_t done = 0; done < all.size();) {
    const ssize_t n = ::read(file.fd, all.data() + done, all.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return std::nullopt;
    done += static_cast<size_t>(n);
  }
  // magic, hash of the content, content
  constexpr size_t HEAD = MAGIC.size() + 64;
  if (all.size() < HEAD || all.compare(0, MAGIC.size(), MAGIC) != 0) return std::nullopt;
  const std::string_view content = std::string_view(all).substr(HEAD);
  if (all.compare(MAGIC.size(), 64, sha256(content)) != 0) return std::nullopt;
  return std::string(content);
}

void write(const std::string& name, const std::string& content) {
  static std::atomic<unsigned> count{0};
  const std::string at = folder();
  if (at.empty()) return;
  const std::string aside = text(at, "/.", name.substr(0, 16), ".", ::getpid(), ".", count++);
  {
    const File file(::open(aside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (file.fd < 0) return;
    if (write_all(file.fd, MAGIC) && write_all(file.fd, sha256(content)) && write_all(file.fd, content) &&
        ::rename(aside.c_str(), (at + "/" + name).c_str()) == 0)
      return;
  }
  ::unlink(aside.c_str());
}
}  // namespace fa::cache
