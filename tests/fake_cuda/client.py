"""Calls on "CUDA" arrays that lie in host memory, for processes that run on the software driver of this folder."""

from __future__ import annotations

import ctypes

from flash_attn import _core as core
from flash_attn.call import DTYPES, Options, Pass, Role

NAMES = {code: name for name, code in DTYPES.items()}
CUDA = 1
keep = []


def array(shape, dtype="bfloat16", index=0, values=None):
    """A view of fresh memory, aligned as GPU allocators align it."""
    strides, count = [], 1
    for size in reversed(shape):
        strides.append(count)
        count *= size
    memory = (ctypes.c_char * (count * 8 + 512))()
    keep.append(memory)
    address = (ctypes.addressof(memory) + 255) // 256 * 256
    for i, value in enumerate(values or ()):
        ctypes.c_int32.from_address(address + 4 * i).value = value
    view = core.view_of_address(address, DTYPES[dtype], list(shape), strides[::-1], CUDA, index)
    view_address[id(view)] = address
    keep.append(view)
    return view


view_address: dict[int, int] = {}


def qkv(rows=100, keys=120, dim=64, dtype="bfloat16", index=0):
    return [
        (Role.Q, array((2, rows, 4, dim), dtype, index)),
        (Role.K, array((2, keys, 2, dim), dtype, index)),
        (Role.V, array((2, keys, 2, dim), dtype, index)),
    ]


def backward_of(arrays, rows=100, dim=64, dtype="bfloat16"):
    more = [(Role.DOUT, array((2, rows, 4, dim), dtype)), (Role.OUT, array((2, rows, 4, dim), dtype))]
    return [*arrays, *more, (Role.LSE, array((2, 4, rows), "float32"))]


def run(which, arrays, options=None, stream=0x5EA, index=0):
    """(outputs, temporaries), as views."""
    prepared = core.prepare("flash_attn_func", which, arrays, options or Options())
    given = dict(arrays)
    outputs = [(role, array(shape, NAMES[code], index)) for role, code, shape in prepared.outputs if role not in given]
    temporaries = [array((count,), NAMES[code], index) for code, count in prepared.temporaries]
    core.run(prepared, outputs, True, temporaries, stream)
    return outputs, temporaries


def forward(**options):
    return run(Pass.FORWARD, qkv(), Options(**options))
