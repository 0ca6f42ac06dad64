// Compiled GPU kernels on disk, one file an entry, named by the hash of all that decides its content. Entries are written aside and then
// renamed, so processes may share the folder; one that does not hold what was written counts as absent. What is read here gets
// executed: the folder must belong to this user, with no right for others to write. Where there is none (a read-only home, a foreign
// folder), nothing is kept, and nothing fails.
#pragma once
#include <optional>
#include <string>

namespace fa::cache {
std::string folder();    // FLASH_ATTENTION_CACHE, or flash_attn in the user's cache folder; made if needed; "" if there is none to use
std::string why_none();  // "" or, for people, why folder() is ""
std::optional<std::string> read(const std::string& name);
void write(const std::string& name, const std::string& content);
}  // namespace fa::cache
