// A whole call in one step, for frameworks with DLPack's C exchange table (torch >= 2.10): views, checks, plan, memory and run without a
// Python object for each of them. The same flow as engine.run, whose Python costs more than a small attention does.
#include <nanobind/stl/string.h>

#include <array>
#include <memory>
#include <vector>

#include "bindings/shared.h"
#include "core/error.h"
#include "core/execute.h"
#include "core/names.h"

namespace nb = nanobind;

namespace fa::bindings {
namespace {
// DLPack's C ABI, version 1 (github.com/dmlc/dlpack): what we read of it.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct ExchangeTable {
  uint32_t major, minor;
  const ExchangeTable* older;
  void* managed[3];  // allocate, export, import: the framework's own memory serves us better
  int (*view)(void* object, DLTensor* tensor);
  int (*current_stream)(int device_type, int32_t device_id, void** stream);
};

DType dtype_of(const DLTensor& t) {
  struct Known {
    uint8_t code, bits;
    DType dtype;
  };
  constexpr Known known[] = {{2, 32, DType::f32}, {4, 16, DType::bf16}, {2, 16, DType::f16}, {2, 64, DType::f64},
                             {0, 32, DType::i32}, {0, 64, DType::i64},  {1, 32, DType::u32}, {6, 8, DType::u8}};
  for (const Known& k : known)
    if (k.code == t.code && k.bits == t.bits && t.lanes == 1) return k.dtype;
  return DType::none;
}

constexpr int DEVICE_TYPES[] = {1, 2, 8, 10};  // DLPack's, by DeviceKind
DeviceKind device_kind(const DLTensor& t) {
  for (DeviceKind kind : {DeviceKind::cuda, DeviceKind::metal, DeviceKind::rocm})
    if (DEVICE_TYPES[static_cast<int>(kind)] == t.device_type) return kind;
  return DeviceKind::cpu;  // 1, and 3: pinned host memory
}

// Roles that kernels read through strides; all others are contiguous (frameworks/base.py, STRIDED).
constexpr uint64_t STRIDED = bit(Role::q) | bit(Role::k) | bit(Role::v) | bit(Role::out) | bit(Role::dout) | bit(Role::dq) | bit(Role::dk) |
                             bit(Role::dv) | bit(Role::bias) | bit(Role::new_k) | bit(Role::new_v) | bit(Role::pages);

std::string text_of(nb::handle object) { return nb::cast<std::string>(nb::str(object)); }
[[noreturn]] void refuse(Error::Kind kind, const Call& call, Role role, const std::string& message) {
  throw Error(kind, text("[", call.function, "] ", argument_name(call, role), ": ", message, "."));
}

class Exchange {
 public:
  // exact: the types whose objects are arrays with memory and nothing else; the first is the base of all. dtypes: the framework's, by
  // DType.
  Exchange(const nb::tuple& exact, const nb::object& empty_like, const nb::tuple& dtypes, const std::string& framework)
      : exact_(exact), empty_like_(empty_like), dtypes_(dtypes), name_(framework) {
    const nb::object capsule = nb::getattr(exact[0], "__dlpack_c_exchange_api__");
    table_ = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table_) throw nb::python_error();
    while (table_ && table_->major != 1) table_ = table_->older;
    if (!table_ || !table_->view) throw nb::value_error("expected version 1 of DLPack's exchange table, found another");
  }

  // Runs a pass on {role: array}; returns {role: array} of what it wrote. `written`: bits of roles that are to be written in place.
  nb::dict run(const std::string& function, int pass, const nb::dict& arrays, const nb::tuple& options, uint64_t written,
               bool main_thread) {
    Taken taken = take(function, pass, arrays, options, written);
    const Plan plan = prepare(taken.call, device_of(taken.call));
    nb::dict results;
    for (const Output& o : outputs_of(plan.problem, taken.call)) {
      const nb::int_ role(static_cast<int>(o.role));
      if (taken.call[o.role]) {
        results[role] = arrays[role];
        continue;
      }
      nb::object array = allocate(taken, o);
      taken.call[o.role] = view(taken.call, o.role, array.ptr());
      results[role] = array;
    }
    std::vector<void*> temporaries;
    for (const Temporary& t : wanted_temporaries(plan)) {
      taken.copies.push_back(allocate(taken, Output{Role::COUNT, t.dtype, {t.count}}));
      temporaries.push_back(view(taken.call, Role::COUNT, taken.copies.back().ptr()).data);
    }
    const Stream stream = stream_of(taken.call[first_role(taken.call)].place);
    {
      nb::gil_scoped_release released;
      execute(plan, taken.call, temporaries, stream, main_thread ? interrupted : nullptr);
    }
    return results;
  }

  // All checks of a pass, and nothing else.
  void check(const std::string& function, int pass, const nb::dict& arrays, const nb::tuple& options, uint64_t written) {
    const Taken taken = take(function, pass, arrays, options, written);
    prepare(taken.call, device_of(taken.call));
  }

  // Whether all arrays are of the exact types: others may hide anything, and belong to the framework's dispatcher.
  bool plain(const nb::dict& arrays) const {
    PyObject *key, *object;
    for (Py_ssize_t at = 0; PyDict_Next(arrays.ptr(), &at, &key, &object);) {
      bool found = false;
      for (nb::handle type : exact_) found = found || reinterpret_cast<PyObject*>(Py_TYPE(object)) == type.ptr();
      if (!found) return false;
    }
    return true;
  }

