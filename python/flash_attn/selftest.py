"""python -m flash_attn selftest: every kernel of every device of this machine, at small sizes, against the plain kernel of that device.

Which kernels a case runs, its plan says; the cases are chosen so that all rows of the tables, all tiles and all features occur.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flash_attn import _core, engine, first_use, small_calls
from flash_attn.call import DTYPES, METAL, Options, Pass, Role
from flash_attn.small_calls import Shape, SmallCall

ROWS, KEYS, HEADS, KV_HEADS, BATCH, PAGE = 40, small_calls.KEYS, 4, 2, 2, 16
DTYPE_WORDS = ("float16", "bfloat16", "float32")
DIMS = ((16, 16), (64, 64), (96, 96), (128, 128), (256, 256), (512, 512), (80, 48), (5, 7))
INT32, UINT32, BOOL = DTYPES["int32"], DTYPES["uint32"], DTYPES["bool"]


_OF_FORWARD = engine.wants(Role.OUT, Role.PROBABILITIES)


class Case(NamedTuple):
    name: str
    call: SmallCall


class Kind(NamedTuple):
    """A way to call attention: arrays besides q, k and v, options, and whether keys are split."""

    name: str
    arrays: Mapping[int, Shape] = MappingProxyType({})
    options: Options = Options()
    rows: int = ROWS
    function: str = "flash_attn_func"
    split: bool = False
    backward: bool = True


def _kinds(code: int) -> Iterator[Kind]:
    vector = Shape(INT32, (BATCH,))
    ends = {Role.CU_ROWS: Shape(INT32, (BATCH + 1,)), Role.CU_KEYS: Shape(INT32, (BATCH + 1,))}
    lengths, pages = {Role.LENGTHS: vector}, {Role.PAGES: Shape(INT32, (BATCH, -(-KEYS // PAGE)))}
    packed, cache = "flash_attn_varlen_func", "flash_attn_with_kvcache"
    longest = Options(causal=True, max_rows=ROWS, max_keys=KEYS)
    bias = Shape(code, (1, HEADS, ROWS, KEYS))
    yield Kind("full")
    yield Kind("causal", options=Options(causal=True))
    yield Kind("inference", options=Options(causal=True, wants=1 << Role.OUT), backward=False)
    yield Kind("window", options=Options(left=20, right=3))
    yield Kind("chunk", options=Options(causal=True, chunk=16))
    yield Kind("offsets", options=Options(causal=True, has_offsets=True))
    yield Kind("softcap", options=Options(softcap=3.0))
    yield Kind("scale below zero", options=Options(scale=-0.1))
    yield Kind("ALiBi", {Role.SLOPES: Shape(DTYPES["float32"], (HEADS,))}, Options(causal=True))
    yield Kind("bias", {Role.BIAS: bias}, Options(wants=1 << Role.DBIAS))
    yield Kind("mask", {Role.BIAS: Shape(BOOL, (BATCH, 1, ROWS, KEYS))})
    yield Kind("sink", {Role.SINK: Shape(code, (HEADS,))}, Options(causal=True, wants=1 << Role.DSINK))
    yield Kind("dropout", {Role.SEED: Shape(UINT32, (4,))}, Options(dropout=0.2, wants=1 << Role.PROBABILITIES))
    yield Kind("fewer rows and keys", {Role.USED_ROWS: vector, Role.USED_KEYS: vector}, Options(causal=True))
    yield Kind("packed", ends, longest, function=packed)
    yield Kind("packed pages", ends | pages, longest, function=packed, backward=False)
    yield Kind("decode", lengths, rows=1, function=cache, backward=False)
    yield Kind("decode split", lengths, rows=1, function=cache, split=True, backward=False)
    yield Kind("decode pages", lengths | pages, Options(causal=True), 9, cache, backward=False)
    yield Kind("decode softcap", lengths, Options(softcap=3.0, left=30, right=0), 4, cache, backward=False)
    yield Kind("cache", lengths | {Role.CACHE_ROWS: vector, Role.LEFTPAD: vector}, Options(causal=True), function=cache, backward=False)


def _shapes(kind: Kind, code: int, dim: int, value_dim: int) -> dict[int, Shape]:
    if kind.function == "flash_attn_varlen_func":
        before, keys = (BATCH * kind.rows,), (BATCH * KEYS,)
    else:
        before, keys = (BATCH, kind.rows), (BATCH, KEYS)
    if Role.PAGES in kind.arrays:
        keys = (BATCH * -(-KEYS // PAGE), PAGE)
    floats = {
        Role.Q: Shape(code, (*before, HEADS, dim)),
        Role.K: Shape(code, (*keys, KV_HEADS, dim)),
        Role.V: Shape(code, (*keys, KV_HEADS, value_dim)),
    }
    return floats | dict(kind.arrays)


def cases(quick: bool = False) -> Iterator[Case]:
    """All cases; ``quick``: every kind once, and every dtype once."""
    for dtype in DTYPE_WORDS:
        code = DTYPES[dtype]
        for dim, value_dim in DIMS:
            usual = dim == 64 and (dtype == "float16" or not quick)
            some = ("causal", "decode split", "bias") if dim == 512 else ("causal", "decode split")
            for kind in _kinds(code):
                if not usual and (kind.name not in some or (quick and dim != 64)):
                    continue
                shapes = _shapes(kind, code, dim, value_dim)
                sizes = f"{dim}" if dim == value_dim else f"{dim}, {value_dim}"
                name = f"{kind.name}, {dtype}, {sizes}"
                forward = kind.options._replace(wants=kind.options.wants & _OF_FORWARD)
                yield Case(f"forward, {name}", small_calls.like(kind.function, Pass.FORWARD, shapes, forward, kind.split))
                backward = kind.options._replace(wants=kind.options.wants & ~_OF_FORWARD)
                if kind.backward:
                    shapes[Role.DOUT] = Shape(code, (*shapes[Role.Q].sizes[:-1], value_dim))
                    yield Case(f"backward, {name}", small_calls.like(kind.function, Pass.BACKWARD, shapes, backward, False))


def plan(call: SmallCall, device: int = METAL, plain: bool = False, index: int = 0) -> _core.Prepared:
    """What would run a case on a kind of device, which need not be there. ``index``: of an Apple GPU, its generation."""
    arrays: dict[int, Any] = dict(call.arrays)
    if call.which == Pass.BACKWARD:
        codes = {Role.OUT: arrays[Role.Q].code, Role.LSE: DTYPES["float32"]}
        arrays |= {role: Shape(codes[role], sizes) for role, sizes in small_calls.results(call).items()}
    views = [(role, engine.shape_of(x.code, x.sizes, device, index)) for role, x in arrays.items()]
    return _core.prepare(call.function, call.which, views, call.options, plain)


def devices() -> Iterator[tuple[str, Any, Any]]:
    """(words, framework, an array there or None) of everything that can run kernels here."""
    found = {module for module in ("numpy", "ml_dtypes", "mlx", "torch") if importlib.util.find_spec(module)}
    if {"numpy", "ml_dtypes"} <= found:
        from flash_attn.frameworks.numpy import FRAMEWORK as NUMPY

        yield f"CPU ({_core.isa()}), NumPy", NUMPY, None
    if "mlx" in found:
        from flash_attn.frameworks.mlx import FRAMEWORK as MLX

        where = MLX.metal()
        if where:
            yield f"Metal ({'Apple GPU' if where == 'gpu' else f'emulated, {where}'}), MLX", MLX, None
    if "torch" in found:
        import torch

        from flash_attn.frameworks.torch import FRAMEWORK as TORCH

        for kind, usable in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
            if usable:
                yield f"{kind}, PyTorch", TORCH, torch.empty(1, device=kind)


def run(framework: Any, like: Any, wanted: list[Case]) -> Iterator[tuple[Case, first_use.Comparison]]:
    """Each case on a device, compared."""
    for case in wanted:
        try:
            comparison = first_use.compared(framework, case.call, like)
        except Exception as error:  # the table shall say so, and go on
            comparison = first_use.Comparison("?")
            comparison.fault = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield case, comparison


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m flash_attn selftest", description="Every kernel here against the plain one.")
    parser.add_argument("--quick", action="store_true", help="fewer head dims and dtypes")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose names contain this: 'backward, causal, float16'")
    parser.add_argument("--device", default="", metavar="WORDS", help="devices whose names contain this: 'Metal'")
    given = parser.parse_args(arguments)
    wanted = [case for case in cases(given.quick) if given.only in case.name]
    there = [device for device in devices() if given.device.lower() in device[0].lower()]
    if not there or not wanted:
        print(f"nothing to test: {len(there)} devices and {len(wanted)} cases are left", file=sys.stderr)
        return 2
    bad = 0
    for words, framework, like in there:
        print(f"{words}\n  {'':4} {'error':>6}  {'kernel':14} case   (error: 1 is what is allowed)", flush=True)
        count = 0
        for case, comparison in run(framework, like, wanted):
            count += bool(comparison.fault)
            verdict = "BAD" if comparison.fault else "ok"
            print(f"  {verdict:4} {comparison.error:6.3f}  {comparison.kernel:14} {case.name}", flush=True)
            if comparison.fault:
                print(f"       {comparison.fault}", flush=True)
        print(f"  {len(wanted) - count} of {len(wanted)} are right\n", flush=True)
        bad += count
    return 1 if bad else 0
