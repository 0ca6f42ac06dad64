// Python bindings, thin: views of arrays, prepare (describe, check, choose, plan), run, explain, the kernel tables. No logic.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "bindings/shared.h"
#include "core/error.h"
#include "core/execute.h"
#include "core/names.h"
#include "cpu/dispatch.h"
#include "cpu/run.h"

namespace nb = nanobind;

namespace fa {
using bindings::contiguous, bindings::interrupted, bindings::options_of, bindings::set_arrays, bindings::Unlocked;
namespace {
// A Tensor, with the Python buffer that keeps its memory.
struct View {
  Tensor tensor;
  Py_buffer buffer{};
  bool regular = true;  // strides are whole elements and memory is aligned to them; otherwise the array must be copied
  nb::object owner;     // of the memory, when it is no buffer's
  View() = default;
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  ~View() {
    if (buffer.obj) PyBuffer_Release(&buffer);
  }
};

// By the buffer protocol; the dtype comes from the caller, because buffers cannot say bfloat16.
std::unique_ptr<View> view_of_buffer(nb::handle object, int dtype, bool writable) {
  auto view = std::make_unique<View>();
  if (PyObject_GetBuffer(object.ptr(), &view->buffer, writable ? PyBUF_STRIDES | PyBUF_WRITABLE : PyBUF_STRIDES) != 0) {
    if (!writable) throw nb::python_error();
    PyErr_Clear();
    throw nb::value_error("expected a writable array, found a read-only one");
  }
  const Py_buffer& b = view->buffer;
  Tensor& t = view->tensor;
  t.data = b.buf;
  t.dtype = static_cast<DType>(dtype);
  t.rank = b.ndim;
  if (b.ndim > 5) throw nb::value_error("expected at most 5 axes, found more");
  view->regular = reinterpret_cast<uintptr_t>(b.buf) % static_cast<uintptr_t>(b.itemsize) == 0;
  for (int i = 0; i < b.ndim; i++) {
    t.shape[i] = b.shape[i], t.stride[i] = b.strides[i] / b.itemsize;
    if (b.shape[i] > 1 && b.strides[i] % b.itemsize != 0) view->regular = false;
  }
  if (writable && !view->regular) throw nb::value_error("expected memory aligned to its elements, as writing needs, found other memory");
  return view;
}

// By address; 0 while tracing. Strides count elements.
std::unique_ptr<View> view_of_address(uintptr_t data, int dtype, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                                      int kind, int index, nb::object owner) {
  auto view = std::make_unique<View>();
  view->owner = std::move(owner);
  Tensor& t = view->tensor;
  if (shape.size() > 5 || shape.size() != strides.size()) throw nb::value_error("expected at most 5 axes, found more");
  t.data = reinterpret_cast<void*>(data);
  t.dtype = static_cast<DType>(dtype);
  t.place = Place{static_cast<DeviceKind>(kind), index};
  t.rank = static_cast<int>(shape.size());
  for (int i = 0; i < t.rank; i++) t.shape[i] = shape[i], t.stride[i] = strides[i];
  return view;
}

// A call with its plan: made once, run once.
struct Prepared {
  std::string function;
  Call call;
  Plan plan;
  Prepared(std::string name, Pass pass) : function(std::move(name)), call(function.c_str(), pass) {}
};

}  // namespace

void bindings::set_arrays(Call& call, const nb::list& arrays) {
  for (nb::handle item : arrays) {
    const auto pair = nb::cast<nb::tuple>(item);
    call.arrays[nb::cast<int>(pair[0])] = nb::cast<View&>(pair[1]).tensor;
  }
}

namespace {

// describe, check the values where the host can read them, choose and plan; `plain`: by the backend's plain kernel
std::unique_ptr<Prepared> prepare_call(const std::string& function, int pass, const nb::list& arrays, const nb::tuple& options,
                                       bool plain) {
  auto p = std::make_unique<Prepared>(function, static_cast<Pass>(pass));
  p->call.options = options_of(options);
  set_arrays(p->call, arrays);
  p->plan = prepare(p->call, device_of(p->call));
  if (plain) p->plan = plain_plan(p->plan.problem, device_of(p->call));
  return p;
}

// shapes only, for arrays without memory (tracing)
std::vector<std::tuple<int, int, std::vector<int64_t>>> outputs_list(const Problem& problem, const Call& call) {
  std::vector<std::tuple<int, int, std::vector<int64_t>>> list;
  for (const Output& o : outputs_of(problem, call)) list.emplace_back(static_cast<int>(o.role), static_cast<int>(o.dtype), o.shape);
  return list;
}

// temporaries: Views of Prepared.temporaries; stream: the caller's, by address
void run_prepared(Prepared& p, const nb::list& outputs, bool main_thread, const nb::list& temporaries, uintptr_t stream) {
  set_arrays(p.call, outputs);
  std::vector<void*> memory;
  for (nb::handle view : temporaries) memory.push_back(nb::cast<View&>(view).tensor.data);
  const Unlocked unlocked;
  execute(p.plan, p.call, memory, reinterpret_cast<Stream>(stream), main_thread ? interrupted : nullptr);
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& e) {
    if (e.kind == Error::Kind::interrupted && PyErr_Occurred()) return;  // KeyboardInterrupt, as the signal's handler raised it
    PyObject* types[] = {PyExc_ValueError, PyExc_TypeError, PyExc_NotImplementedError, PyExc_RuntimeError, PyExc_KeyboardInterrupt};
    PyErr_SetString(types[static_cast<int>(e.kind)], e.what());
  }
}

nb::list kernel_table() {
  nb::list rows;
  for (DeviceKind kind : {DeviceKind::cpu, DeviceKind::cuda, DeviceKind::metal, DeviceKind::rocm})
    for (const Backend* backend : backends_of(kind))
      for (const Kernel* k = backend->first; k != backend->first + backend->count; k++) {
        nb::dict row;
        row["backend"] = backend->name;
        row["name"] = k->name;
        row["pass"] = static_cast<int>(k->pass);
        row["arch_first"] = k->arch_first;
        row["dtypes"] = k->dtypes;
        row["max_dim"] = k->max_dim;
        row["features"] = k->features;
        row["needs"] = k->needs;
        rows.append(row);
      }
  return rows;
}
}  // namespace
}  // namespace fa