 private:
  struct Taken {
    Call call;
    PyObject* objects[ROLES] = {};  // borrowed from the caller's dictionary
    std::vector<nb::object> copies;
  };
  Taken take(const std::string& function, int pass, const nb::dict& arrays, const nb::tuple& options, uint64_t written) const {
    Taken taken{Call(function.c_str(), static_cast<Pass>(pass)), {}, {}};
    Call& call = taken.call;
    call.options = options_of(options);
    PyObject *key, *object;
    for (Py_ssize_t at = 0; PyDict_Next(arrays.ptr(), &at, &key, &object);) {
      const Role role = static_cast<Role>(PyLong_AsLong(key));
      Tensor t = view(call, role, object);
      if (!contiguous(t, (STRIDED & bit(role)) != 0) && !(written & bit(role))) {
        taken.copies.push_back(nb::handle(object).attr("contiguous")());
        t = view(call, role, taken.copies.back().ptr());
      }
      call[role] = t;
      taken.objects[static_cast<int>(role)] = object;
    }
    return taken;
  }
  static Role first_role(const Call& call) { return call[Role::q] ? Role::q : Role::new_k; }

  Tensor view(const Call& call, Role role, PyObject* object) const {
    if (!PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(exact_.ptr(), 0))))
      refuse(Error::Kind::type, call, role,
             text("expected a ", name_, " array like the others, found ", text_of(nb::handle(object).type())));
    DLTensor d{};
    if (table_->view(object, &d) != 0) {
      const nb::python_error error;
      const std::string why = text_of(error.value());
      refuse(Error::Kind::type, call, role,
             text("expected a strided array with memory, found another (", why.substr(0, why.find('\n')), ")"));
    }
    Tensor t;
    t.dtype = dtype_of(d);
    if (t.dtype == DType::none)
      refuse(Error::Kind::type, call, role,
             text("expected one of float16, bfloat16, float32, float64, int32, int64, uint32, bool, found ",
                  text_of(nb::handle(object).attr("dtype"))));
    if (d.ndim > 5) refuse(Error::Kind::value, call, role, text("expected at most 5 axes, found ", d.ndim));
    t.data = static_cast<char*>(d.data) + d.byte_offset;
    t.place = Place{device_kind(d), d.device_id < 0 ? 0 : d.device_id};
    t.rank = d.ndim;
    int64_t count = 1;
    for (int i = 0; i < d.ndim; i++) t.shape[i] = d.shape[i], count *= d.shape[i];
    int64_t step = 1;  // no strides: a contiguous array; those of an array without elements may be anything
    for (int i = d.ndim - 1; i >= 0; i--) t.stride[i] = d.strides && count > 0 ? d.strides[i] : step, step *= d.shape[i];
    if (!d.data && count > 0) refuse(Error::Kind::type, call, role, "expected an array with memory, found one without");
    return t;
  }

  Stream stream_of(Place place) const {
    void* stream = nullptr;
    if (place.kind != DeviceKind::cpu && table_->current_stream(DEVICE_TYPES[static_cast<int>(place.kind)], place.index, &stream) != 0)
      throw nb::python_error();
    return stream;
  }

  // The framework's own memory where the call's arrays are: empty_like(array) where one is alike, which is cheaper than new_empty().
  nb::object allocate(const Taken& taken, const Output& o) const {
    PyObject* made = nullptr;
    for (Role r : {Role::q, Role::k, Role::v})
      if (!made && alike(taken.call[r], o)) made = PyObject_CallOneArg(empty_like_.ptr(), taken.objects[static_cast<int>(r)]);
    if (!made && !PyErr_Occurred()) {
      const nb::object shape = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(o.shape.size())));
      for (size_t i = 0; i < o.shape.size(); i++)
        PyTuple_SET_ITEM(shape.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(o.shape[i]));
      PyObject* arguments[] = {taken.objects[static_cast<int>(first_role(taken.call))], shape.ptr(),
                               PyTuple_GET_ITEM(dtypes_.ptr(), static_cast<Py_ssize_t>(o.dtype))};
      made = PyObject_VectorcallMethod(new_empty_.ptr(), arguments, 2, keywords_.ptr());
    }
    if (!made) throw nb::python_error();
    return nb::steal(made);
  }
  static bool alike(const Tensor& t, const Output& o) {
    if (t.dtype != o.dtype || t.rank != static_cast<int>(o.shape.size()) || !contiguous(t, false)) return false;
    int64_t step = 1;  // axes of length 1 may have any stride, which empty_like() would keep
    for (int i = t.rank - 1; i >= 0; step *= t.shape[i--])
      if (t.shape[i] != o.shape[static_cast<size_t>(i)] || t.stride[i] != step) return false;
    return true;
  }

  nb::tuple exact_;
  nb::object empty_like_;
  nb::tuple dtypes_;
  std::string name_;
  nb::str new_empty_{"new_empty"};
  nb::tuple keywords_ = nb::make_tuple("dtype");
  const ExchangeTable* table_ = nullptr;
};
}  // namespace

void bind_exchange(nb::module_& m) {
  nb::class_<Exchange>(m, "Exchange")
      .def(nb::init<nb::tuple, nb::object, nb::tuple, std::string>(), nb::arg("exact"), nb::arg("empty_like"), nb::arg("dtypes"),
           nb::arg("framework"))
      .def("run", &Exchange::run, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("options"), nb::arg("written"),
           nb::arg("main_thread"))
      .def("check", &Exchange::check, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("options"), nb::arg("written"))
      .def("plain", &Exchange::plain, nb::arg("arrays"));
}
}  // namespace fa::bindings
