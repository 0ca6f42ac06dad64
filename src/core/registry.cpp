// Which backends a kind of device has, and which row of their tables takes a call: the only file that lists the backends.
#include "core/error.h"
#include "core/names.h"
#include "core/plan.h"
#include "cpu/kernels.h"

namespace fa {
std::vector<const Backend*> backends_of(DeviceKind kind) {
  if (kind == DeviceKind::cpu) return {&cpu::BACKEND};
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
                              {OUT_FLOAT, "out_dtype float32"}};

std::string missing(unsigned wanted, unsigned able, const Bit* first, const Bit* end) {
  std::string words;
  for (const Bit* b = first; b != end; b++)
    if (wanted & ~able & b->bit) words += (words.empty() ? "" : ", ") + std::string(b->words);
  return words;
}

// empty if the row takes the call
std::string refusal(const Problem& p, const Kernel& row, const Device& device) {
  if (device.arch < row.arch_first || device.arch > row.arch_last) return text("is for other chips than architecture ", device.arch);
  if (!(row.dtypes & dtype_bit(p.dtype))) return text("does not do ", dtype_name(p.dtype));
  if (p.params.dim > row.max_dim || p.params.value_dim > row.max_dim) return text("head dim at most ", row.max_dim);
  std::string words = missing(p.features, row.features, std::begin(FEATURE_WORDS), std::end(FEATURE_WORDS));
  if (words.empty()) words = missing(p.needs, row.needs, std::begin(NEED_WORDS), std::end(NEED_WORDS));
  if (!words.empty()) return words + " not supported";
  const char* sentence = row.refuses ? row.refuses(p, device) : nullptr;
  return sentence ? sentence : "";
}
const char* device_words(DeviceKind kind) {
  constexpr const char* words[] = {"CPU", "CUDA", "Metal", "ROCm"};
  return words[static_cast<int>(kind)];
}
}  // namespace

Choice choose(const Problem& problem, const Device& device) {
  Choice choice;
  for (const Backend* backend : backends_of(device.kind))
    for (const Kernel* row = backend->first; row != backend->first + backend->count; row++) {
      if (row->pass != problem.pass) continue;
      const std::string why = refusal(problem, *row, device);
      if (why.empty()) {
        choice.backend = backend;
        choice.row = row;
        return choice;
      }
      choice.reasons.push_back(text(row->name, ": ", why));
    }
  return choice;
}

Plan make_plan(const Problem& problem, const Device& device) {
  const Choice choice = choose(problem, device);
  if (!choice.row) {
    std::string why = text("no ", device_words(device.kind), " kernel takes this call");
    for (const std::string& reason : choice.reasons) why += (&reason == &choice.reasons.front() ? ": " : "; ") + reason;
    throw Error(Error::Kind::unsupported,
                text("[", problem.function, "] ", why, choice.reasons.empty() ? ": this build has no such backend." : "."));
  }
  return choice.backend->plan(problem, *choice.row, device);
}

std::string explain(const Problem& problem, const Device& device) {
  const Choice choice = choose(problem, device);
  std::string lines;
  for (const std::string& reason : choice.reasons) lines += "not " + reason + "\n";
  if (!choice.row) return lines + text("no ", device_words(device.kind), " kernel takes this call");
  lines += text("runs ", choice.row->name, " (", choice.backend->name, "):");
  const Plan plan = choice.backend->plan(problem, *choice.row, device);
  for (const Launch& launch : plan.launches) lines += text(" ", launch.kernel);
  int64_t bytes = 0;
  for (const Temporary& t : plan.temporaries) bytes += t.count * element_bytes(t.dtype);
  return lines + text("; temporaries ", bytes, " bytes");
}
}  // namespace fa