NB_MODULE(_core, m) {
  using namespace fa;
  nb::set_leak_warnings(false);
  nb::register_exception_translator(translate);

  nb::class_<View>(m, "View")
      .def_prop_ro("shape", [](const View& v) { return std::vector<int64_t>(v.tensor.shape, v.tensor.shape + v.tensor.rank); })
      .def_prop_ro("dtype", [](const View& v) { return static_cast<int>(v.tensor.dtype); })
      .def_prop_ro("last_axis_contiguous", [](const View& v) { return v.regular && contiguous(v.tensor, true); })
      .def_prop_ro("contiguous", [](const View& v) { return v.regular && contiguous(v.tensor, false); });
  m.def("view_of_buffer", view_of_buffer, nb::arg("object"), nb::arg("dtype"), nb::arg("writable") = false);
  m.def("view_of_address", view_of_address, nb::arg("data"), nb::arg("dtype"), nb::arg("shape"), nb::arg("strides"), nb::arg("device") = 0,
        nb::arg("index") = 0, nb::arg("owner") = nb::none());
  bindings::bind_exchange(m);

  nb::class_<Prepared>(m, "Prepared")
      .def_prop_ro("outputs", [](const Prepared& p) { return outputs_list(p.plan.problem, p.call); })
      .def_prop_ro("kernel", [](const Prepared& p) { return std::string(p.plan.row->name); })
      .def_prop_ro("backend", [](const Prepared& p) { return std::string(p.plan.backend->name); })
      .def_prop_ro("pass_", [](const Prepared& p) { return static_cast<int>(p.plan.problem.pass); })
      .def_prop_ro("launches", [](const Prepared& p) { return bindings::launches_of(p.plan); })
      .def_prop_ro("temporaries",
                   [](const Prepared& p) {  // (dtype, count) of each that run() wants
                     std::vector<std::tuple<int, int64_t>> list;
                     for (const Temporary& t : wanted_temporaries(p.plan)) list.emplace_back(static_cast<int>(t.dtype), t.count);
                     return list;
                   })
      .def_prop_ro("temporary_bytes", [](const Prepared& p) {
        int64_t bytes = 0;
        for (const Temporary& t : p.plan.temporaries) bytes += t.count * element_bytes(t.dtype);
        return bytes;
      });
  m.def("prepare", prepare_call, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("options"), nb::arg("plain") = false);
  m.def("run", run_prepared, nb::arg("prepared"), nb::arg("outputs"), nb::arg("main_thread"), nb::arg("temporaries") = nb::list(),
        nb::arg("stream") = 0);
  m.def("describe", [](const std::string& function, int pass, const nb::list& arrays, const nb::tuple& options) {
    Call call(function.c_str(), static_cast<Pass>(pass));
    call.options = options_of(options);
    set_arrays(call, arrays);
    return outputs_list(describe(call), call);
  });
  m.def("explain", [](const std::string& function, int pass, const nb::list& arrays, const nb::tuple& options) {
    Call call(function.c_str(), static_cast<Pass>(pass));
    call.options = options_of(options);
    set_arrays(call, arrays);
    return explain(call);
  });
  m.def("argument_name", [](const std::string& function, int role) {
    return argument_name(Call(function.c_str(), Pass::forward), static_cast<Role>(role));
  });
  m.def("kernel_table", kernel_table);
  bindings::bind_gpu(m);
  bindings::bind_launches(m);
  m.def("isa", [] { return std::string(cpu::isa().name); });
  m.def("threads", [] { return cpu::device().cores; });
  std::vector<std::string> roles;
  for (int i = 0; i < ROLES; i++) roles.emplace_back(role_name(static_cast<Role>(i)));
  m.attr("ROLES") = nb::cast(roles);
}
