// The public C++ functions: thin over prepare() and execute().
#include <algorithm>
#include <utility>
#include <vector>

#include "core/env.h"
#include "core/error.h"
#include "core/execute.h"
#include "core/names.h"

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

Device device_of(const Call& call) {
  Place place;
  for (const Tensor& t : call.arrays)
    if (t) {
      place = t.place;
      break;
    }
  const auto backends = backends_of(place.kind);
  return backends.empty() ? Device{place.kind, 0, 0, 0} : backends.front()->device(place);
}

namespace {
// The arrays that check_values() reads, copied to the host.
void check_copies(const Call& call, const Problem& problem, void (*read)(const Tensor&, void*)) {
  Call copied = call;
  std::vector<std::vector<int32_t>> memory;
  for (Role r :
       {Role::cu_rows, Role::cu_keys, Role::used_rows, Role::used_keys, Role::lengths, Role::cache_rows, Role::leftpad, Role::pages})
    if (Tensor& t = copied[r]) {
      int64_t last = 0;  // of a table whose rows may lie apart
      for (int i = 0; i < t.rank; i++) last += (t.shape[i] - 1) * t.stride[i];
      memory.emplace_back(static_cast<size_t>(std::max<int64_t>(last + 1, 0)));
      Tensor all = t;
      all.rank = 1;
      all.shape[0] = static_cast<int64_t>(memory.back().size());
      if (!memory.back().empty()) read(all, memory.back().data());
      t.data = memory.back().data();
    }
  check_values(copied, problem);
}
}  // namespace

Plan prepare(const Call& call, const Device& device) {
  const Problem problem = describe(call);
  const auto backends = backends_of(device.kind);
  const auto read = backends.empty() ? nullptr : backends.front()->read;
  if (device.kind == DeviceKind::cpu) check_values(call, problem);
  if (read) check_memory(call, problem);
  if (read && env::check()) check_copies(call, problem, read);
  return make_plan(problem, device);
}

std::span<const Temporary> wanted_temporaries(const Plan& plan) {
  if (plan.backend->allocates) return {};
  return plan.temporaries;
}

void execute(const Plan& plan, const Call& call, std::span<void* const> temporaries, Stream stream, bool (*interrupted)()) {
  const auto bad = [&](Error::Kind kind, const std::string& argument, const std::string& message) {
    fail(kind, call.function, argument, message);
  };
  for (const Output& o : outputs_of(plan.problem, call))
    if (!call[o.role]) bad(Error::Kind::type, argument_name(call, o.role), "expected an array to write to, found none");
  if (!plan.backend->run)
    bad(Error::Kind::runtime, "device", text("expected Python, which alone can launch ", plan.backend->name, " kernels, found C++"));
  const size_t expected = wanted_temporaries(plan).size();
  if (temporaries.size() != expected) bad(Error::Kind::runtime, "temporaries", text("expected ", expected, ", found ", temporaries.size()));
  plan.backend->run(plan, Buffers{call.arrays, temporaries}, stream, interrupted);
}

std::vector<Output> outputs(const Call& call) { return outputs_of(describe(call), call); }

namespace {
constexpr int64_t aligned(int64_t bytes) { return (bytes + TEMPORARY_ALIGNMENT - 1) / TEMPORARY_ALIGNMENT * TEMPORARY_ALIGNMENT; }
int64_t bytes_of(const Temporary& t) { return aligned(t.count * element_bytes(t.dtype)); }
int64_t bytes_of(const Plan& plan) {
  int64_t bytes = 0;
  for (const Temporary& t : wanted_temporaries(plan)) bytes += bytes_of(t);
  return bytes;
}
void execute_in(char* workspace, const Plan& plan, const Call& call, Stream stream) {
  std::vector<void*> temporaries;
  for (const Temporary& t : wanted_temporaries(plan)) {
    temporaries.push_back(workspace);
    workspace += bytes_of(t);
  }
  execute(plan, call, temporaries, stream, nullptr);
}

// A forward with new keys is two calls: they are written into the caches, and the queries turned, before anything attends.
bool appends(const Call& call) { return call.pass == Pass::forward && call[Role::new_k]; }
int64_t rotated_bytes(const Call& call) {
  const Tensor& q = call[Role::q];
  return call[Role::cos] ? q.shape[0] * q.shape[1] * q.shape[2] * q.shape[3] * element_bytes(q.dtype) : 0;
}
std::pair<Call, Call> append_and_attend(const Call& call, void* rotated) {
  std::pair<Call, Call> both{Call(call.function, Pass::append), call};
  auto& [append, attend] = both;
  for (Role r : {Role::q, Role::k, Role::v, Role::new_k, Role::new_v, Role::cos, Role::sin, Role::lengths, Role::cache_rows, Role::leftpad,
                 Role::pages})
    append[r] = call[r];
  append.options = call.options;
  if (call[Role::cos]) {
    const Tensor& q = call[Role::q];
    Tensor turned = tensor(rotated, q.dtype, {q.shape[0], q.shape[1], q.shape[2], q.shape[3]});
    turned.place = q.place;
    append[Role::rotated_q] = attend[Role::q] = turned;
  }
  return both;
}
}  // namespace

int64_t workspace_bytes(const Call& call) {
  const Device device = device_of(call);
  const Plan plan = make_plan(describe(call), device);
  if (!appends(call) || plan.backend->allocates) return bytes_of(plan);
  const auto [append, attend] = append_and_attend(call, nullptr);
  const int64_t append_bytes = bytes_of(make_plan(describe(append), device)), attend_bytes = bytes_of(make_plan(describe(attend), device));
  return aligned(rotated_bytes(call)) + std::max(append_bytes, attend_bytes);
}

void run(const Call& call, void* workspace, void* stream) {
  const Device device = device_of(call);
  const Plan plan = prepare(call, device);
  char* memory = static_cast<char*>(workspace);
  if (!memory && !plan.backend->allocates && workspace_bytes(call) > 0)
    fail(Error::Kind::value, call.function, "workspace", text("expected ", workspace_bytes(call), " bytes on the device, found none"));
  if (!appends(call)) return execute_in(memory, plan, call, stream);
  std::vector<char> own(static_cast<size_t>(plan.backend->allocates ? rotated_bytes(call) : 0));
  const auto [append, attend] = append_and_attend(call, plan.backend->allocates ? own.data() : memory);
  if (!plan.backend->allocates) memory += aligned(rotated_bytes(call));
  execute_in(memory, prepare(append, device), append, stream);
  execute_in(memory, prepare(attend, device), attend, stream);
}

std::string explain(const Call& call) { return explain(describe(call), device_of(call)); }
}  // namespace fa
