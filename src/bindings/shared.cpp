#include "bindings/shared.h"

#include <unistd.h>

namespace nb = nanobind;

namespace fa::bindings {
bool contiguous(const Tensor& t, bool last_axis_only) {
  int64_t expected = 1;
  for (int i = t.rank - 1; i >= (last_axis_only ? t.rank - 1 : 0); i--) {
    if (t.shape[i] > 1 && t.stride[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

Options options_of(const nb::tuple& t) {
  Options o;
  size_t i = 0;
  const auto next = [&] { return t[i++]; };
  o.dropout = nb::cast<double>(next());
  nb::object scale = next();
  if (!scale.is_none()) o.scale = nb::cast<double>(scale);
  o.causal = nb::cast<bool>(next());
  o.left = nb::cast<int64_t>(next());
  o.right = nb::cast<int64_t>(next());
  o.softcap = nb::cast<double>(next());
  o.deterministic = nb::cast<bool>(next());
  o.chunk = nb::cast<int64_t>(next());
  o.has_offsets = nb::cast<bool>(next());
  o.q_offset = nb::cast<int64_t>(next());
  o.k_offset = nb::cast<int64_t>(next());
  o.max_rows = nb::cast<int64_t>(next());
  o.max_keys = nb::cast<int64_t>(next());
  o.out_dtype = static_cast<DType>(nb::cast<int>(next()));
  o.splits = nb::cast<int>(next());
  nb::object cache_length = next();
  if (!cache_length.is_none()) o.cache_length = nb::cast<int64_t>(cache_length);
  o.rotary_interleaved = nb::cast<bool>(next());
  o.wants = nb::cast<uint64_t>(next());
  return o;
}

bool usual(const nb::tuple& values) {
  constexpr char KINDS[] = "fFbiifbibiiiissnbi";  // of each field of Options: float, float or None, bool, int, short int, None
  if (values.size() != sizeof(KINDS) - 1) return false;
  for (size_t i = 0; i < values.size(); i++) {
    PyObject* value = PyTuple_GET_ITEM(values.ptr(), static_cast<Py_ssize_t>(i));
    int overflow = 0;
    switch (KINDS[i]) {
      case 'F':
        if (value == Py_None) break;
        [[fallthrough]];
      case 'f':
        if (!PyFloat_CheckExact(value)) return false;
        break;
      case 'b':
        if (!PyBool_Check(value)) return false;
        break;
      case 'i':
      case 's': {
        if (!PyLong_CheckExact(value)) return false;
        const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow != 0 || (KINDS[i] == 's' && number != static_cast<int>(number))) return false;
        break;
      }
      default:
        if (value != Py_None) return false;
    }
  }
  return true;
}

// Until Python 3.14 an interpreter that ends also ends each thread that asks for it, by unwinding its stack: through functions that must
// not throw, which would abort the process. Such a thread waits for the end of the process instead.
Unlocked::~Unlocked() {
  try {
    PyEval_RestoreThread(state_);
  } catch (...) {
    for (;;) pause();
  }
}

bool interrupted() {
  nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}
}  // namespace fa::bindings
