#include "cuda/run.h"

#include <cstddef>

#include "core/error.h"
#include "cuda/driver/context.h"
#include "cuda/driver/kernels.h"
#include "cuda/kernels/words/arrays.cuh"

namespace fa::cuda {
namespace {
#define IN_PLACE(role) (offsetof(Arrays, role) == sizeof(void*) * static_cast<size_t>(Role::role))
static_assert(IN_PLACE(q) && IN_PLACE(k) && IN_PLACE(v) && IN_PLACE(out) && IN_PLACE(lse) && IN_PLACE(probabilities) && IN_PLACE(dout) &&
              IN_PLACE(dlse) && IN_PLACE(dq) && IN_PLACE(dk) && IN_PLACE(dv) && IN_PLACE(delta) && IN_PLACE(seed) && IN_PLACE(slopes) &&
              IN_PLACE(bias) && IN_PLACE(dbias) && IN_PLACE(sink) && IN_PLACE(dsink) && IN_PLACE(cu_rows) && IN_PLACE(cu_keys) &&
              IN_PLACE(used_rows) && IN_PLACE(used_keys) && IN_PLACE(lengths) && IN_PLACE(cache_rows) && IN_PLACE(leftpad) &&
              IN_PLACE(pages) && IN_PLACE(new_k) && IN_PLACE(new_v) && IN_PLACE(cos) && IN_PLACE(sin) && IN_PLACE(rotated_q) &&
              IN_PLACE(rotated_k) && IN_PLACE(part_out) && IN_PLACE(part_lse));
#undef IN_PLACE
static_assert(offsetof(Arrays, total_rows) == sizeof(void*) * ROLES, "a role is missing in words/arrays.cuh");

// What is the same for all launches of a plan.
Arrays bounds_of(const Problem& problem, const Buffers& buffers) {
  const auto axis = [&](Role r, int i) { return static_cast<int>(buffers[r] ? buffers[r].shape[i] : 0); };
  Arrays a{};
  a.total_rows = problem.total_rows;
  a.total_keys = problem.total_keys;
  a.key_batches = axis(Role::k, 0);
  a.pages_columns = axis(Role::pages, 1);
  a.new_rows = problem.new_rows;
  a.positions = static_cast<int>(problem.cos_positions);
  for (int i = 0; i < 4; i++) a.bias_shape[i] = static_cast<int>(problem.bias_shape[i]);
  return a;
}

void launch(const Launch& l, driver::Function function, Arrays arrays, const Buffers& buffers, bool wide, Stream stream) {
  void** const pointers = reinterpret_cast<void**>(&arrays);
  for (const Argument& a : l.arguments) pointers[static_cast<int>(a.as)] = buffers.at(a.from);
  ParamsT<double> numbers = l.params;
  Params narrowed;
  if (!wide) narrowed = narrow(l.params);
  void* arguments[] = {wide ? static_cast<void*>(&numbers) : &narrowed, &arrays};
  const auto [blocks, threads] = l.grid;
  const auto u = [](int n) { return static_cast<unsigned>(n); };
  driver::check(driver::libcuda().launch(function, u(blocks[0]), u(blocks[1]), u(blocks[2]), u(threads[0]), u(threads[1]), u(threads[2]),
                                         u(l.shared_bytes), stream, arguments, nullptr),
                "launch of ", l.kernel, " (", l.source, ", ", blocks[0], " x ", blocks[1], " x ", blocks[2], " blocks of ", threads[0],
                " threads, ", l.shared_bytes, " bytes)");
}
}  // namespace

Device device(Place place) { return driver::device_of(place.index); }

void run(const Plan& plan, const Buffers& buffers, Stream stream, bool (*)()) {
  if (plan.launches.empty()) return;
  const int index = plan.problem.place.index;
  const driver::Current current(index);
  const std::vector<driver::Function> functions = driver::functions_of(plan.launches, current, driver::device_of(index).arch);
  const Arrays arrays = bounds_of(plan.problem, buffers);
  const bool wide = plan.problem.dtype == DType::f64;
  for (size_t i = 0; i < functions.size(); i++) launch(plan.launches[i], functions[i], arrays, buffers, wide, stream);
}

void read(const Tensor& array, void* to) {
  int64_t elements = 1;
  for (int i = 0; i < array.rank; i++) elements *= array.shape[i];
  if (elements == 0) return;
  const driver::Current current(array.place.index);
  driver::check(driver::libcuda().context_synchronize(), "FLASH_ATTENTION_CHECK=1 (which waits for the GPU)");
  driver::check(driver::libcuda().copy_to_host(to, reinterpret_cast<driver::Address>(array.data),
                                               static_cast<size_t>(elements * element_bytes(array.dtype))),
                "FLASH_ATTENTION_CHECK=1: copying values");
}
}  // namespace fa::cuda
