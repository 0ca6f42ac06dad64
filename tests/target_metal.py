"""The Metal kernels on MLX arrays, without an Apple GPU: texts and geometry are what MLX makes of them, launches happen in
tools/metal_emulator."""

from __future__ import annotations

import os
from unittest import mock

import mlx.core as mx

from metal_emulator import EmulatorError
from metal_emulator.compiler import compiler
from target_mlx import MLXTarget


def why_not() -> str:
    """What keeps this machine from emulating launches of MLX, or ""."""
    if tuple(map(int, mx.__version__.split(".")[:2])) < (0, 32):
        return "before 0.32 MLX cannot build a metal_kernel without Metal"
    try:
        compiler()
    except EmulatorError as error:
        return str(error)
    return ""


def emulated(build: str = "plain"):
    """Inside, MLX arrays are computed by the Metal kernels in the emulator."""
    return mock.patch.dict(os.environ, FLASH_ATTENTION_METAL=f"emulate:{build}")


class MetalTarget(MLXTarget):
    name = "metal_emulated"

    def takes(self, case) -> bool:
        return case.dtype != "float64" and not why_not()

    def _run(self, function, values):
        with emulated():
            results = function(*values)
            mx.eval(results)
        return results
