"""An Apple GPU that is none: MLX believes that there is one, and what is launched there runs in the emulator. Faults can be planted."""

from __future__ import annotations

import contextlib
import os
from unittest import mock

import mlx.core as mx

from flash_attn import first_use
from flash_attn.frameworks import mlx as framework
from flash_attn.runners import metal, metal_mlx


def on_gpu():
    """Calls are made as on a GPU."""
    return mock.patch.object(framework.MLX, "metal", lambda self: "gpu")


@contextlib.contextmanager
def on_trusted_gpu():
    """The same, with kernels that nobody compares: where nothing can be launched, but what is to be launched can be seen."""
    with on_gpu(), mock.patch.object(first_use, "trusted", lambda *arguments, **_: arguments[3]):
        yield


def zeros():
    """Nothing is launched: results are zeros."""

    def kernel_of(variant):
        return lambda output_shapes, output_dtypes, **_: [mx.zeros(*made) for made in zip(output_shapes, output_dtypes, strict=True)]

    return mock.patch.object(metal_mlx, "kernel_of", kernel_of)


@contextlib.contextmanager
def planted(plants: dict[str, tuple[str, str]]):
    """Kernel files with one piece of text replaced by another."""
    text_of = metal.kernel_text

    def text(source):
        old, new = plants.get(source, ("", ""))
        assert old in text_of(source)
        return text_of(source).replace(old, new) if old else text_of(source)

    metal._variant.cache_clear()
    with mock.patch.object(metal, "kernel_text", text):
        yield
    metal._variant.cache_clear()


@contextlib.contextmanager
def fresh_process():
    """Nothing is remembered but what is on disk."""
    with mock.patch.multiple(first_use, _passed=set(), _failed={}, _warned=set()):
        yield


@contextlib.contextmanager
def gpu(cache, device="a GPU", lazy_errors=False, plants=None):
    """Inside, MLX arrays are computed by Metal kernels, each first compared with the plain one. Gives the list of launched kernels.
    lazy_errors: what goes wrong raises when results are evaluated, as on a device."""
    launched = []
    build = metal_mlx.kernel_of

    def kernel_of(variant):
        kernel = build(variant)

        def launch(**arguments):
            launched.append(variant.name.split("_needs")[0].removeprefix("fa_"))
            try:
                return metal_mlx._emulate(kernel, build="plain", **arguments)
            except RuntimeError:
                if not lazy_errors:
                    raise
                failure = mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)[0, 0]
                return [
                    mx.zeros(shape, dtype) + failure.astype(dtype)
                    for shape, dtype in zip(arguments["output_shapes"], arguments["output_dtypes"], strict=True)
                ]

        return launch

    with (
        on_gpu(),
        fresh_process(),
        planted(plants or {}),
        mock.patch.object(metal_mlx, "kernel_of", kernel_of),
        mock.patch.object(framework, "_gpu", lambda: device),
        mock.patch.dict(os.environ, FLASH_ATTENTION_CACHE=str(cache)),
    ):
        yield launched
