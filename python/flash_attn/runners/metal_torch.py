"""Metal plans on PyTorch tensors of device mps: torch.mps.compile_shader, one library a variant. Launches join the queue of PyTorch's own.

No Apple GPU was at hand: this is proven with a compile_shader that hands the same texts to the emulator.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from flash_attn import _core
from flash_attn.call import DTYPE_NAMES, DTYPES
from flash_attn.runners import metal

_CODES = {getattr(torch, name): code for name, code in DTYPES.items() if name != "bool_" and hasattr(torch, name)}
_DTYPES = {code: getattr(torch, name) for code, name in DTYPE_NAMES.items() if hasattr(torch, name)}
_WORD = 16  # bytes that kernels read at once where arrays lie at multiples of it


class Kernel(NamedTuple):
    """A variant and what its signature says besides: the dtypes of its arrays."""

    variant: metal.Variant
    codes: tuple[tuple[str, int], ...]


def kernels(prepared: _core.Prepared, given: dict[int, int], aligned: bool) -> list[Kernel]:
    """The kernels of a prepared call, in order. ``given``: dtype codes of the caller's arrays. ``aligned``: all lie at words' places."""
    vector = None if aligned else metal.NONE
    return [
        Kernel(one.variant(prepared.pass_, False, vector), tuple(metal.codes_of(one, prepared, given).items()))
        for one in metal.launches_of(prepared)
    ]


def is_at_word(x: torch.Tensor) -> bool:
    """Whether kernels may read words there. Memory of PyTorch's begins at much larger powers of two; only views begin elsewhere."""
    return x.storage_offset() * x.element_size() % _WORD == 0


def read_words(kernels: list[Kernel]) -> bool:
    """Whether any of these does."""
    return any(f"vector{metal.FIXED}" in kernel.variant.name for kernel in kernels)


def codes_of(arrays: dict[int, torch.Tensor]) -> dict[int, int]:
    """Dtype codes by role."""
    return {role: _CODES[x.dtype] for role, x in arrays.items()}


@functools.cache
def text_of(kernel: Kernel) -> str:
    """What the compiler gets."""
    return metal.complete_text(kernel.variant, dict(kernel.codes))


@functools.cache
def _compiled(kernel: Kernel) -> Any:
    if not hasattr(torch.mps, "compile_shader"):
        raise RuntimeError("[flash_attn] torch: expected torch.mps.compile_shader (PyTorch 2.7 or newer), found none.")
    return getattr(torch.mps.compile_shader(text_of(kernel)), kernel.variant.name)


def _bound(x: torch.Tensor) -> torch.Tensor:
    """Metal has no empty buffers; nobody reads this one."""
    return x if x.numel() else x.new_zeros(1)


def execute(prepared: _core.Prepared, arrays: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Runs a prepared call and returns what it writes, by role: the caller's array where there is one, else a new one."""
    like = next(iter(arrays.values()))
    memory = {
        role: arrays[role] if role in arrays else like.new_empty(shape, dtype=_DTYPES[code]) for role, code, shape in prepared.outputs
    }
    temporaries = [like.new_empty(count, dtype=_DTYPES[code]) for code, count in prepared.temporaries]
    waiting = iter(kernels(prepared, codes_of(arrays), all(map(is_at_word, (arrays | memory).values()))))

    def launch(one: metal.Launch, inputs: list[torch.Tensor], outputs: list[tuple[int, int]]) -> list[torch.Tensor]:
        made = [temporaries[temporary] if temporary >= 0 else memory.get(role, arrays.get(role)) for role, temporary in outputs]
        _compiled(next(waiting))(
            *map(_bound, inputs),
            memoryview(one.params).cast("i").tolist(),
            *map(_bound, made),
            threads=[blocks * threads for blocks, threads in zip(one.blocks, one.threads, strict=True)],
            group_size=list(one.threads),
            arg_casts={len(inputs): "int32"},
        )
        return made

    metal.run(prepared, arrays, dict(memory), launch)
    return memory
