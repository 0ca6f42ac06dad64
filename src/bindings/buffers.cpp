// A whole forward pass in one step for arrays with Python's buffer protocol: what exchange.cpp is for DLPack's exchange table.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <vector>

#include "bindings/shared.h"
#include "core/execute.h"

namespace nb = nanobind;

namespace fa::bindings {
namespace {
DType dtype_of(const Py_buffer& b) {
  if (!b.format || std::strlen(b.format) != 1) return DType::none;  // another byte order, or no number
  switch (*b.format) {
    case 'f': return DType::f32;
    case 'e': return DType::f16;
    case 'd': return DType::f64;
    case '?': return DType::u8;
    case 'i': return DType::i32;
    case 'I': return DType::u32;
    case 'l':
    case 'q': return b.itemsize == 8 ? DType::i64 : DType::none;
    default: return DType::none;
  }
}

// Released with the call.
struct Buffer {
  Py_buffer b{};
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (b.obj) PyBuffer_Release(&b);
  }
  // False where the array needs a copy, or is none that kernels read.
  bool take(PyObject* object, Tensor& t, bool last_axis_only) {
    if (PyObject_GetBuffer(object, &b, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
      PyErr_Clear();
      return false;
    }
    t.dtype = dtype_of(b);
    if (t.dtype == DType::none || b.ndim > 5 || reinterpret_cast<uintptr_t>(b.buf) % static_cast<uintptr_t>(b.itemsize) != 0) return false;
    t.data = b.buf;
    t.rank = b.ndim;
    for (int i = 0; i < b.ndim; i++) {
      if (b.shape[i] > 1 && b.strides[i] % b.itemsize != 0) return false;
      t.shape[i] = b.shape[i], t.stride[i] = b.strides[i] / b.itemsize;
    }
    return contiguous(t, last_axis_only);
  }
};

class Buffers {
 public:
  // exact: the type of arrays; empty(shape, dtype) makes one. dtypes: the library's, by DType.
  Buffers(const nb::object& exact, const nb::object& empty, const nb::tuple& dtypes) : exact_(exact), empty_(empty), dtypes_(dtypes) {}

  // (out, lse) of a forward pass, or None where anything is unusual: the long way finds out what.
  nb::object quick(const char* function, const nb::dict& arrays, const nb::tuple& values, bool main_thread) const {
    if (!usual(values) || arrays.size() > MOST) return nb::none();
    Call call(function, Pass::forward);
    call.options = options_of(values);
    if (call.options.dropout != 0 || call.options.wants != 0) return nb::none();
    Buffer buffers[MOST + 2];
    size_t count = 0;
    PyObject *key, *object;
    for (Py_ssize_t at = 0; PyDict_Next(arrays.ptr(), &at, &key, &object); count++) {
      const Role role = static_cast<Role>(PyLong_AsLong(key));
      if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != exact_.ptr()) return nb::none();
      if (!buffers[count].take(object, call[role], (STRIDED & bit(role)) != 0)) return nb::none();
    }
    const Plan plan = prepare(call, device_of(call));
    nb::object results[2];
    int made = 0;
    for (const Output& o : outputs_of(plan.problem, call)) {
      const nb::object shape = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(o.shape.size())));
      for (size_t i = 0; i < o.shape.size(); i++)
        PyTuple_SET_ITEM(shape.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(o.shape[i]));
      PyObject* arguments[] = {shape.ptr(), PyTuple_GET_ITEM(dtypes_.ptr(), static_cast<Py_ssize_t>(o.dtype))};
      results[made] = nb::steal(PyObject_Vectorcall(empty_.ptr(), arguments, 2, nullptr));
      if (!results[made].ptr()) throw nb::python_error();
      buffers[count++].take(results[made++].ptr(), call[o.role], false);
    }
    {
      const Unlocked unlocked;
      execute(plan, call, {}, nullptr, main_thread ? interrupted : nullptr);
    }
    return nb::make_tuple(results[0], results[1]);
  }

 private:
  static constexpr size_t MOST = 8;  // arrays of a usual call
  nb::object exact_, empty_;
  nb::tuple dtypes_;
};
}  // namespace

void bind_buffers(nb::module_& m) {
  nb::class_<Buffers>(m, "Buffers")
      .def(nb::init<nb::object, nb::object, nb::tuple>(), nb::arg("exact"), nb::arg("empty"), nb::arg("dtypes"))
      .def("quick", &Buffers::quick, nb::arg("function"), nb::arg("arrays"), nb::arg("values"), nb::arg("main_thread"));
}
}  // namespace fa::bindings
