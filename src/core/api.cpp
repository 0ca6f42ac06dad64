// The public C++ functions: thin over prepare() and execute().
#include "core/error.h"
#include "core/execute.h"
#include "core/names.h"
#include "cpu/run.h"

namespace fa {
Tensor tensor(const void* data, DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t;
  if (shape.size() > 5)
    throw Error(Error::Kind::value, "[tensor] shape: expected at most 5 axes, found " + std::to_string(shape.size()) + ".");
  t.data = const_cast<void*>(data);
  t.dtype = dtype;
  t.rank = static_cast<int>(shape.size());
  uint64_t step = 1;  // may wrap for sizes that describe() refuses
  for (int i = t.rank - 1; i >= 0; i--) {
    t.shape[i] = shape.begin()[i];
    t.stride[i] = static_cast<int64_t>(step);
    step *= static_cast<uint64_t>(t.shape[i]);
  }
  return t;
}

Device device_of(Place place) {
  if (place.kind == DeviceKind::cpu) return cpu::device();
  return Device{place.kind, 0, 0, 0};
}

Plan prepare(const Call& call, const Device& device) {
  const Problem problem = describe(call);
  if (device.kind == DeviceKind::cpu) check_values(call, problem);
  return make_plan(problem, device);
}

void execute(const Plan& plan, const Call& call, bool (*interrupted)()) {
  for (const Output& o : outputs_of(plan.problem, call))
    if (!call[o.role]) fail(Error::Kind::type, call.function, argument_name(call, o.role), "expected an array to write to, found none");
  cpu::run(plan, Buffers{call.arrays, {}}, interrupted);
}

std::vector<Output> outputs(const Call& call) { return outputs_of(describe(call), call); }

void run(const Call& call) {
  const Plan plan = prepare(call, device_of(call[Role::q].place));
  if (call.pass != Pass::forward || !call[Role::new_k]) return execute(plan, call, nullptr);
  // new keys first: they are written into the caches, and the queries turned, before anything attends
  Call append(call.function, Pass::append);
  for (Role r : {Role::q, Role::k, Role::v, Role::new_k, Role::new_v, Role::cos, Role::sin, Role::lengths, Role::cache_rows, Role::leftpad,
                 Role::pages})
    append[r] = call[r];
  append.options = call.options;
  std::vector<char> rotated;
  Call attend = call;
  if (call[Role::cos]) {
    const Tensor& q = call[Role::q];
    rotated.resize(static_cast<size_t>(q.shape[0] * q.shape[1] * q.shape[2] * q.shape[3] * element_bytes(q.dtype)));
    append[Role::rotated_q] = tensor(rotated.data(), q.dtype, {q.shape[0], q.shape[1], q.shape[2], q.shape[3]});
    attend[Role::q] = append[Role::rotated_q];
  }
  execute(prepare(append, device_of(call[Role::q].place)), append, nullptr);
  execute(prepare(attend, device_of(call[Role::q].place)), attend, nullptr);
}

std::string explain(const Call& call) { return explain(describe(call), device_of(call[Role::q].place)); }
}  // namespace fa
