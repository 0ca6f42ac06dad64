"""What MLX would launch: the text, signature and geometry that a real mx.fast.metal_kernel makes, taken on a machine without Metal.

Calling a kernel object there fails, except while a function is exported: then MLX builds the primitive and hands its state to a callback.
So the signature, the address space of small arrays, template arguments and checks of arguments are MLX's own, not a copy of its rules.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .emulator import Buffer, Emulator, Report

FRESH = 16  # MLX allocates outputs, aligned to more than any vector type


@dataclass
class Launch:
    """One launch of one kernel: everything the emulator needs."""

    text: str
    name: str
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    buffers: list[Buffer]  # in the order of the signature
    outputs: list[np.ndarray] = field(default_factory=list)  # the arrays that the launch writes

    def run(self, emulator: Emulator) -> Report:
        """Runs it; results are in `outputs` afterwards."""
        return emulator.launch(self.text, self.name, self.buffers, self.grid, self.threadgroup)


def capture(kernel, inputs, template=None, *, grid, threadgroup, output_shapes, output_dtypes, init_value=None) -> Launch:
    """The launch that `kernel(inputs=inputs, template=template, ...)` would make.

    kernel    what mx.fast.metal_kernel returned
    inputs    mlx arrays or scalars; or NumPy arrays, whose memory the launch then uses as it is, with their strides
    The other arguments are metal_kernel's own. The dtypes are mlx's.
    """
    import mlx.core as mx

    arrays = [as_numpy(x) for x in inputs]
    primitives = []

    def call(*tracers):
        return kernel(
            inputs=list(tracers),
            template=template,
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=output_shapes,
            output_dtypes=output_dtypes,
            init_value=init_value,
        )

    def remember(entry):
        if entry.get("type") == "primitive" and entry.get("name") == "CustomKernel":
            primitives.append(entry["arguments"])

    mx.export_function(remember, call, *(mx.zeros(a.shape, mlx_dtype(a.dtype)) for a in arrays))
    name, text, *numbers = primitives[0]
    flags, contiguous = numbers[6], numbers[7]
    outputs = [np.empty(shape, numpy_dtype(dtype)) for shape, dtype in zip(output_shapes, output_dtypes)]
    if init_value is not None:
        for output in outputs:
            output[...] = init_value
    buffers = []
    for array, asked in zip(arrays, flags):
        if contiguous and not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        buffers.append(Buffer(array))
        if array.ndim:
            strides = [stride // array.itemsize for stride in array.strides]
            extra = (np.array(array.shape, np.int32), np.array(strides, np.int64), np.array(array.ndim, np.int32))
            buffers += [Buffer(value) for value, wanted in zip(extra, asked) if wanted]
    buffers += [Buffer(output, initialised=init_value is not None, alignment=FRESH) for output in outputs]
    return Launch(mlx_utils() + text, name, tuple(numbers[0:3]), tuple(numbers[3:6]), buffers, outputs)


def as_numpy(x) -> np.ndarray:
    """An input as NumPy sees it: MLX's own memory, with its strides. Scalars become arrays as MLX makes them."""
    import mlx.core as mx

    if isinstance(x, np.ndarray):
        return x
    if not isinstance(x, mx.array):
        x = mx.array(x)
    if x.dtype == mx.bfloat16:  # which NumPy does not take from a buffer
        return np.asarray(x.view(mx.uint16)).view(numpy_dtype(mx.bfloat16))
    return np.asarray(x)


def numpy_dtype(dtype) -> np.dtype:
    """MLX's dtype as NumPy's."""
    name = str(dtype).rsplit(".", 1)[-1]
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype("bool" if name in ("bool", "bool_") else name)


def mlx_dtype(dtype: np.dtype):
    """NumPy's dtype as MLX's."""
    import mlx.core as mx

    return mx.bool_ if dtype == np.bool_ else getattr(mx, dtype.name)


@functools.cache
def mlx_utils() -> str:
    """What MLX puts before every kernel it compiles: its utils.h with the headers that includes, from the installed package."""
    import mlx.core

    root = Path(mlx.core.__file__).parent / "include"
    return flatten(Path("mlx/backend/metal/kernels/utils.h"), root)


def flatten(path: Path, root: Path, seen: set[Path] | None = None) -> str:
    """A file of MLX with its includes of MLX's own headers written out, each once."""
    seen = set() if seen is None else seen
    if path in seen:
        return ""
    seen.add(path)

    def include(match):
        return flatten(Path(match.group(1)), root, seen)

    # The one sign of MLX's headers that is not ASCII stands in their copyright lines.
    text = (root / path).read_text(encoding="utf-8").encode("ascii", "ignore").decode()
    text = re.sub(r"^#pragma once\n", "", text, flags=re.M)
    return re.sub(r'^#include "(mlx/[^"]+)"$', include, text, flags=re.M) + "\n"
