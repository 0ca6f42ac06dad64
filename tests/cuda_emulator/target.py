"""The package's NumPy front end on a GPU of software: arrays stay where they are and are said to be on CUDA device 0, every array that a
kernel may write ends at a page that nobody may touch. For processes that see the libraries of fake_cuda."""

from __future__ import annotations

import ctypes
import math
import mmap
from dataclasses import fields, replace

import numpy as np

from flash_attn import _core
from flash_attn.frameworks import numpy as numpy_framework
from flash_attn.frameworks.base import on_main_thread
from targets import NumPyTarget

CUDA = 1
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(array: np.ndarray) -> np.ndarray:
    """A contiguous copy between two pages that cannot be touched, as close to the second as a GPU's allocation (16 bytes) may be."""
    if array.size == 0:
        return array.copy()
    size = array.size * array.itemsize
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (address, address + mmap.PAGESIZE + room):
        assert _libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0
    first = mmap.PAGESIZE + (room - size) // 16 * 16
    copy = np.frombuffer(memory, np.uint8, size, first).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class OnTheGPU(numpy_framework.NumPy):
    def view(self, array, writable=False):
        if array.size == 0:  # NumPy gives it strides of 0
            strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        else:
            strides = [stride // array.itemsize for stride in array.strides]
        return _core.view_of_address(array.ctypes.data, self.dtype_code(array.dtype), list(array.shape), strides, CUDA, 0, array)

    def empty(self, shape, code, like):
        return guarded(super().empty(shape, code, like))

    def quick(self, function, arrays, values, with_lse):
        return None

    def execute(self, prepared, arrays, views):
        like = next(iter(arrays.values()))
        results = {}
        for role, code, shape in prepared.outputs:
            given = arrays.get(role)
            results[role] = self.empty(shape, code, like) if given is None else given
        outputs = [(role, self.view(array, writable=True)) for role, array in results.items()]
        temporaries = [self.view(self.empty([count], code, like)) for code, count in prepared.temporaries]
        _core.run(prepared, outputs, on_main_thread(), temporaries, 0)
        return results


numpy_framework.FRAMEWORK.__class__ = OnTheGPU


class Emulated(NumPyTarget):
    name = "emulated cuda"

    @staticmethod
    def _guarded(value):
        return guarded(value) if isinstance(value, np.ndarray) and value.flags.c_contiguous else value

    def _inputs(self, arrays):
        changed = {f.name: self._guarded(getattr(arrays, f.name)) for f in fields(arrays)}
        changed["varlen"] = tuple(self._guarded(value) for value in arrays.varlen)
        changed["options"] = {name: self._guarded(value) for name, value in arrays.options.items()}
        return replace(arrays, **changed)

    def forward(self, case, arrays):
        return super().forward(case, self._inputs(arrays))

    def with_kvcache(self, case, arrays):
        return super().with_kvcache(case, self._inputs(arrays))
