// The words errors use: what users call each array, dtypes, shapes.
#include <cstring>

#include "core/error.h"
#include "core/names.h"

namespace fa {
namespace {
struct Name {
  const char* role;
  const char* argument;  // in the Python functions
};
constexpr Name NAMES[ROLES] = {
    {"q", "q"},
    {"k", "k"},
    {"v", "v"},
    {"out", "out"},
    {"lse", "softmax_lse"},
    {"probabilities", "S_dmask"},
    {"dout", "dout"},
    {"dlse", "dlse"},
    {"dq", "dq"},
    {"dk", "dk"},
    {"dv", "dv"},
    {"delta", "softmax_d"},
    {"seed", "rng_state"},
    {"slopes", "alibi_slopes"},
    {"bias", "attn_bias"},
    {"dbias", "dbias"},
    {"sink", "learnable_sink"},
    {"dsink", "dsink"},
    {"cu_rows", "cu_seqlens_q"},
    {"cu_keys", "cu_seqlens_k"},
    {"used_rows", "seqused_q"},
    {"used_keys", "seqused_k"},
    {"lengths", "cache_seqlens"},
    {"cache_rows", "cache_batch_idx"},
    {"leftpad", "cache_leftpad"},
    {"pages", "block_table"},
    {"new_k", "k"},
    {"new_v", "v"},
    {"cos", "rotary_cos"},
    {"sin", "rotary_sin"},
    {"rotated_q", "rotated_q"},
    {"rotated_k", "rotated_k"},
    {"part_out", "out_partial"},
    {"part_lse", "lse_partial"},
};
}  // namespace

const char* role_name(Role role) { return NAMES[static_cast<int>(role)].role; }

std::string argument_name(const Call& call, Role role) {
  const auto is = [&](const char* part) { return std::strstr(call.function, part) != nullptr; };
  const bool keys = role == Role::k || role == Role::v;
  if ((is("with_kvcache") || is("kv_cache")) && keys) return std::string(role_name(role)) + "_cache";
  if (is("_kvpacked") && keys) return "kv";
  if (is("_qkvpacked")) {
    if (keys || role == Role::q) return "qkv";
    if (role == Role::cu_rows || role == Role::cu_keys) return "cu_seqlens";
  }
  return NAMES[static_cast<int>(role)].argument;
}

std::string max_seqlen_name(const Call& call, Role role) {
  if (std::strstr(call.function, "_qkvpacked")) return "max_seqlen";
  return role == Role::q ? "max_seqlen_q" : "max_seqlen_k";
}

const char* dtype_name(DType t) {
  constexpr const char* names[] = {"none", "float16", "bfloat16", "float32", "float64", "int32", "int64", "uint32", "bool"};
  return names[static_cast<int>(t)];
}

std::string shape_text(const int64_t* shape, int rank) {
  std::string s = "(";
  for (int i = 0; i < rank; i++) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (rank == 1 ? ",)" : ")");
}
std::string shape_text(const Tensor& t) { return shape_text(t.shape, t.rank); }

void fail(Error::Kind kind, const char* function, const std::string& argument, const std::string& message) {
  throw Error(kind, text("[", function, "] ", argument, ": ", message, "."));
}
}  // namespace fa
