"""Metal plans on MLX arrays: mx.fast.metal_kernel, one kernel object a variant. Lazy: nothing here is evaluated, and a launch whose results
nobody reads never runs. With an emulator the same kernel objects write the text, and the launch happens at once on this machine."""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from flash_attn import _core
from flash_attn.call import DTYPES, Pass, Role
from flash_attn.runners import metal

DTYPE_OF = {code: getattr(mx, name) for name, code in DTYPES.items() if hasattr(mx, name)}
_STRIDED = (Role.Q, Role.K, Role.V)
Start = Callable[..., list[mx.array]]  # (kernel object, and by keyword what it takes) -> outputs
_theirs = mx.fast.scaled_dot_product_attention  # flash_attn.mlx.install() puts ours in its place


@functools.cache
def kernel_of(variant: metal.Variant) -> Any:
    """The kernel object of a variant."""
    return mx.fast.metal_kernel(
        name=variant.name,
        input_names=list(variant.inputs),
        output_names=list(variant.outputs),
        source=variant.source,
        header=variant.header,
        ensure_row_contiguous=False,
    )


def variant_of(launch: metal.Launch, prepared: _core.Prepared) -> metal.Variant:
    """Where MLX puts an array, and so whether 16 bytes can be read at once, is known when a kernel runs: it asks itself."""
    return launch.variant(prepared.pass_, prepared.pass_ == Pass.FORWARD, metal.ASKED)


def variants(prepared: _core.Prepared) -> list[metal.Variant]:
    """The kernels of ours that a prepared call runs."""
    return [variant_of(launch, prepared) for launch in metal.launches_of(prepared) if launch.source]


def execute(prepared: _core.Prepared, arrays: dict[int, mx.array], emulated: str = "") -> dict[int, mx.array]:
    """What a prepared call writes, by role. ``emulated``: the emulator's build, or "" for the GPU."""
    strided = prepared.pass_ == Pass.FORWARD
    if strided:
        placed = {role: x if role in _STRIDED else mx.contiguous(x) for role, x in arrays.items()}
    else:
        placed = {role: mx.contiguous(x) for role, x in arrays.items()}
    shapes = {role: (shape, DTYPE_OF[code]) for role, code, shape in prepared.outputs}
    temporaries = [([count], DTYPE_OF[code]) for code, count in prepared.temporaries]

    def walk(start: Start) -> dict[int, mx.array]:
        def launch(one: metal.Launch, inputs: list[mx.array], outputs: list[tuple[int, int]]) -> list[mx.array]:
            if not one.source:
                return [_attention_of_mlx(*inputs, **dict(one.constants))]
            made = [temporaries[temporary] if temporary >= 0 else shapes[role] for role, temporary in outputs]
            return start(
                kernel_of(variant_of(one, prepared)),
                inputs=[*inputs, mx.array(memoryview(one.params).cast("i"))],
                grid=tuple(blocks * threads for blocks, threads in zip(one.blocks, one.threads, strict=True)),
                threadgroup=one.threads,
                output_shapes=[shape for shape, _ in made],
                output_dtypes=[dtype for _, dtype in made],
            )

        results: dict[int, mx.array] = {}
        metal.run(prepared, placed, results, launch)
        return results

    if emulated:
        _build_together(tuple(variants(prepared)), emulated, walk)
        results = walk(functools.partial(_emulate, build=emulated))
    else:
        results = walk(lambda kernel, **arguments: kernel(**arguments))
    for role, (shape, dtype) in shapes.items():
        if role not in results:  # no launch writes it: there is nothing to compute, or nobody to read it
            results[role] = mx.zeros(shape, dtype)
    return results


def _attention_of_mlx(q: mx.array, k: mx.array, v: mx.array, causal: int, scale_bits: int) -> mx.array:
    """MLX's own kernel, for the plans that name it."""
    (scale,) = struct.unpack("f", struct.pack("i", scale_bits))
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return _theirs(q, k, v, scale=scale, mask="causal" if causal else None).swapaxes(1, 2)


# ---- emulation ----------------------------------------------------------------------------------------------------------


@functools.cache
def emulator(build: str) -> Any:
    """The emulator of the checkout: importable, or in tools/ of the current folder."""
    try:
        import metal_emulator
    except ImportError:
        tools = Path.cwd() / "tools"
        if not (tools / "metal_emulator").is_dir():
            raise RuntimeError(
                "[FLASH_ATTENTION_METAL] emulate: expected tools/metal_emulator of a checkout in sys.path or in the current folder, "
                "found neither."
            ) from None
        sys.path.append(str(tools))
        import metal_emulator
    return metal_emulator.Emulator(build)


_built: set[tuple[Any, ...]] = set()


def _build_together(wanted: tuple[metal.Variant, ...], build: str, walk: Callable[[Start], Any]) -> None:
    """Compiles the kernels of a call at once, where there are several: one after the other, they take most of the time of the tests."""
    if len(wanted) < 2 or (build, wanted) in _built:
        return
    _built.add((build, wanted))
    texts = []

    def note(kernel: Any, output_shapes: list, output_dtypes: list, **arguments: Any) -> list[mx.array]:
        texts.append(_captured(kernel, output_shapes=output_shapes, output_dtypes=output_dtypes, **arguments).text)
        return [mx.zeros(*made) for made in zip(output_shapes, output_dtypes, strict=True)]

    machine = emulator(build)
    walk(note)
    machine.build_all(texts)


def _captured(kernel: Any, inputs: list[mx.array], **arguments: Any) -> Any:
    """What MLX would launch."""
    from metal_emulator import capture

    mx.eval(inputs)
    launch = capture(kernel, [_to_numpy(x) for x in inputs], **arguments)
    launch.buffers[-len(launch.outputs) - 1].alignment = 16  # params is our own array, at the start of its memory
    return launch


def _emulate(kernel: Any, build: str, **arguments: Any) -> list[mx.array]:
    machine = emulator(build)  # finds the package that _captured() imports
    launch = _captured(kernel, **arguments)
    launch.run(machine).check()
    return [_to_mlx(array, dtype) for array, dtype in zip(launch.outputs, arguments["output_dtypes"], strict=True)]


def _to_numpy(array: mx.array) -> Any:
    """A view with MLX's own strides, as the kernel shall see them."""
    import numpy

    if array.dtype != mx.bfloat16:
        return numpy.asarray(array)
    import ml_dtypes

    return numpy.asarray(array.view(mx.uint16)).view(ml_dtypes.bfloat16)


def _to_mlx(array: Any, dtype: mx.Dtype) -> mx.array:
    if dtype != mx.bfloat16:
        return mx.array(array, dtype=dtype)
    return mx.array(array.view("uint16")).view(dtype)
