// The C++ API of flash_attn: exact attention, forward and backward, on views of the caller's arrays.
//
//   fa::Call call{"forward", fa::Pass::forward};
//   call[fa::Role::q] = fa::tensor(q, fa::DType::f32, {batch, rows, heads, dim});   // and k, v, out, lse
//   call.options.causal = true;
//   fa::run(call);                                                                  // throws fa::Error
//
// Array layouts: q, out (batch, rows, heads, dim), k, v (batch, keys, kv_heads, dim); varlen drops the batch and packs rows. Any
// strides with a contiguous last axis. Meaning of every option: docs/how_it_works.md and the Python docstrings.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__GNUC__)
#define FLASH_ATTN_API __attribute__((visibility("default")))
#else
#define FLASH_ATTN_API
#endif

namespace fa {

enum class DType : int { none, f16, bf16, f32, f64, i32, i64, u32, u8 };  // u8: also bool
enum class DeviceKind : int { cpu, cuda, metal, rocm };
enum class Pass : int { forward, backward, append, merge };

// What an array is in a call. Roles marked * are written.
enum class Role : int {
  q,
  k,
  v,  // k, v: also the caches, (rows, capacity, kv_heads, dim) or pages (pages, page_size, kv_heads, dim)
  out,
  lse,            // *forward, inputs of backward; lse float32 (batch, heads, rows), varlen (heads, rows), float64 for float64
  probabilities,  // *S_dmask, normalised P with the sign bit set where dropped
  dout,
  dlse,  // dlse: gradient of lse, optional
  dq,
  dk,
  dv,      // *
  delta,   // *softmax_d = rowsum(dout * out) - dlse, as lse
  seed,    // uint32[4] or int64[2]: seed (low, high), offset
  slopes,  // ALiBi, float32 (heads) or (batch, heads)
  bias,
  dbias,  // attn_bias, broadcastable to (batch, heads, rows, keys), float or bool; *its gradient, of bias's own shape
  sink,
  dsink,  // learnable sink, float (heads); *its gradient
  cu_rows,
  cu_keys,  // varlen: int32 (batch + 1)
  used_rows,
  used_keys,  // int32 (batch): rows and keys beyond are absent
  lengths,
  cache_rows,
  leftpad,  // cache: int32 (batch)
  pages,    // int32 (batch, max_pages)
  new_k,
  new_v,  // keys and values to append to the caches
  cos,
  sin,  // rotary, (positions, rotary_dim / 2)
  rotated_q,
  rotated_k,  // *append: rotated copies
  part_out,
  part_lse,  // merge: partial results (splits, batch, rows, heads, dim), (splits, batch, heads, rows)
  COUNT
};
constexpr int ROLES = static_cast<int>(Role::COUNT);
FLASH_ATTN_API const char* role_name(Role role);

struct Place {
  DeviceKind kind = DeviceKind::cpu;
  // Which of several devices. There is one Metal GPU: of it, the generation where its tensor operations can be used (17: M5), else 0.
  int index = 0;
};

// A view of somebody's array. data may be null while a framework traces, and where an array has no elements.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::none;  // none: no such array in this call
  Place place;
  int rank = 0;
  int64_t shape[5] = {};
  int64_t stride[5] = {};  // in elements
  explicit operator bool() const { return dtype != DType::none; }
};
// A contiguous view on the CPU.
FLASH_ATTN_API Tensor tensor(const void* data, DType dtype, std::initializer_list<int64_t> shape);

struct Options {
  double dropout = 0;
  std::optional<double> scale;  // dim ** -0.5
  bool causal = false;
  int64_t left = -1, right = -1;  // window, -1: unlimited
  double softcap = 0;
  bool deterministic = false;
  int64_t chunk = 0;         // attention_chunk, 0: none
  bool has_offsets = false;  // q_offset and k_offset replace the bottom-right alignment
  int64_t q_offset = 0, k_offset = 0;
  int64_t max_rows = -1, max_keys = -1;  // varlen: the longest sequence
  DType out_dtype = DType::none;         // none: that of q; float32: partial results for merging
  int splits = 0;                        // hint, 0: chosen here
  std::optional<int64_t> cache_length;   // of every row when there is no array of lengths
  bool rotary_interleaved = true;
  // Bits of Roles to be written beyond the pass's own (probabilities, delta, dbias, dsink). out: of a forward pass, nobody will read
  // the lse, which then may hold anything.
  uint64_t wants = 0;
};
constexpr uint64_t bit(Role role) { return uint64_t{1} << static_cast<int>(role); }

// What the user said: arrays by role, and options. `function` is the name that errors carry.
struct Call {
  const char* function = "flash_attn";
  Pass pass = Pass::forward;
  Tensor arrays[ROLES] = {};
  Options options;
  Call(const char* name, Pass which) : function(name), pass(which) {}
  Tensor& operator[](Role role) { return arrays[static_cast<int>(role)]; }
  const Tensor& operator[](Role role) const { return arrays[static_cast<int>(role)]; }
};

// Every error of this library: what() is "[function] argument: expected ..., found ...".
struct FLASH_ATTN_API Error : std::runtime_error {
  enum class Kind { value, type, unsupported, runtime, interrupted } kind;
  Error(Kind which, const std::string& message) : std::runtime_error(message), kind(which) {}
};

// The shapes and dtypes of what a call writes, before there is memory for it; reads no array.
struct Output {
  Role role;
  DType dtype;
  std::vector<int64_t> shape;
};
FLASH_ATTN_API std::vector<Output> outputs(const Call& call);

// Bytes that run() wants on the arrays' device besides them; 0 on the CPU, which takes its own.
FLASH_ATTN_API int64_t workspace_bytes(const Call& call);

// Checks, plans and runs a call where its arrays are. On a GPU it is queued on `stream` (a CUstream; null: the default one), and
// `workspace` is workspace_bytes() of device memory, aligned to 256.
//   forward:  q, k, v (and caches, biases, ...) -> out, lse
//   backward: dout, q, k, v, out, lse -> dq, dk, dv (and dbias, dsink, delta where given)
//   append:   new_k, new_v into the caches k, v at `lengths`, rotated when cos and sin are given; q -> rotated_q
//   merge:    part_out, part_lse -> out, lse
FLASH_ATTN_API void run(const Call& call, void* workspace = nullptr, void* stream = nullptr);

// One line for each kernel that could take the call: the one that runs, and why the others do not.
FLASH_ATTN_API std::string explain(const Call& call);
}  // namespace fa
