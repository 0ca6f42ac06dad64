// Which backends a kind of device has, and which row of their tables takes a call: the only file that lists the backends.
#include <string>
#include <vector>

#include "core/error.h"
#include "core/names.h"
#include "core/plan.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "metal/kernels.h"

namespace fa {
std::span<const Backend* const> backends_of(DeviceKind kind) {
  static constexpr const Backend* CPU[] = {&cpu::BACKEND};
  static constexpr const Backend* CUDA[] = {&cuda::BACKEND};
  static constexpr const Backend* METAL[] = {&metal::BACKEND};
  if (kind == DeviceKind::cpu) return CPU;
  if (kind == DeviceKind::cuda) return CUDA;
  if (kind == DeviceKind::metal) return METAL;
  return {};
}

namespace {
struct Bit {
  unsigned bit;
  const char* words;
};
constexpr Bit FEATURE_WORDS[] = {{SOFTCAP, "softcap"}, {ALIBI, "alibi_slopes"},  {BIAS, "attn_bias"},
                                 {DROPOUT, "dropout"}, {SINK, "learnable_sink"}, {NATURAL, "softmax_scale <= 0"}};
constexpr Bit NEED_WORDS[] = {{VARLEN, "packed sequences (cu_seqlens)"},
                              {CACHED, "a key/value cache"},
                              {PAGED, "a page table"},
                              {VALUE_DIM, "value head dim != head dim"},
                              {OFFSETS, "q_offset / k_offset"},
                              {USED, "seqused"},
                              {CHUNK, "attention_chunk"},
                              {WINDOW, "window_size"},
                              {DETERMINISTIC, "deterministic"},
                              {OUT_FLOAT, "out_dtype float32"},
                              {LSE, "log-sum-exp (and gradients)"}};

std::string missing(unsigned wanted, unsigned able, std::span<const Bit> bits) {
  std::string words;
  for (const Bit& b : bits)
    if (wanted & ~able & b.bit) words += (words.empty() ? "" : ", ") + std::string(b.words);
  return words;
}

// What keeps a row from taking a call. Words are made of it only where somebody reads them.
enum class Hurdle { none, arch, dtype, dim, features, needs, rule };
Hurdle hurdle(const Problem& p, const Kernel& row, const Device& device) {
  if (device.arch < row.arch_first || device.arch > row.arch_last) return Hurdle::arch;
  if (!(row.dtypes & dtype_bit(p.dtype))) return Hurdle::dtype;
  if (p.params.dim > row.max_dim || p.params.value_dim > row.max_dim) return Hurdle::dim;
  if (p.features & ~row.features) return Hurdle::features;
  if (p.needs & ~row.needs) return Hurdle::needs;
  return row.refuses && row.refuses(p, device) ? Hurdle::rule : Hurdle::none;
}
std::string words_of(Hurdle h, const Problem& p, const Kernel& row, const Device& device) {
  switch (h) {
    case Hurdle::arch: return text("is for other chips than architecture ", device.arch);
    case Hurdle::dtype: return text("does not do ", dtype_name(p.dtype));
    case Hurdle::dim: return text("head dim at most ", row.max_dim);
    case Hurdle::features: return missing(p.features, row.features, FEATURE_WORDS) + " not supported";
    case Hurdle::needs: return missing(p.needs, row.needs, NEED_WORDS) + " not supported";
    case Hurdle::rule: return row.refuses(p, device);
    case Hurdle::none: break;
  }
  return "";
}

std::span<const Kernel> rows_of(const Backend& backend) { return {backend.first, static_cast<size_t>(backend.count)}; }
// A sentence for each row before the one that fits.
std::vector<std::string> reasons(const Problem& problem, const Device& device) {
  std::vector<std::string> sentences;
  for (const Backend* backend : backends_of(device.kind))
    for (const Kernel& row : rows_of(*backend)) {
      if (row.pass != problem.pass) continue;
      const Hurdle h = hurdle(problem, row, device);
      if (h == Hurdle::none) return sentences;
      sentences.push_back(text(row.name, ": ", words_of(h, problem, row, device)));
    }
  return sentences;
}
const char* device_words(DeviceKind kind) {
  constexpr const char* words[] = {"CPU", "CUDA", "Metal", "ROCm"};
  return words[static_cast<int>(kind)];
}
}  // namespace

Choice choose(const Problem& problem, const Device& device) {
  for (const Backend* backend : backends_of(device.kind))
    for (const Kernel& row : rows_of(*backend))
      if (row.pass == problem.pass && hurdle(problem, row, device) == Hurdle::none) return {backend, &row};
  return {};
}

Plan make_plan(const Problem& problem, const Device& device) {
  const Choice choice = choose(problem, device);
  if (!choice.row) {
    std::string why = text("no ", device_words(device.kind), " kernel takes this call");
    const char* between = ": ";
    for (const std::string& reason : reasons(problem, device)) why += between + reason, between = "; ";
    const char* end = backends_of(device.kind).empty() ? ": this build has no such backend." : ".";
    throw Error(Error::Kind::unsupported, text("[", problem.function, "] ", why, end));
  }
  Plan plan = choice.backend->plan(problem, *choice.row, device);
  plan.backend = choice.backend;
  return plan;
}

Plan plain_plan(const Problem& problem, const Device& device) {
  Choice last = choose(problem, device);
  for (const Kernel& row : rows_of(*last.backend))
    if (row.pass == problem.pass && hurdle(problem, row, device) == Hurdle::none) last.row = &row;
  Plan plan = last.backend->plan(problem, *last.row, device);
  plan.backend = last.backend;
  return plan;
}

std::string explain(const Problem& problem, const Device& device) {
  const Choice choice = choose(problem, device);
  std::string lines;
  for (const std::string& reason : reasons(problem, device)) lines += "not " + reason + "\n";
  if (!choice.row) return lines + text("no ", device_words(device.kind), " kernel takes this call");
  lines += text("runs ", choice.row->name, " (", choice.backend->name, "):");
  const Plan plan = choice.backend->plan(problem, *choice.row, device);
  for (const Launch& launch : plan.launches) lines += text(" ", launch.kernel);
  int64_t bytes = 0;
  for (const Temporary& t : plan.temporaries) bytes += t.count * element_bytes(t.dtype);
  return lines + text("; temporaries ", bytes, " bytes");
}
}  // namespace fa
