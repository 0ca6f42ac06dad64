"""The one flow for all frameworks: views of the arrays -> the core's plan -> memory -> run. Forward, backward and caches."""

from __future__ import annotations

from typing import Any

from flash_attn import _core
from flash_attn.call import Arrays, Options, Pass, Role
from flash_attn.frameworks.base import STRIDED, WRITTEN, Framework

# Roles a forward call may bring, in the order in which frameworks with positional operations pass them on.
FORWARD_ROLES = (
    Role.Q,
    Role.K,
    Role.V,
    Role.SEED,
    Role.SLOPES,
    Role.BIAS,
    Role.SINK,
    Role.CU_ROWS,
    Role.CU_KEYS,
    Role.USED_ROWS,
    Role.USED_KEYS,
    Role.LENGTHS,
    Role.CACHE_ROWS,
    Role.LEFTPAD,
    Role.PAGES,
)
# What a backward call brings besides these.
BACKWARD_ROLES = (Role.DOUT, Role.OUT, Role.LSE, Role.DLSE)
# Gradients, and the array each belongs to.
GRADIENTS = {Role.DQ: Role.Q, Role.DK: Role.K, Role.DV: Role.V, Role.DBIAS: Role.BIAS, Role.DSINK: Role.SINK}


def views_of(
    framework: Framework, function: str, arrays: Arrays, written: frozenset[int] = frozenset()
) -> tuple[list[tuple[int, _core.View]], bool]:
    """(role, view) of each array; copies of those whose memory no kernel reads, unless they are written. And whether the
    framework is tracing: then there is no memory, and the views are shapes."""
    traced = framework.traced(arrays)
    result = []
    for role, array in arrays.items():
        if not framework.owns(array):
            raise TypeError(
                f"[{function}] {_core.argument_name(function, role)}: expected a {framework.name} array like the others, "
                f"found {type(array).__module__}.{type(array).__qualname__}."
            )
        code = framework.dtype_code(array.dtype)
        if code is None:
            raise TypeError(
                f"[{function}] {_core.argument_name(function, role)}: expected one of {framework.supported_dtypes()}, "
                f"found {framework.describe_dtype(array)}."
            )
        try:
            view = shape_of(code, array.shape) if traced else framework.view(array, role in written)
        except ValueError as error:  # read-only, or too many axes
            raise ValueError(f"[{function}] {_core.argument_name(function, role)}: {error}.") from error
        fits = view.last_axis_contiguous if role in STRIDED else view.contiguous
        if not fits and role not in written:
            view = framework.view(framework.contiguous(array))
        result.append((role, view))
    return result, traced


def shape_of(code: int, shape: tuple[int, ...], device: int = 0, index: int = 0) -> _core.View:
    """A view without memory."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return _core.view_of_address(0, code, list(shape), strides[::-1], device, index)


def run(framework: Framework, function: str, which: int, arrays: Arrays, options: Options, written: frozenset[int] = WRITTEN) -> Arrays:
    """One pass: what it writes, by role."""
    views, traced = views_of(framework, function, arrays, written)
    if traced:
        _core.describe(function, which, views, options)  # says what is wrong with shapes, dtypes and options
        return framework.formula(which, arrays, options)
    prepared = framework.prepare(function, which, views, options)
    return framework.execute(prepared, arrays, views)


def forward(framework: Framework, function: str, arrays: Arrays, options: Options) -> tuple[Any, Any, Any]:
    """(out, lse, probabilities or None)."""
    results = run(framework, function, Pass.FORWARD, arrays, options)
    return results[Role.OUT], results[Role.LSE], results.get(Role.PROBABILITIES)


def backward(framework: Framework, function: str, arrays: Arrays, options: Options) -> Arrays:
    """Gradients by role (DQ, DK, DV, and DBIAS, DSINK, DELTA where options.wants has their bits)."""
    return run(framework, function, Pass.BACKWARD, arrays, options, WRITTEN - {Role.OUT, Role.LSE})


def wants(*roles: int) -> int:
    """The bits of roles, as options.wants carries them."""
    return sum(1 << role for role in roles)


CACHE_WRITTEN = frozenset({Role.K, Role.V})


def with_kvcache(framework: Framework, function: str, arrays: Arrays, options: Options) -> tuple[Any, Any]:
    """(out, lse) of queries against a cache, after the new keys, if any, have been written into it."""
    if Role.NEW_K not in arrays and Role.NEW_V not in arrays and Role.COS not in arrays and Role.SIN not in arrays:
        out, lse, _ = forward(framework, function, arrays, options)
        return out, lse
    check(framework, function, arrays, options)
    arrays = arrays | {Role.Q: framework.append(function, arrays, options)}
    results = run(framework, function, Pass.FORWARD, arrays, options)
    return results[Role.OUT], results[Role.LSE]


def check(framework: Framework, function: str, arrays: Arrays, options: Options, which: int = Pass.FORWARD) -> None:
    """All checks of a cache call, before anything is written."""
    views, traced = views_of(framework, function, arrays, CACHE_WRITTEN)
    (_core.describe if traced else _core.prepare)(function, which, views, options)


APPEND_ROLES = (Role.Q, Role.K, Role.V, Role.NEW_K, Role.NEW_V, Role.COS, Role.SIN, Role.LENGTHS, Role.CACHE_ROWS, Role.LEFTPAD, Role.PAGES)


def append_in_place(framework: Framework, function: str, arrays: Arrays, options: Options) -> Any:
    """The core writes into the caches' memory; returns q, turned if there is rotary."""
    some = {role: arrays[role] for role in APPEND_ROLES if role in arrays}
    turned = options._replace(wants=wants(Role.ROTATED_Q) if Role.COS in arrays else 0)
    results = run(framework, function, Pass.APPEND, some, turned, CACHE_WRITTEN)
    return results.get(Role.ROTATED_Q, arrays.get(Role.Q))


def explain(framework: Framework, function: str, arrays: Arrays, options: Options) -> str:
    """Which kernel a forward call would run, and why others would not."""
    views, traced = views_of(framework, function, arrays)
    return _core.explain(function, Pass.FORWARD, views, options) + ("" if traced else framework.remark(function, views, options))
