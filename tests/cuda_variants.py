"""A table of CUDA kernel variants in which every two values of any two axes meet, and the plans that bring them about.

Used by test_cuda_compile.py (every variant compiles, and within its resources) and tools/cuda_resources.py (the table in docs/). No GPU is
asked: plans are made for devices that need not exist, and NVRTC compiles for all architectures.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from flash_attn import _core
from flash_attn.call import DTYPES, Options, Pass, Role

CUDA = 1
KB = 1024
# shared memory a block may have, by architecture
SHARED = {80: 163 * KB, 86: 99 * KB, 89: 99 * KB, 90: 227 * KB, 100: 227 * KB, 120: 99 * KB}


@dataclass(frozen=True)
class Variant:
    """One call; the first value of each axis is what most calls have."""

    dtype: str = "bfloat16"
    dims: tuple[int, int] = (128, 128)
    layout: str = "dense"  # varlen, used, cached, paged, varlen paged
    bias: str | None = None
    softcap: bool = False
    alibi: bool = False
    dropout: bool = False
    sink: str | None = None
    negative: bool = False  # softmax_scale
    out: str | None = None
    keys: int = 4096
    deterministic: bool = False
    probabilities: bool = False

    def __str__(self) -> str:
        changed = {name: value for name, value in vars(self).items() if value != getattr(Variant, name)}
        return ",".join(f"{name}={value}" for name, value in changed.items()) or "dims=(128, 128)"


AXES = {
    Pass.FORWARD: {
        "dtype": ["bfloat16", "float16"],
        "dims": [(128, 128), (64, 64), (256, 256), (40, 80)],
        "layout": ["dense", "varlen", "used", "cached", "paged"],
        "bias": [None, "float32", "bool"],
        "softcap": [False, True],
        "alibi": [False, True],
        "dropout": [False, True],
        "sink": [None, "float32", "bfloat16"],
        "negative": [False, True],
        "out": [None, "float32"],
    },
    Pass.BACKWARD: {
        "dtype": ["bfloat16", "float16"],
        "dims": [(128, 128), (64, 64), (256, 256), (96, 192)],
        "layout": ["dense", "varlen", "used"],
        "bias": [None, "float32", "bfloat16"],
        "softcap": [False, True],
        "alibi": [False, True],
        "dropout": [False, True],
        "sink": [None, "float32"],
        "out": [None, "float32"],
        "keys": [4096, 512],
        "deterministic": [False, True],
    },
}
# what is rare, and what only plain kernels take
MORE = [
    Variant(dims=(512, 512)),
    Variant("float16", (320, 512), layout="varlen paged", softcap=True, dropout=True, sink="float32", out="float32"),
    Variant(layout="varlen paged", alibi=True),
    Variant("float32", (64, 64)),
    Variant("float32", (96, 40), layout="varlen", bias="bool", dropout=True, probabilities=True),
    Variant("float64", (64, 64), alibi=True, bias="float64", softcap=True),
    Variant("float32", (512, 512), layout="paged", sink="float32"),
]
PLAIN_BACKWARD = [
    Variant("float32", (64, 64)),
    Variant("float64", (40, 80), layout="varlen", bias="float64", dropout=True, softcap=True, sink="float64"),
    Variant("float32", (512, 512), alibi=True, bias="float32"),
]
DECODE = [
    Variant(layout="cached", keys=65536),
    Variant("float16", (64, 64), layout="paged", softcap=True, keys=65536),
    Variant(dims=(256, 256), layout="cached", alibi=True, bias="float32"),
    Variant(dims=(96, 64), layout="paged", sink="float32", out="float32", keys=65536),
]


def pairwise(axes: dict[str, list]) -> list[Variant]:
    """Few variants in which every two values of any two axes meet; always the same ones."""
    names = list(axes)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(range(len(names)), 2)
        for x in range(len(axes[names[a]]))
        for y in range(len(axes[names[b]]))
    }
    rows = []
    while missing:
        (a, x), (b, y) = min(missing)
        row = {a: x, b: y}
        for axis in range(len(names)):
            if axis not in row:
                met = [
                    sum(tuple(sorted([(axis, value), pair])) in missing for pair in row.items()) for value in range(len(axes[names[axis]]))
                ]
                row[axis] = met.index(max(met))
        missing -= set(itertools.combinations(sorted(row.items()), 2))
        rows.append(Variant(**{names[axis]: axes[names[axis]][value] for axis, value in row.items()}))
    return rows


def _view(shape: list[int], dtype: str) -> _core.View:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return _core.view_of_address(0, DTYPES[dtype], shape, strides[::-1], CUDA)


def call_of(variant: Variant, which: int, rows: int = 512) -> tuple[list, Options]:
    """Arrays by role, and options, of 2 sequences with 8 heads on 2."""
    dim, value_dim = variant.dims
    keys, dtype = variant.keys, variant.dtype
    packed, paged = "varlen" in variant.layout, "paged" in variant.layout
    lead, key_lead = ([2 * rows], [2 * keys]) if packed else ([2, rows], [2, keys])
    if paged:
        key_lead = [2 * keys // 16, 16]
    ints = {
        "varlen": [Role.CU_ROWS, Role.CU_KEYS],
        "used": [Role.USED_ROWS, Role.USED_KEYS],
        "cached": [Role.LENGTHS, Role.CACHE_ROWS, Role.LEFTPAD],
        "paged": [Role.LENGTHS],
        "varlen paged": [Role.CU_ROWS, Role.CU_KEYS, Role.USED_KEYS],
        "dense": [],
    }[variant.layout]
    arrays = {
        Role.Q: _view([*lead, 8, dim], dtype),
        Role.K: _view([*key_lead, 2, dim], dtype),
        Role.V: _view([*key_lead, 2, value_dim], dtype),
        **{role: _view([3 if role in (Role.CU_ROWS, Role.CU_KEYS) else 2], "int32") for role in ints},
    }
    if paged:
        arrays[Role.PAGES] = _view([2, keys // 16], "int32")
    if variant.bias and not packed and not (paged or variant.layout == "cached"):
        arrays[Role.BIAS] = _view([1, 8, rows, keys], variant.bias)
    if variant.alibi:
        arrays[Role.SLOPES] = _view([8], "float32")
    if variant.sink:
        arrays[Role.SINK] = _view([8], variant.sink)
    if variant.dropout:
        arrays[Role.SEED] = _view([2], "int64")
    if which == Pass.BACKWARD:
        wide = "float64" if dtype == "float64" else "float32"
        arrays[Role.DOUT] = _view([*lead, 8, value_dim], dtype)
        arrays[Role.OUT] = _view([*lead, 8, value_dim], variant.out or dtype)
        arrays[Role.LSE] = _view([8, 2 * rows] if packed else [2, 8, rows], wide)
    gradients = [Role.DBIAS] * (Role.BIAS in arrays and variant.bias != "bool") + [Role.DSINK] * bool(variant.sink)
    wants = gradients if which == Pass.BACKWARD else [Role.PROBABILITIES] * variant.probabilities
    options = Options(
        dropout=0.1 if variant.dropout else 0.0,
        scale=-0.1 if variant.negative else None,
        causal=True,
        softcap=20.0 if variant.softcap else 0.0,
        deterministic=variant.deterministic,
        max_rows=rows if packed else -1,
        max_keys=keys if packed else -1,
        out_dtype=DTYPES[variant.out] if variant.out and which == Pass.FORWARD else 0,
        wants=sum(1 << role for role in wants),
    )
    return list(arrays.items()), options


def plan_of(variant: Variant, which: int, arch: int, rows: int = 512) -> dict:
    """The plan on a device of an architecture, with 108 multiprocessors."""
    arrays, options = call_of(variant, which, rows)
    return _core.plan("flash_attn_func", which, arrays, options, (CUDA, arch, 108, SHARED[arch]))


class Text(NamedTuple):
    """What NVRTC is given: one kernel file with its constants, for one architecture."""

    source: str
    constants: tuple[tuple[str, int], ...]
    arch: int


class Launch(NamedTuple):
    """A kernel of a text, as a plan launches it."""

    kernel: str
    threads: int
    shared_bytes: int
    first: str  # the first variant that needs it


def calls() -> list[tuple[int, Variant, int]]:
    """(pass, variant, rows) of every call of the table."""
    found = [(which, variant, 512) for which, axes in AXES.items() for variant in pairwise(axes)]
    found += [(Pass.FORWARD, variant, 512) for variant in MORE] + [(Pass.BACKWARD, variant, 512) for variant in PLAIN_BACKWARD]
    return found + [(Pass.FORWARD, variant, 1) for variant in DECODE]


def texts(arch: int, some: list[tuple[int, Variant, int]] | None = None) -> dict[Text, dict[str, Launch]]:
    """Every text that the calls of the table need on an architecture, with the launches of its kernels by name."""
    found: dict[Text, dict[str, Launch]] = {}
    for which, variant, rows in calls() if some is None else some:
        for launch in plan_of(variant, which, arch, rows)["launches"]:
            text = Text(launch["source"], tuple(launch["constants"]), arch)
            label = f"{('forward', 'backward')[which]} {variant}"
            found.setdefault(text, {}).setdefault(
                launch["kernel"], Launch(launch["kernel"], launch["threads"], launch["shared_bytes"], label)
            )
    return found


class Resources(NamedTuple):
    """What ptxas says of one kernel."""

    registers: int
    spilled: int  # bytes stored and loaded
    shared: int  # bytes that the kernel declares itself


_FUNCTION = re.compile(r"Compiling entry function '(\w+)' for '\w+'(.*?)(?=Compiling entry function|\Z)", re.S)


def compilers() -> ProcessPoolExecutor:
    """Processes, because NVRTC compiles one text at a time."""
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


# Here and not in a test's file: pytest names those after their folders, and a new process finds that name in one current folder only.
def compile_text(text: Text) -> tuple[str, dict[str, Resources]]:
    """(what the compiler says, resources by kernel): no kernel if it does not compile."""
    try:
        _, log = _core.cuda_compile(text.source, list(text.constants), text.arch, ["--ptxas-options=-v"])
    except RuntimeError as error:
        return str(error), {}
    found = {}
    for kernel, said in _FUNCTION.findall(log):

        def number(pattern: str, said: str = said) -> int:
            match = re.search(pattern, said)
            return int(match.group(1)) if match else 0

        spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        found[kernel] = Resources(number(r"Used (\d+) registers"), spilled, number(r"(\d+) bytes smem"))
    return log, found
