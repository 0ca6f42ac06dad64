"""PyTorch's device mps without one: the core takes CPU tensors for Metal's, and torch.mps.compile_shader compiles for the emulator.

What compile_shader gives here takes what PyTorch's own does (torch/csrc/mps/Module.cpp): tensors and lists of numbers in the order of the
signature, `threads` (all of them, not groups), `group_size`, `arg_casts`. Nothing of it has met an Apple GPU.
"""

from __future__ import annotations

import contextlib
import os
from unittest import mock

import ml_dtypes
import numpy as np
import torch

from fake_gpu import fresh_process
from flash_attn import torch_ops
from flash_attn.call import METAL
from flash_attn.frameworks import torch as framework
from flash_attn.runners import metal_torch
from metal_emulator import Buffer, Emulator

CASTS = {"int32": np.int32, "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


class Library:
    """A compiled text: its kernels are attributes."""

    def __init__(self, text: str, emulator: Emulator, launched: list[str]):
        self._text, self._emulator, self._launched = text, emulator, launched
        emulator.compile(text)  # as PyTorch does, at once

    def __getattr__(self, name):
        def kernel(*arguments, threads=None, group_size=None, arg_casts=None):
            assert threads is not None and len(threads) == len(group_size) == 3
            buffers = [self._buffer(x, (arg_casts or {}).get(i)) for i, x in enumerate(arguments)]
            self._launched.append(name.split("_needs")[0].removeprefix("fa_"))
            self._emulator.launch(self._text, name, buffers, tuple(threads), tuple(group_size)).check()

        return kernel

    def _buffer(self, x, cast):
        if isinstance(x, torch.Tensor):
            assert x.numel() > 0, "Metal has no empty buffers"
            if x.dtype == torch.bfloat16:
                array = x.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
            else:
                array = x.detach().numpy()
            begins = x.storage_offset() * x.element_size()
            return Buffer(array, initialised=True, alignment=16 if begins % 16 == 0 else 0)
        assert isinstance(x, list) and x and 4 * len(x) <= 4096, "setBytes takes 4 KB"
        return Buffer(np.array(x, CASTS[cast] if cast else np.int64 if isinstance(x[0], int) else np.float32), alignment=16)


@contextlib.contextmanager
def mps(cache, build="plain", compare=False):
    """Inside, CPU tensors are computed by Metal kernels. Gives the list of launched kernels. compare: each is first compared with the plain
    one, as on a device."""
    launched: list[str] = []
    emulator = Emulator(build)
    kinds = {**torch_ops._KINDS, "cpu": METAL}
    metal_torch._compiled.cache_clear()
    metal_torch.text_of.cache_clear()
    with (
        mock.patch.object(torch_ops, "_KINDS", kinds),
        mock.patch.object(torch_ops, "EXCHANGE", torch_ops.ADDRESSES),
        mock.patch.object(torch.mps, "compile_shader", lambda text: Library(text, emulator, launched)),
        mock.patch.object(framework, "_apple", lambda: "a GPU"),
        mock.patch.dict(os.environ, FLASH_ATTENTION_CACHE=str(cache)),
        fresh_process(),
        contextlib.nullcontext() if compare else mock.patch.object(framework.Torch, "trusted", lambda self, prepared, *_: prepared),
    ):
        yield launched
    metal_torch._compiled.cache_clear()
