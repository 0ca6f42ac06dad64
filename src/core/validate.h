// One call under examination. describe() makes a Check, which turns the call into a Problem or throws the first thing that is wrong.
// Only validate*.cpp include this.
#pragma once
#include <string>

#include "core/error.h"
#include "core/names.h"
#include "core/problem.h"

namespace fa {
constexpr int64_t MAX_LENGTH = int64_t{1} << 28;    // rows and keys of one sequence: positions and window limits stay far inside int32
constexpr int64_t MAX_ELEMENTS = int64_t{1} << 40;  // of one array: products of sizes, and offsets in results, stay inside int64
constexpr int64_t MAX_EXTENT = int64_t{1} << 57;    // elements between the first and the last along an axis
constexpr int64_t MAX_DIM = 512, MAX_SPLITS = 4096;

constexpr bool is_float(DType t) { return t == DType::f16 || t == DType::bf16 || t == DType::f32 || t == DType::f64; }
constexpr DType real_of(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }  // of lse, delta

struct Check {
  using Kind = Error::Kind;
  const Call& call;
  Problem p{};

  explicit Check(const Call& c);
  const Tensor& at(Role r) const { return call[r]; }
  bool has(Role r) const { return p.has(r); }
  bool packed() const { return has(Role::cu_rows); }
  Role first_role() const;  // the array that says dtype and device for all
  std::string name(Role r) const { return argument_name(call, r); }
  [[noreturn]] void bad(Kind kind, const std::string& argument, const std::string& message) const;
  [[noreturn]] void bad_value(Role r, const std::string& message) const { bad(Kind::value, name(r), message); }

  // validate.cpp: rules that several passes share
  void views() const;
  void one_place() const;
  const Tensor& need(Role r) const;
  void float_dtype(Role r) const;
  void dtype(Role r, DType expected) const;
  void same_dtype(Role r) const;
  void rank(Role r, int expected, const char* axes) const;
  void axis(Role r, int i, int64_t expected, const char* why) const;
  void shape(Role r, std::initializer_list<int64_t> expected) const;
  void last_contiguous(Role r) const;
  void contiguous(Role r) const;
  void writable(Role r) const;
  void int_vector(Role r, int64_t count, const char* axes) const;
  void length(Role r, int64_t n, const char* what) const;
  void head_dim(Role r, int64_t d) const;
  void head_count(Role r, int64_t batch, int64_t heads) const;
  Strides strides(Role r, bool packed) const;

  // validate_arrays.cpp: what the user passes
  void arrays();
  void keys_and_values();
  void cache();
  void options();
  void alignment();
  void dropout();
  void extras();
  void slopes();
  void bias();
  void sink();

  // validate_passes.cpp
  void given_outputs() const;
  void own_memory(Role r, Role source = Role::COUNT) const;
  void forward();
  void backward();
  void append();
  void new_keys();
  void rotary();
  void merge();
};
}  // namespace fa
