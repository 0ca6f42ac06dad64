// Calls that are right, one of each kind, for tests that break one thing of them.
#pragma once
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <vector>

#include "flash_attn/flash_attn.h"

namespace fa::calls {
constexpr int64_t BATCH = 2, ROWS = 5, KEYS = 7, HEADS = 4, KV_HEADS = 2, DIM = 8, PAGE = 4;

// An array with zeroed memory of its own, which lives as long as the program.
inline Tensor array(DType dtype, std::initializer_list<int64_t> shape) {
  static std::deque<std::vector<double>> memory;
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return tensor(memory.emplace_back(static_cast<size_t>(count) + 1).data(), dtype, shape);
}
inline Tensor ints(std::initializer_list<int32_t> values) {
  Tensor t = array(DType::i32, {static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); i++) static_cast<int32_t*>(t.data)[i] = values.begin()[i];
  return t;
}

inline Call dense_of(DType dtype) {
  Call c("flash_attn_func", Pass::forward);
  c[Role::q] = array(dtype, {BATCH, ROWS, HEADS, DIM});
  c[Role::k] = array(dtype, {BATCH, KEYS, KV_HEADS, DIM});
  c[Role::v] = array(dtype, {BATCH, KEYS, KV_HEADS, DIM});
  return c;
}
inline Call dense() { return dense_of(DType::f32); }
// rows 2 + 3, keys 3 + 4
inline Call varlen() {
  Call c("flash_attn_varlen_func", Pass::forward);
  c[Role::q] = array(DType::f32, {ROWS, HEADS, DIM});
  c[Role::k] = array(DType::f32, {KEYS, KV_HEADS, DIM});
  c[Role::v] = array(DType::f32, {KEYS, KV_HEADS, DIM});
  c[Role::cu_rows] = ints({0, 2, 5});
  c[Role::cu_keys] = ints({0, 3, 7});
  c.options.max_rows = 3;
  c.options.max_keys = 4;
  return c;
}
// packed rows over 5 pages of 4 keys, at most 2 a sequence
inline Call paged_varlen() {
  Call c = varlen();
  for (Role r : {Role::k, Role::v}) c[r] = array(DType::f32, {5, PAGE, KV_HEADS, DIM});
  c[Role::pages] = ints({4, 1, 0, 2});
  c[Role::pages].rank = 2;
  c[Role::pages].shape[0] = c[Role::pages].shape[1] = 2;
  c[Role::pages].stride[0] = 2, c[Role::pages].stride[1] = 1;
  return c;
}
// reads a cache of 7 slots
inline Call cache() {
  Call c = dense();
  c.function = "flash_attn_with_kvcache";
  c[Role::lengths] = ints({3, 4});
  return c;
}
// appends 2 keys, rotated, then attends
inline Call growing() {
  Call c = cache();
  c[Role::new_k] = array(DType::f32, {BATCH, 2, KV_HEADS, DIM});
  c[Role::new_v] = array(DType::f32, {BATCH, 2, KV_HEADS, DIM});
  c[Role::cos] = array(DType::f32, {16, DIM / 2});
  c[Role::sin] = array(DType::f32, {16, DIM / 2});
  return c;
}
inline Call paged() {
  Call c = cache();
  for (Role r : {Role::k, Role::v, Role::pages}) c[r] = paged_varlen()[r];
  return c;
}
inline Call append() {
  Call c = growing();
  c.pass = Pass::append;
  c[Role::rotated_q] = array(DType::f32, {BATCH, ROWS, HEADS, DIM});
  return c;
}
inline Call backward() {
  Call c = dense();
  c.function = "backward";
  c.pass = Pass::backward;
  c[Role::dout] = array(DType::f32, {BATCH, ROWS, HEADS, DIM});
  c[Role::out] = array(DType::f32, {BATCH, ROWS, HEADS, DIM});
  c[Role::lse] = array(DType::f32, {BATCH, HEADS, ROWS});
  return c;
}
inline Call merge() {
  Call c("merge", Pass::merge);
  c[Role::part_out] = array(DType::f32, {3, BATCH, ROWS, HEADS, DIM});
  c[Role::part_lse] = array(DType::f32, {3, BATCH, HEADS, ROWS});
  return c;
}
}  // namespace fa::calls
