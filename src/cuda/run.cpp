#include "cuda/run.h"

#include <cstddef>

#include "core/error.h"
#include "cuda/driver/context.h"
#include "cuda/driver/kernels.h"
#include "cuda/kernels/words/arrays.cuh"

namespace fa::cuda {
namespace {
#define AT_ROLE(role) static_assert(offsetof(Arrays, role) == sizeof(void*) * static_cast<size_t>(Role::role));
AT_ROLE(q)
AT_ROLE(k)
AT_ROLE(v) AT_ROLE(out) AT_ROLE(lse) AT_ROLE(probabilities) AT_ROLE(dout) AT_ROLE(dlse) AT_ROLE(dq) AT_ROLE(dk) AT_ROLE(dv) AT_ROLE(delta)
    AT_ROLE(seed) AT_ROLE(slopes) AT_ROLE(bias) AT_ROLE(dbias) AT_ROLE(sink) AT_ROLE(dsink) AT_ROLE(cu_rows) AT_ROLE(cu_keys)
        AT_ROLE(used_rows) AT_ROLE(used_keys) AT_ROLE(lengths) AT_ROLE(cache_rows) AT_ROLE(leftpad) AT_ROLE(pages) AT_ROLE(new_k)
            AT_ROLE(new_v) AT_ROLE(cos) AT_ROLE(sin) AT_ROLE(rotated_q) AT_ROLE(rotated_k) AT_ROLE(part_out) AT_ROLE(part_lse)
#undef AT_ROLE
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
