// A whole call in one step, for frameworks with DLPack's C exchange table (torch >= 2.10): views, checks, plan, memory and run without a
// Python object for each of them. The same flow as engine.run, whose Python costs more than a small attention does.
#include <nanobind/stl/string.h>

#include <array>
#include <memory>
#include <utility>
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

std::string text_of(nb::handle object) { return nb::cast<std::string>(nb::str(object)); }
[[noreturn]] void refuse(Error::Kind kind, const Call& call, Role role, const std::string& message) {
  throw Error(kind, text("[", call.function, "] ", argument_name(call, role), ": ", message, "."));
}

class Exchange {
 public:
  // exact: the types whose objects are arrays with memory and nothing else; the first is the base of all. dtypes: the framework's, by
  // DType. watchers: functions that say something true while somebody watches what is done with arrays. grad_enabled: one that says
  // whether operations are recorded for gradients.
  Exchange(const nb::tuple& exact, const nb::object& empty_like, const nb::tuple& dtypes, const std::string& framework,
           const nb::tuple& watchers, const nb::object& grad_enabled)
      : exact_(exact), empty_like_(empty_like), dtypes_(dtypes), name_(framework), watchers_(watchers), grad_enabled_(grad_enabled) {
    const nb::object capsule = nb::getattr(exact[0], "__dlpack_c_exchange_api__");
    table_ = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table_) throw nb::python_error();
    while (table_ && table_->major != 1) table_ = table_->older;
    if (!table_ || !table_->view) throw nb::value_error("expected version 1 of DLPack's exchange table, found another");
  }

  // Runs a pass on {role: array}; returns {role: array} of what it wrote. `written`: bits of roles that are to be written in place.
  nb::dict run(const std::string& function, int pass, const nb::dict& arrays, const nb::tuple& options, uint64_t written,
               bool main_thread) {
    Taken taken = take(function.c_str(), pass, arrays, options_of(options), written);
    nb::dict results;
    perform(taken, main_thread, [&](Role role, nb::object array) { results[nb::int_(static_cast<int>(role))] = std::move(array); });
    return results;
  }

  // What most calls are: a pass of eager arrays with options of Python's own types, and without a gradient that would have to be
  // recorded. Returns what run() returns, without the roles. None where anything is unusual: the long way finds out what; () where
  // a forward pass is to be recorded and nothing else is unusual.
  nb::object quick(const char* function, int pass, const nb::dict& arrays, const nb::tuple& values, bool main_thread) const {
    if (!usual(values)) return nb::none();
    const Options options = options_of(values);
    if (options.wants != 0 || (options.dropout != 0 && !arrays.contains(nb::int_(static_cast<int>(Role::seed))))) return nb::none();
    if (!eager(arrays)) return nb::none();
    if (is_true(nb::steal(PyObject_CallNoArgs(grad_enabled_.ptr())))) {
      if (static_cast<Pass>(pass) != Pass::forward) return nb::none();
      unsigned recorded = 0;
      PyObject *key, *object;
      for (Py_ssize_t at = 0; PyDict_Next(arrays.ptr(), &at, &key, &object);)
        if (is_true(nb::steal(PyObject_GetAttr(object, requires_grad_.ptr())))) recorded |= 1u << PyLong_AsLong(key);
      if (recorded & (bit(Role::bias) | bit(Role::sink))) return nb::none();
      if (recorded) return nb::tuple();
    }
    Taken taken = take(function, pass, arrays, options, 0);
    if (taken.call[Role::dout] && taken.call[Role::dout].dtype != taken.call[Role::q].dtype) return nb::none();
    nb::list results;
    perform(taken, main_thread, [&](Role, nb::object array) { results.append(std::move(array)); });
    return nb::tuple(results);
  }

  // All checks of a pass, and nothing else.
  void check(const std::string& function, int pass, const nb::dict& arrays, const nb::tuple& options, uint64_t written) {
    const Taken taken = take(function.c_str(), pass, arrays, options_of(options), written);
    prepare(taken.call, device_of(taken.call));
  }

  // Whether these are arrays with memory, and nobody is watching what is done with them. Types that are not exact may hide anything;
  // a lazy negation, which views of complex arrays can carry, is read by no kernel. All that belongs to the framework's dispatcher.
  bool eager(const nb::dict& arrays) const {
    for (nb::handle watcher : watchers_)
      if (is_true(nb::steal(PyObject_CallNoArgs(watcher.ptr())))) return false;
    PyObject *key, *object;
    for (Py_ssize_t at = 0; PyDict_Next(arrays.ptr(), &at, &key, &object);) {
      bool found = false;
      for (nb::handle type : exact_) found = found || reinterpret_cast<PyObject*>(Py_TYPE(object)) == type.ptr();
      if (!found || is_true(nb::steal(PyObject_GetAttr(object, is_meta_.ptr()))) ||
          is_true(nb::steal(PyObject_VectorcallMethod(is_neg_.ptr(), &object, 1, nullptr))))
        return false;
    }
    return true;
  }

 private:
  struct Taken {
    Call call;
    PyObject* objects[ROLES] = {};  // borrowed from the caller's dictionary
    std::vector<nb::object> copies;
  };
  Taken take(const char* function, int pass, const nb::dict& arrays, const Options& options, uint64_t written) const {
    Taken taken{Call(function, static_cast<Pass>(pass)), {}, {}};
    Call& call = taken.call;
    call.options = options;
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
  // Plans, allocates, runs; keep(role, array) of each output.
  template <class Keep>
  void perform(Taken& taken, bool main_thread, const Keep& keep) const {
    const Plan plan = prepare(taken.call, device_of(taken.call));
    for (const Output& o : outputs_of(plan.problem, taken.call)) {
      nb::object array;
      if (taken.call[o.role]) {
        array = nb::borrow(taken.objects[static_cast<int>(o.role)]);
      } else {
        array = allocate(taken, o);
        taken.call[o.role] = view(taken.call, o.role, array.ptr());
      }
      keep(o.role, std::move(array));
    }
    std::vector<void*> temporaries;
    for (const Temporary& t : wanted_temporaries(plan)) {
      taken.copies.push_back(allocate(taken, Output{Role::COUNT, t.dtype, {t.count}}));
      temporaries.push_back(view(taken.call, Role::COUNT, taken.copies.back().ptr()).data);
    }
    const Stream stream = stream_of(taken.call[first_role(taken.call)].place);
    const Unlocked unlocked;
    execute(plan, taken.call, temporaries, stream, main_thread ? interrupted : nullptr);
  }
  static bool is_true(const nb::object& answer) {
    const int truth = answer.ptr() ? PyObject_IsTrue(answer.ptr()) : -1;
    if (truth < 0) throw nb::python_error();
    return truth != 0;
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
  nb::tuple watchers_;
  nb::object grad_enabled_;
  nb::str new_empty_{"new_empty"}, requires_grad_{"requires_grad"}, is_meta_{"is_meta"}, is_neg_{"is_neg"};
  nb::tuple keywords_ = nb::make_tuple("dtype");
  const ExchangeTable* table_ = nullptr;
};
}  // namespace

void bind_exchange(nb::module_& m) {
  nb::class_<Exchange>(m, "Exchange")
      .def(nb::init<nb::tuple, nb::object, nb::tuple, std::string, nb::tuple, nb::object>(), nb::arg("exact"), nb::arg("empty_like"),
           nb::arg("dtypes"), nb::arg("framework"), nb::arg("watchers"), nb::arg("grad_enabled"))
      .def("run", &Exchange::run, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("options"), nb::arg("written"),
           nb::arg("main_thread"))
      .def("quick", &Exchange::quick, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("values"), nb::arg("main_thread"))
      .def("check", &Exchange::check, nb::arg("function"), nb::arg("pass_"), nb::arg("arrays"), nb::arg("options"), nb::arg("written"))
      .def("eager", &Exchange::eager, nb::arg("arrays"));
  bind_buffers(m);
}
}  // namespace fa::bindings
