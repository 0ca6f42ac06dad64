"""Launches of a Metal plan: the text of each kernel variant, and the walk through a plan. How a kernel is launched is the caller's:
metal_mlx.py gives it to mx.fast.metal_kernel, metal_torch.py to torch.mps.compile_shader, tests to an emulator.

A variant is a kernel with its constants and the arrays it gets. Its text is the kernel file behind #defines: the constants, and for each
role the name of its array, or fa::Absent(). The body is one line, FA_ENTRY_<kernel>(...); arrays have the names of their roles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from flash_attn import _core
from flash_attn.call import DTYPES, Pass, Role

Constants = tuple[tuple[str, int], ...]

_STRIDED = (Role.Q, Role.K, Role.V)  # what kernels of the forward pass read through strides that only MLX knows
_ATTRIBUTES = {
    "thread_index_in_simdgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
}
NONE, FIXED, ASKED = 0, 1, 2  # FA_VECTOR: single elements, 16 bytes at once, or as strides and addresses turn out to be
PARAMS = "params"


class Variant(NamedTuple):
    """One kernel object: all that its text depends on, and the text."""

    name: str
    inputs: tuple[str, ...]  # names, in the order of the signature; params is the last of them
    outputs: tuple[str, ...]
    header: str
    source: str  # the body


class Launch(NamedTuple):
    """A launch of a plan as src/bindings gives it."""

    source: str
    kernel: str
    constants: Constants
    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]
    arguments: tuple[tuple[int, int, int, bool], ...]  # as which role, whose array or -1, which temporary or -1, written
    params: bytes

    def variant(self, which: int, strided: bool, vector: int | None = None) -> Variant:
        """Its variant. ``strided``: q, k and v of a forward pass may have any strides, which the kernel is given beside them.
        ``vector`` replaces FA_VECTOR where it is FIXED."""
        read = tuple(argument[0] for argument in self.arguments if not argument[3])
        written = tuple(argument[0] for argument in self.arguments if argument[3])
        return _variant(self.source, self.kernel, self.constants, read, written, strided and which == Pass.FORWARD, vector)


@functools.cache
def _variant(
    source: str, kernel: str, constants: Constants, read: tuple[int, ...], written: tuple[int, ...], strided: bool, vector: int | None
) -> Variant:
    names = {role: _core.ROLES[role] for role in (*read, *written)}
    if vector is not None:
        constants = tuple((name, vector if name == "FA_VECTOR" and value == FIXED else value) for name, value in constants)
    lines = [f"#define {name} {value}" for name, value in constants]
    lines += [f"#define FA_ARRAY_{name.upper()} {names.get(role, 'fa::Absent()')}" for role, name in enumerate(_core.ROLES)]
    words = {role: f"{names[role]}_strides" for role in _STRIDED if strided and role in read}
    lines += [f"#define FA_STRIDES_{_core.ROLES[role].upper()} {words.get(role, 'fa::Absent()')}" for role in _STRIDED]
    body = f"FA_ENTRY_{kernel}({', '.join(_ATTRIBUTES)});"
    if words:  # MLX passes the strides of the arrays that a body names
        body += "  // " + " ".join(words.values())
    marks = [f"{name.removeprefix('FA_').lower()}{value}" for name, value in constants]
    return Variant(
        "_".join(["fa", kernel, *marks]).replace("-", "m"),
        (*(names[role] for role in read), PARAMS),
        tuple(names[role] for role in written),
        "\n".join(lines) + "\n" + kernel_text(source),
        body + "\n",
    )


@functools.cache
def kernel_text(source: str) -> str:
    """A kernel file with its includes. Compilers of frameworks get it in pieces: lines are theirs, not ours."""
    return "\n".join(line for line in _core.kernel_text("metal", source).split("\n") if not line.startswith("#line")) + "\n"


_TYPES = {
    DTYPES[name]: word
    for name, word in (
        ("float16", "half"),
        ("bfloat16", "bfloat"),
        ("float32", "float"),
        ("int32", "int"),
        ("int64", "long"),
        ("uint32", "uint"),
        ("bool", "bool"),
    )
}


def complete_text(variant: Variant, codes: dict[str, int]) -> str:
    """A text with signature, for those who have nobody to write one: all arrays in device memory, params in constant.
    ``codes``: the arrays' dtypes, by name."""
    spaces = dict.fromkeys(variant.inputs, "const device") | dict.fromkeys(variant.outputs, "device") | {PARAMS: "const constant"}
    types = {name: _TYPES[code] for name, code in codes.items()} | {PARAMS: "int"}
    arguments = [f"{spaces[name]} {types[name]}* {name} [[buffer({i})]]" for i, name in enumerate((*variant.inputs, *variant.outputs))]
    arguments += [f"{kind} {name} [[{name}]]" for name, kind in _ATTRIBUTES.items()]
    return (
        "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n#define FA_PARAMS_SPACE constant\n"
        + variant.header
        + f"[[kernel]] void {variant.name}(\n  "
        + ",\n  ".join(arguments)
        + f") {{\n{variant.source}}}\n"
    )


def codes_of(launch: Launch, prepared: _core.Prepared, given: dict[int, int]) -> dict[str, int]:
    """The dtypes of a launch's arrays by name. ``given``: those of the caller's arrays, by role."""
    caller = given | {role: code for role, code, _ in prepared.outputs}
    made = [code for code, _ in prepared.temporaries]
    return {_core.ROLES[as_]: made[temporary] if temporary >= 0 else caller[role] for as_, role, temporary, _ in launch.arguments}


@functools.lru_cache(maxsize=1)  # a call asks twice: which kernels are they, and then to run them
def launches_of(prepared: _core.Prepared) -> list[Launch]:
    """The launches of a prepared call, in order."""
    return [Launch(*fields) for fields in prepared.launches]


def run(
    prepared: _core.Prepared,
    arrays: dict[int, Any],
    results: dict[int, Any],
    launch: Callable[[Launch, list[Any], list[tuple[int, int]]], list[Any]],
) -> None:
    """All launches of a plan. ``launch(launch, inputs, outputs)`` returns the arrays of ``outputs``: (role of the caller or -1, temporary
    or -1) of each. What was written by role is added to ``results``; temporaries pass from one launch to the next."""
    temporaries: dict[int, Any] = {}
    for one in launches_of(prepared):
        inputs, outputs = [], []
        for _, role, temporary, written in one.arguments:
            if written:
                outputs.append((role, temporary))
            elif temporary >= 0:
                inputs.append(temporaries[temporary])
            else:
                inputs.append(results[role] if role in results else arrays[role])
        for (role, temporary), array in zip(outputs, launch(one, inputs, outputs), strict=True):
            if temporary >= 0:
                temporaries[temporary] = array
            else:
                results[role] = array
