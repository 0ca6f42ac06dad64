// What Python sees of GPU backends: plans for any device as plain data, kernel texts, and the state of CUDA on this machine.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "bindings/shared.h"
#include "core/cache.h"
#include "core/error.h"
#include "core/kernel_text.h"
#include "core/sha256.h"
#include "cuda/driver/context.h"
#include "cuda/driver/kernels.h"

namespace nb = nanobind;

namespace fa::bindings {
namespace {
using Constants = std::vector<std::pair<std::string, int>>;

nb::dict launch_dict(const Launch& l) {
  nb::list constants, arguments;
  for (const Constant& c : l.constants) constants.append(nb::make_tuple(c.name, c.value));
  for (const Argument& a : l.arguments) arguments.append(nb::make_tuple(static_cast<int>(a.as), a.from.temporary));
  nb::dict d;
  d["kernel"] = l.kernel;
  d["source"] = l.source ? l.source : "";
  d["constants"] = constants;
  d["blocks"] = nb::make_tuple(l.grid.blocks[0], l.grid.blocks[1], l.grid.blocks[2]);
  d["threads"] = l.grid.threads[0] * l.grid.threads[1] * l.grid.threads[2];
  d["shared_bytes"] = l.shared_bytes;
  d["arguments"] = arguments;  // (role, temporary or -1)
  return d;
}

// The plan of a call on a device that need not exist: shapes are read, memory is not.
nb::dict plan_for(const std::string& function, int pass, const nb::list& arrays, const nb::tuple& options, const nb::tuple& device) {
  Call call(function.c_str(), static_cast<Pass>(pass));
  call.options = options_of(options);
  set_arrays(call, arrays);
  const auto number = [&](size_t i) { return nb::cast<int>(device[i]); };
  const Plan plan = make_plan(describe(call), Device{static_cast<DeviceKind>(number(0)), number(1), number(2), number(3)});
  nb::list launches, temporaries;
  for (const Launch& l : plan.launches) launches.append(launch_dict(l));
  for (const Temporary& t : plan.temporaries) temporaries.append(nb::make_tuple(static_cast<int>(t.dtype), t.count));
  nb::dict d;
  d["kernel"] = plan.row->name;
  d["launches"] = launches;
  d["temporaries"] = temporaries;
  return d;
}

// A string, or what its absence is called.
template <class F>
nb::object stated(const F& f) {
  try {
    return nb::cast(f());
  } catch (const Error& e) {
    return nb::cast(std::string(e.what()));
  }
}

nb::dict cuda_state() {
  using namespace cuda::driver;
  const auto version = [](int v) { return text(v / 1000, '.', v % 1000 / 10); };
  nb::dict d;
  d["driver"] = stated([&] { return text("CUDA ", version(driver_version())); });
  nb::list devices;
  try {
    for (int i = 0; i < device_count(); i++) {
      const Device device = device_of(i);
      devices.append(text(device_name(i), ", sm_", device.arch, ", ", device.cores, " multiprocessors, ", device.shared_bytes / 1024,
                          " KB of shared memory"));
    }
  } catch (const Error&) {  // said above
  }
  d["devices"] = devices;
  d["compiler"] = stated([&] { return text("NVRTC ", version(compiler().version), ", ", compiler().path); });
  const std::string folder = cache::folder();
  d["cache"] = folder.empty() ? text("none: ", cache::why_none()) : folder;
  return d;
}

nb::tuple cuda_compile(const std::string& source, const Constants& constants, int arch, const std::vector<std::string>& options) {
  std::vector<Constant> list;
  for (const auto& [name, value] : constants) list.push_back(Constant{name.c_str(), value});
  cuda::driver::Compiled made;
  {
    const Unlocked unlocked;
    made = cuda::driver::compile_kernel(source, list, arch, options);
  }
  return nb::make_tuple(nb::bytes(made.image.data(), made.image.size()), made.log);
}
}  // namespace

void bind_gpu(nb::module_& m) {
  m.def("kernel_text", kernel_text, nb::arg("backend"), nb::arg("source"));
  m.def("plan", plan_for, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("options"), nb::arg("device"));
  // entries of the cache of compiled kernels, named by the hash of what they are about
  m.def("remember", [](const std::string& about, const std::string& content) { cache::write(sha256(about), content); });
  m.def("remembered", [](const std::string& about) { return cache::read(sha256(about)); });
  m.def("cuda_state", cuda_state);
  m.def("cuda_compile", cuda_compile, nb::arg("source"), nb::arg("constants"), nb::arg("arch"), nb::arg("options"));
  std::vector<std::string> folders;
  for (nb::handle folder : nb::module_::import_("sys").attr("path"))
    if (nb::isinstance<nb::str>(folder) && nb::len(folder) > 0) folders.push_back(nb::cast<std::string>(folder));
  cuda::driver::look_in(folders);
}
}  // namespace fa::bindings
