// describe(): every check of shapes, strides, dtypes and options, and every message about them. Reads no array. Here: the flow, and
// the rules that several arrays share; validate_arrays.cpp: each array and option; validate_passes.cpp: what a pass needs besides.
#include "core/validate.h"

#include <algorithm>

namespace fa {
Check::Check(const Call& c) : call(c) {
  p.function = c.function;
  p.pass = c.pass;
  for (int i = 0; i < ROLES; i++)
    if (c.arrays[i]) p.given |= uint64_t{1} << i;
}

void Check::bad(Kind kind, const std::string& argument, const std::string& message) const { fail(kind, call.function, argument, message); }

Role Check::first_role() const {
  if (call.pass == Pass::merge) return Role::part_out;
  return call.pass == Pass::append ? Role::new_k : Role::q;
}

// What every view must be before anything is computed from its numbers.
void Check::views() const {
  for (uint64_t left = p.given; left != 0; left &= left - 1) {
    const Role r = static_cast<Role>(__builtin_ctzll(left));
    const Tensor& t = at(r);
    if (t.rank < 0 || t.rank > 5) bad_value(r, text("expected at most 5 axes, found ", t.rank));
    int64_t elements = 1;
    for (int i = 0; i < t.rank; i++) {
      if (t.shape[i] < 0) bad_value(r, text("expected sizes of 0 or more, found shape ", shape_text(t)));
      // an empty axis counts as one, so that every partial product is bounded
      if (__builtin_mul_overflow(elements, std::max<int64_t>(t.shape[i], 1), &elements) || elements > MAX_ELEMENTS)
        bad_value(r, text("expected at most 2^40 elements, found shape ", shape_text(t)));
    }
    for (int i = 0; i < t.rank; i++) {
      int64_t extent = 0;
      if (t.shape[i] > 1 && (__builtin_mul_overflow(t.stride[i], t.shape[i] - 1, &extent) || extent > MAX_EXTENT || extent < -MAX_EXTENT))
        bad_value(r, text("expected strides inside the address space, found ", t.stride[i], " elements on axis ", i));
    }
  }
}

void Check::one_place() const {
  const Place where = at(first_role()).place;
  for (uint64_t left = p.given; left != 0; left &= left - 1) {
    const Role r = static_cast<Role>(__builtin_ctzll(left));
    const Place place = at(r).place;
    if (place.kind != where.kind || place.index != where.index)
      bad_value(r, text("expected an array on the device of ", name(first_role()), ", found one on another device"));
  }
}

const Tensor& Check::need(Role r) const {
  if (!has(r)) bad(Kind::type, name(r), "expected an array, found none");
  return at(r);
}

void Check::float_dtype(Role r) const {
  if (!is_float(at(r).dtype))
    bad(Kind::type, name(r), text("expected dtype float16, bfloat16, float32 or float64, found ", dtype_name(at(r).dtype)));
}

void Check::dtype(Role r, DType expected) const {
  const DType found = at(r).dtype;
  if (found != expected) bad(Kind::type, name(r), text("expected dtype ", dtype_name(expected), ", found ", dtype_name(found)));
}

void Check::same_dtype(Role r) const {
  const DType found = at(r).dtype;
  if (found == p.dtype) return;
  const Kind kind = is_float(found) ? Kind::value : Kind::type;
  bad(kind, name(r), text("expected dtype ", dtype_name(p.dtype), " as ", name(first_role()), ", found ", dtype_name(found)));
}

void Check::rank(Role r, int expected, const char* axes) const {
  const Tensor& t = at(r);
  if (t.rank != expected)
    bad_value(r, text("expected axes ", axes, ": must be ", expected, "D, found ", t.rank, "D (shape ", shape_text(t), ")"));
}

void Check::axis(Role r, int i, int64_t expected, const char* why) const {
  const Tensor& t = at(r);
  if (t.shape[i] != expected)
    bad_value(r, text("expected ", expected, " on axis ", i, " (", why, "), found ", t.shape[i], " (shape ", shape_text(t), ")"));
}

void Check::shape(Role r, std::initializer_list<int64_t> expected) const {
  const Tensor& t = at(r);
  if (t.rank != static_cast<int>(expected.size()) || !std::equal(expected.begin(), expected.end(), t.shape))
    bad_value(r, text("expected shape ", shape_text(expected.begin(), static_cast<int>(expected.size())), ", found ", shape_text(t)));
}

void Check::last_contiguous(Role r) const {
  const Tensor& t = at(r);
  if (t.rank > 0 && t.shape[t.rank - 1] > 1 && t.stride[t.rank - 1] != 1)
    bad_value(r, text("expected a contiguous last axis, found a stride of ", t.stride[t.rank - 1], " elements"));
}

void Check::contiguous(Role r) const {
  const Tensor& t = at(r);
  int64_t expected = 1;
  for (int i = t.rank - 1; i >= 0; i--) {
    if (t.shape[i] > 1 && t.stride[i] != expected)
      bad_value(r, text("expected a contiguous array, found a stride of ", t.stride[i], " elements on axis ", i));
    expected *= t.shape[i];
  }
}

// Every element has a place of its own: no axis steps inside what the axes of smaller steps span. Holds for all that slicing,
// transposing and reversing make of a plain array, and fails for broadcast and sliding-window views.
void Check::writable(Role r) const {
  const Tensor& t = at(r);
  last_contiguous(r);
  const auto step = [&](int i) { return t.stride[i] < 0 ? -t.stride[i] : t.stride[i]; };
  int order[5] = {}, n = 0;  // axes, smallest step first
  for (int i = 0; i < t.rank; i++) {
    if (t.shape[i] == 0) return;
    if (t.shape[i] == 1) continue;
    int place = n++;
    for (; place > 0 && step(order[place - 1]) > step(i); place--) order[place] = order[place - 1];
    order[place] = i;
  }
  int64_t span = 1;  // elements from the first to the last of the axes so far
  for (int c = 0; c < n; c++) {
    const int i = order[c];
    if (step(i) < span)
      bad_value(r, text("expected an element of its own for each index, as writing needs, found overlapping ones (stride ", t.stride[i],
                        " on axis ", i, ", shape ", shape_text(t), ")"));
    span += step(i) * (t.shape[i] - 1);
  }
}

void Check::int_vector(Role r, int64_t count, const char* axes) const {
  dtype(r, DType::i32);
  rank(r, 1, axes);
  if (at(r).shape[0] != count) bad_value(r, text("expected ", axes, " with ", count, " entries, found ", at(r).shape[0]));
  contiguous(r);
}

void Check::length(Role r, int64_t n, const char* what) const {
  if (n > MAX_LENGTH) bad_value(r, text("expected at most ", MAX_LENGTH, " ", what, ", found ", n));
}

void Check::head_dim(Role r, int64_t d) const {
  if (d < 1 || d > MAX_DIM) bad_value(r, text("expected a head dim of 1 to ", MAX_DIM, ", found ", d, " (shape ", shape_text(at(r)), ")"));
}

// Both are at most MAX_ELEMENTS: their product may still pass int64, so it is never formed.
void Check::head_count(Role r, int64_t batch, int64_t heads) const {
  if (heads < 1) bad_value(r, text("expected at least one head, found shape ", shape_text(at(r))));
  if (heads > INT32_MAX || batch > INT32_MAX / heads) bad_value(r, text("expected batch * heads below 2^31, found ", batch, " * ", heads));
}

// packed: (rows, heads, dim)
Strides Check::strides(Role r, bool packed) const {
  const Tensor& t = at(r);
  return packed ? Strides{0, t.stride[0], t.stride[1]} : Strides{t.stride[0], t.stride[1], t.stride[2]};
}

Problem describe(const Call& call) {
  Check check(call);
  check.views();
  switch (call.pass) {
    case Pass::forward: check.forward(); break;
    case Pass::backward: check.backward(); break;
    case Pass::append: check.append(); break;
    case Pass::merge: check.merge(); break;
  }
  check.one_place();
  check.p.place = call[check.first_role()].place;
  return check.p;
}
}  // namespace fa
