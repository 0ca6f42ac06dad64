"""The first use of a kernel on a new kind of device: it is compared with the plain kernel once, on small arrays of its own.

Kernels for Apple GPUs are written on machines that have none. If one does not compile there, or gives other numbers than the plain kernel,
there is one warning, and from then on such calls are computed by the plain kernel, or by that of older devices. What has passed is
remembered in this process, and on disk by the device, the versions of what compiles and the kernel's text.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from flash_attn import _core, engine, small_calls
from flash_attn.call import DTYPES, Arrays, Options, Pass, Role
from flash_attn.frameworks.base import Framework

# Of the largest element of a result: how far a kernel may be from the plain one, which rounds elsewhere.
TOLERANCES = {DTYPES["float16"]: 2**-8, DTYPES["bfloat16"]: 2**-5, DTYPES["float32"]: 2**-13}
_EXACT = (Role.LSE, Role.DELTA)  # float32 whatever the dtype of q is

_passed: set[Any] = set()  # kernel variants
_failed: dict[frozenset[Any], str] = {}  # those of a plan -> why
_warned: set[tuple[str, str]] = set()
_lock = threading.RLock()


def trusted(
    framework: Framework,
    device: str,
    variants: Sequence[Any],
    prepared: _core.Prepared,
    function: str,
    views: list,
    options: Options,
    like: Any = None,
    spare: Callable[[], _core.Prepared] | None = None,
) -> _core.Prepared:
    """``prepared``, or the same call by the plain kernel if these kernels are not to be trusted on the device.

    device      what decides whether a kernel that has passed once will pass again: the chip, and the versions of what compiles
    variants    of the kernels of prepared's launches; their text says all about them
    like        an array of the call, for frameworks that have several devices
    spare       gives the same call by kernels that ask less of the device and are trusted, to run instead of the plain one
    """
    if _passed.issuperset(variants):
        return prepared
    with _lock:
        key = frozenset(variants)
        why = _failed.get(key, "")
        if not why and not all(_remembered(device, variant) for variant in variants):
            call = small_call(prepared, function, views, options)
            if call is None:
                return prepared
            why = _judged(framework, call, like)
            if not why:
                for variant in variants:
                    _core.remember(_about(device, variant), "passed")
        if not why:
            _passed.update(variants)
            return prepared
        _failed[key] = why
        plain = _core.prepare(function, prepared.pass_, views, options, plain=True)
        instead = spare() if spare else plain
        if (device, prepared.kernel) not in _warned:
            _warned.add((device, prepared.kernel))
            words = "The plain kernel, which is slow," if instead.kernel == plain.kernel else f"Kernel {instead.kernel}"
            warnings.warn(
                f"[{function}] kernel {prepared.kernel}: expected what the plain kernel gives, found {why}. {words} computes such calls on "
                f"this device ({device}).",
                RuntimeWarning,
                stacklevel=2,
            )
    return instead


def remark(variants: Sequence[Any], prepared: _core.Prepared, instead: str = "the plain kernel") -> str:
    """What explain() has to add: a line if these kernels have failed here. ``instead``: what runs then."""
    why = _failed.get(frozenset(variants))
    return f"\nbut not {prepared.kernel}: its first use on this device failed ({why}); {instead} runs" if why else ""


def _about(device: str, variant: Any) -> str:
    return f"first use\n{device}\n{variant}"


def _remembered(device: str, variant: Any) -> bool:
    return variant in _passed or _core.remembered(_about(device, variant)) is not None


def small_call(prepared: _core.Prepared, function: str, views: list, options: Options) -> small_calls.SmallCall | None:
    """What the kernels of a call are compared on; None if there is no other kernel, or nothing to compute."""
    shapes = {role: small_calls.Shape(view.dtype, tuple(view.shape)) for role, view in views}
    plain = _core.prepare(function, prepared.pass_, views, options, plain=True)
    if plain.kernel == prepared.kernel or any(0 in shape.sizes for shape in shapes.values()):
        return None
    split = any(role == Role.PART_OUT for launch in prepared.launches for role, *_ in launch[5])
    call = small_calls.like(function, prepared.pass_, shapes, options, split)
    return None if any(0 in array.sizes for array in call.arrays.values()) else call


def _judged(framework: Framework, call: small_calls.SmallCall, like: Any) -> str:
    """What is wrong with the kernels of a call, or ""."""
    try:
        return compared(framework, call, like).fault
    except Exception as error:  # whatever a driver, a compiler or a framework throws: the call must go on
        words = str(error).strip() or type(error).__name__
        return f"an error ({words.splitlines()[0]})"


class Comparison:
    """A small call by the kernel that was chosen for it and by the plain one. ``error``: the largest difference, in units of what is
    allowed; ``fault``: what is wrong, or ""."""

    def __init__(self, kernel: str):
        self.kernel, self.error, self.fault = kernel, 0.0, ""

    def add(self, name: str, found: Sequence[float], expected: Sequence[float], tolerance: float) -> None:
        """Compares one result."""
        finite = [abs(y) for y in expected if abs(y) < 3e38]
        allowed = tolerance * max(finite, default=0.0)
        worst = 0.0
        for x, y in zip(found, expected, strict=True):
            if x != y and not abs(x - y) <= worst:
                worst = abs(x - y) if abs(x - y) >= 0 else float("inf")  # a NaN is never near anything
        self.error = max(self.error, worst / allowed if allowed else float(worst > 0) * 2)
        if worst > allowed and not self.fault:
            self.fault = f"{name} off by {worst:.3g}, more than {allowed:.3g}"


def compared(framework: Framework, call: small_calls.SmallCall, like: Any = None) -> Comparison:
    """Runs a small call twice. ``like``: an array on the device where it shall run, for frameworks that have several."""
    arrays = {role: framework.from_bytes(data.bytes, data.sizes, data.code, like) for role, data in call.arrays.items()}
    if call.which == Pass.BACKWARD:
        forward = {role: arrays[role] for role in small_calls.forward_of(call).arrays}
        results = _run(framework, call._replace(which=Pass.FORWARD, options=call.options._replace(wants=0)), forward, True)[1]
        arrays |= {Role.OUT: results[Role.OUT], Role.LSE: results[Role.LSE]}
    _, expected = _run(framework, call, arrays, True)
    prepared, found = _run(framework, call, arrays, False)
    comparison = Comparison(prepared.kernel)
    tolerance = TOLERANCES[call.arrays[Role.Q].code]
    for role, code, _ in prepared.outputs:
        if role == Role.LSE and call.options.wants >> Role.OUT & 1:
            continue  # nobody reads it
        allowed = TOLERANCES[code] if role in _EXACT and code in TOLERANCES else tolerance
        comparison.add(_core.ROLES[role], framework.floats(found[role]), framework.floats(expected[role]), allowed)
    return comparison


def _run(framework: Framework, call: small_calls.SmallCall, arrays: Arrays, plain: bool) -> tuple[_core.Prepared, Arrays]:
    views, _ = engine.views_of(framework, call.function, arrays)
    prepared = _core.prepare(call.function, call.which, views, call.options, plain=plain)
    return prepared, framework.execute(prepared, arrays, views)
