"""The runtime's C interface (runtime/services.h) in ctypes. Structs here and there must stay equal."""

from __future__ import annotations

import ctypes
from pathlib import Path

MAX_BUFFERS = 31
MAX_THREADS = 1024
BUFFER = 1000  # attribute::buffer
DEVICE, CONSTANT, THREADGROUP = 1, 2, 3


class Parameter(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("code", ctypes.c_int),
        ("space", ctypes.c_int),
        ("writable", ctypes.c_int),
        ("item_size", ctypes.c_int),
    ]


class Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(Parameter)),
        ("parameter_count", ctypes.c_int),
    ]


class FunctionConstant(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("size", ctypes.c_int), ("address", ctypes.c_void_p)]


class Table(ctypes.Structure):
    _fields_ = [
        ("kernels", ctypes.POINTER(Kernel)),
        ("kernel_count", ctypes.c_int),
        ("constants", ctypes.POINTER(FunctionConstant)),
        ("constant_count", ctypes.c_int),
    ]


class BufferView(ctypes.Structure):
    _fields_ = [
        ("pointer", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("writable", ctypes.c_int),
        ("constant", ctypes.c_int),
        ("initialised", ctypes.c_int),
    ]


class Dispatch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3),
        ("descending", ctypes.c_int),
        ("checked", ctypes.c_int),
    ]


COUNTS = (
    "threads",
    "groups",
    "barriers",
    "simdgroup_barriers",
    "shuffles",
    "multiplications",
    "threadgroup_memory",
    "device_read",
    "device_written",
    "threadgroup_read",
    "threadgroup_written",
)


class Counters(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_uint64) for name in COUNTS), ("seconds", ctypes.c_double)]


class Module:
    """A loaded module: its kernels by name, its function constants by number."""

    def __init__(self, path: Path):
        self.path = path
        self.library = ctypes.CDLL(str(path))
        table = Table.in_dll(self.library, "emulator_module")
        self.kernels = {table.kernels[i].name.decode(): table.kernels[i] for i in range(table.kernel_count)}
        self.constants = [table.constants[i] for i in range(table.constant_count)]

    def set_constants(self, values: dict[int, int]) -> None:
        """Sets every function constant; those without a value become 0."""
        for constant in self.constants:
            raw = int(values.get(constant.id, 0)).to_bytes(constant.size, "little", signed=constant.size > 1)
            ctypes.memmove(constant.address, raw, constant.size)


_runtime: list[ctypes.CDLL] = []


def runtime(path: Path) -> ctypes.CDLL:
    """The runtime, with its symbols visible to the modules that are loaded after it. One a process: modules find its services by name."""
    if not _runtime:
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        pointers = [Kernel, BufferView, Dispatch, Counters]
        library.emulator_launch.argtypes = [*map(ctypes.POINTER, pointers), ctypes.c_char_p, ctypes.c_size_t]
        library.emulator_launch.restype = ctypes.c_int
        _runtime.append(library)
    return _runtime[0]
