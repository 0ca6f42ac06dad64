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
  void* current_stream;
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

DeviceKind device_kind(const DLTensor& t) {
  switch (t.device_type) {
    case 2: return DeviceKind::cuda;
    case 8: return DeviceKind::metal;
    case 10: return DeviceKind::rocm;
    default: return DeviceKind::cpu;  // 1, and 3: pinned host memory
  }
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
  // type: whose objects are arrays; dtypes: the framework's, by DType
  Exchange(const nb::type_object& type, const nb::tuple& dtypes, const std::string& framework) : type_(type), dtypes_(dtypes), name_(framework) {
    const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__");
    table_ = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table_) throw nb::python_error();
    while (table_ && table_->major != 1) table_ = table_->older;
    if (!table_ || !table_->view) throw nb::value_error("expected version 1 of DLPack's exchange table, found another");
  }

  // Runs a pass on {role: array}; returns {role: array} of what it wrote. `written`: bits of roles that the caller wants written in place.
  nb::dict run(const std::string& function, int pass, const nb::dict& arrays, const nb::tuple& options, uint64_t written, bool main_thread) {
    Call call(function.c_str(), static_cast<Pass>(pass));
    std::vector<nb::object> kept;
    const nb::handle first = take(call, arrays, options, written, kept);
    const Plan plan = prepare(call, device_of(call[first_role(call)].place));
    nb::dict results;
    for (const Output& o : outputs_of(plan.problem, call)) {
      const nb::int_ role(static_cast<int>(o.role));
      if (call[o.role]) {
        results[role] = arrays[role];
        continue;
      }
      nb::object array = allocate(first, o);
      call[o.role] = view(call, o.role, array.ptr());
      results[role] = array;
    }
    {
      nb::gil_scoped_release released;
      execute(plan, call, main_thread ? interrupted : nullptr);
    }
    return results;
  }

  // All checks of a pass, and nothing else.
  void check(const std::string& function, int pass, const nb::dict& arrays, const nb::tuple& options, uint64_t written) {
    Call call(function.c_str(), static_cast<Pass>(pass));
    std::vector<nb::object> kept;
    take(call, arrays, options, written, kept);
    prepare(call, device_of(call[first_role(call)].place));
  }

 private:
  nb::handle take(Call& call, const nb::dict& arrays, const nb::tuple& options, uint64_t written, std::vector<nb::object>& kept) const {
    call.options = options_of(options);
    nb::handle first;
    PyObject *key, *object;
    for (Py_ssize_t at = 0; PyDict_Next(arrays.ptr(), &at, &key, &object);) {
      const Role role = static_cast<Role>(PyLong_AsLong(key));
      Tensor t = view(call, role, object);
      if (!contiguous(t, (STRIDED & bit(role)) != 0) && !(written & bit(role))) {
        kept.push_back(nb::handle(object).attr("contiguous")());
        t = view(call, role, kept.back().ptr());
      }
      call[role] = t;
      if (!first.is_valid()) first = object;
    }
    return first;
  }
  static Role first_role(const Call& call) { return call[Role::q] ? Role::q : Role::new_k; }

  Tensor view(const Call& call, Role role, PyObject* object) const {
    if (!PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(type_.ptr())))
      refuse(Error::Kind::type, call, role, text("expected a ", name_, " array like the others, found ", text_of(nb::handle(object).type())));
    DLTensor d{};
    if (table_->view(object, &d) != 0) {
      const nb::python_error error;
      refuse(Error::Kind::type, call, role, text("expected a strided array with memory, found another (", error.what(), ")"));
    }
    Tensor t;
    t.dtype = dtype_of(d);
    if (t.dtype == DType::none)
      refuse(Error::Kind::type, call, role, text("expected one of float16, bfloat16, float32, float64, int32, int64, uint32, bool, found ", text_of(nb::handle(object).attr("dtype"))));
    if (d.ndim > 5) refuse(Error::Kind::value, call, role, text("expected at most 5 axes, found ", d.ndim));
    t.data = static_cast<char*>(d.data) + d.byte_offset;
    t.place = Place{device_kind(d), d.device_id < 0 ? 0 : d.device_id};
    t.rank = d.ndim;
    int64_t count = 1;
    for (int i = 0; i < d.ndim; i++) t.shape[i] = d.shape[i], count *= d.shape[i];
    int64_t step = 1;  // no strides: a contiguous array
    for (int i = d.ndim - 1; i >= 0; i--) t.stride[i] = d.strides ? d.strides[i] : step, step *= d.shape[i];
    if (!d.data && count > 0)
      refuse(Error::Kind::type, call, role, "expected an array with memory, found one without");
    return t;
  }

  // like.new_empty(shape, dtype=...): the framework's own memory, where `like` is
  nb::object allocate(nb::handle like, const Output& o) const {
    const nb::object shape = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(o.shape.size())));
    for (size_t i = 0; i < o.shape.size(); i++) PyTuple_SET_ITEM(shape.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(o.shape[i]));
    PyObject* arguments[] = {like.ptr(), shape.ptr(), PyTuple_GET_ITEM(dtypes_.ptr(), static_cast<Py_ssize_t>(o.dtype))};
    PyObject* array = PyObject_VectorcallMethod(new_empty_.ptr(), arguments, 2, keywords_.ptr());
    if (!array) throw nb::python_error();
    return nb::steal(array);
  }

  nb::type_object type_;
  nb::tuple dtypes_;
  std::string name_;
  nb::str new_empty_{"new_empty"};
  nb::tuple keywords_ = nb::make_tuple("dtype");
  const ExchangeTable* table_ = nullptr;
};
}  // namespace

void bind_exchange(nb::module_& m) {
  nb::class_<Exchange>(m, "Exchange")
      .def(nb::init<nb::type_object, nb::tuple, std::string>(), nb::arg("type"), nb::arg("dtypes"), nb::arg("framework"))
      .def("run", &Exchange::run, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("options"), nb::arg("written"),
           nb::arg("main_thread"))
      .def("check", &Exchange::check, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("options"), nb::arg("written"));
}
}  // namespace fa::bindings
