"""MLX arrays: the core on their memory, behind custom functions that every transform of MLX understands.

Two custom functions, forward and backward, take arrays and, last, a Call that says which is which. Where values can be had (eager, grad,
vjp, checkpoint) the core runs on the arrays' buffers; in compiled and exported functions, and for derivatives that the core does not
compute (jvp, second order), the plain formula runs on the arrays themselves; vmap folds its axis into the batch.
"""

from __future__ import annotations

import functools
import platform
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx

from flash_attn import _core, engine, first_use, fold, formula
from flash_attn.call import DTYPES, METAL, Arrays, Options, Pass, Role
from flash_attn.engine import BACKWARD_ROLES, GRADIENTS
from flash_attn.frameworks.base import Framework
from flash_attn.namespaces import Namespace
from flash_attn.runners import metal_mlx

_CODES = {getattr(mx, name): code for name, code in DTYPES.items() if hasattr(mx, name)}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}

# Results up to this size are copies of a block of zeros: an operation of MLX costs a change of threads, more than a small attention.
_SMALL = 1 << 16
_zeros = memoryview(bytes(_SMALL))
_FORMATS = {DTYPES["float32"]: "f", DTYPES["float16"]: "H", DTYPES["bfloat16"]: "H"}  # a memoryview knows no 16-bit float


class _Namespace(Namespace):
    def exp(self, x: Any) -> mx.array:
        return mx.expm1(x) + 1 if x.dtype == mx.float64 else mx.exp(x)  # MLX's exp of a float64 is as exact as a float32

    def constant(self, x: mx.array) -> mx.array:
        return mx.stop_gradient(x)

    def after(self, x: mx.array, *before: mx.array) -> mx.array:
        # MLX evaluates a graph breadth first: without an order it holds the scores of all blocks. mx.depends has neither jvp nor vmap.
        for one in before:
            if 0 not in one.shape:
                one = mx.stop_gradient(one[(slice(0, 1),) * one.ndim])
                x = x + mx.logical_and(one == one, False).astype(x.dtype)
        return x


_NAMESPACE = _Namespace(mx)


class MLX(Framework):
    name = "MLX"

    def namespace(self) -> Namespace:
        return _NAMESPACE

    def owns(self, array: Any) -> bool:
        return isinstance(array, mx.array)

    def dtype_code(self, dtype: Any) -> int | None:
        return DTYPES.get(dtype) if isinstance(dtype, str) else _CODES.get(dtype) if isinstance(dtype, mx.Dtype) else None

    def metal(self) -> str:
        """Where Metal kernels compute a call made now: "gpu", the build of the emulator, or "" if the CPU computes it."""
        mode, build, _ = _emulation()
        if mode == "emulate":
            return build or "plain"
        return "gpu" if _HAS_METAL and mx.default_device() == mx.gpu else ""

    def generation(self) -> int:
        """Of the GPU that Metal kernels run on, or are to be emulated for, where they may use its tensor operations; else 0."""
        mode, _, family = _emulation()
        if mode == "emulate":
            return int(family.removeprefix("g") or 0)
        return 0 if _older.get() else _generation()

    def traced(self, arrays: Arrays) -> bool:
        if self.metal() == "gpu":  # kernels are lazy: they take what cannot be evaluated. But MLX knows no vmap of them.
            return _mapped.get()
        # the only way to ask; it is also the evaluation that the buffers need
        try:
            mx.eval([array for array in arrays.values() if isinstance(array, mx.array)])
            return False
        except ValueError as error:
            if "function transformations" not in str(error):
                raise
            return True

    def formula(self, which: int, arrays: Arrays, options: Options) -> Arrays:
        # this is the body of a custom function, or has no gradients; jvp would look into it all the same
        return formula.run(_NAMESPACE, which, {role: mx.stop_gradient(x) for role, x in arrays.items()}, options)

    def view(self, array: mx.array, writable: bool = False) -> _core.View:
        if self.metal():
            return engine.shape_of(_CODES[array.dtype], array.shape, METAL, self.generation())
        return _core.view_of_buffer(array, _CODES[array.dtype], writable)

    def empty(self, shape: list[int], code: int, like: Any) -> mx.array:
        return mx.zeros(shape, dtype=_DTYPES[code], stream=mx.cpu)

    def contiguous(self, array: mx.array) -> mx.array:
        array = mx.contiguous(array, stream=mx.cpu)
        mx.eval(array)
        return array

    def from_bytes(self, data: bytes, shape: Sequence[int], code: int, like: Any = None) -> mx.array:
        as_stored = {1: "H", 2: "H", 3: "f", 5: "i", 6: "q", 7: "I", 8: "B"}[code]
        array = mx.array(memoryview(data).cast(as_stored))
        return array.view(_DTYPES[code]).reshape(shape)

    def floats(self, array: mx.array) -> Sequence[float]:
        return array.astype(mx.float32).reshape(-1).tolist()

    def prepare(self, function: str, which: int, views: list, options: Options) -> _core.Prepared:
        prepared = super().prepare(function, which, views, options)
        if self.metal() != "gpu":  # the emulator is there to judge kernels: it must see them
            return prepared
        spare = functools.partial(self._as_older, self.prepare, function, which, views, options) if self.generation() else None
        return first_use.trusted(self, _gpu(), metal_mlx.variants(prepared), prepared, function, views, options, spare=spare)

    def remark(self, function: str, views: list, options: Options) -> str:
        if self.metal() != "gpu":
            return ""
        prepared = super().prepare(function, Pass.FORWARD, views, options)
        older = self._as_older(super().prepare, function, Pass.FORWARD, views, options)
        if older.kernel == prepared.kernel:
            return first_use.remark(metal_mlx.variants(prepared), prepared)
        said = first_use.remark(metal_mlx.variants(prepared), prepared, older.kernel)
        return said + (first_use.remark(metal_mlx.variants(older), older) if said else "")

    def _as_older(self, prepare: Callable[..., _core.Prepared], function: str, which: int, views: list, options: Options) -> _core.Prepared:
        """What prepare() would give on a GPU without tensor operations."""
        token = _older.set(True)
        try:
            views = [(role, engine.shape_of(view.dtype, view.shape, METAL)) for role, view in views]
            return prepare(function, which, views, options)
        finally:
            _older.reset(token)

    def seed(self, like: Any) -> mx.array:
        # random bits come 16 at a time: larger ranges are drawn as float32, which has 24
        halves = mx.random.randint(0, 65536, (2, 2), dtype=mx.uint32)
        return mx.concatenate([halves[:, 0] | halves[:, 1] << 16, mx.zeros(2, dtype=mx.uint32)])

    def asked(self, options: Options, with_lse: bool) -> Options:
        if with_lse or _differentiable.get() or not self.metal():
            return options
        return options._replace(wants=options.wants | 1 << Role.OUT)

    def attention(self, function: str, arrays: Arrays, options: Options) -> tuple[Any, Any, Any]:
        if not _differentiable.get():
            return engine.forward(self, function, arrays, options)
        results = forward(*arrays.values(), Call(function, options, tuple(arrays), _outputs(Pass.FORWARD, options)))
        return results if len(results) == 3 else (*results, None)

    def execute(self, prepared: _core.Prepared, arrays: Arrays, views: list) -> Arrays:
        where = self.metal()
        if where:
            return metal_mlx.execute(prepared, arrays, "" if where == "gpu" else where)
        results, narrow, large = {}, [], []
        for role, code, shape in prepared.outputs:
            results[role] = arrays.get(role)
            if results[role] is None:
                results[role] = small = _small(shape, code)
                if small is None:
                    results[role] = self.empty(shape, code, None)
                    large.append(results[role])
                elif _FORMATS[code] == "H":
                    narrow.append((role, code))
        if large:
            mx.eval(large)
        codes = {role: code for role, code, _ in prepared.outputs}
        outputs = [(role, _core.view_of_buffer(array, codes[role], True)) for role, array in results.items()]
        _core.run(prepared, outputs, threading.get_ident() == threading.main_thread().ident)
        del outputs  # the buffers, before MLX is asked for anything
        for role, code in narrow:
            results[role] = results[role].view(_DTYPES[code])
        return results

    def append(self, function: str, arrays: Arrays, options: Options) -> Any:
        """By assignment to slices of the caller's own objects, which MLX does in place, and in compiled functions at all."""
        turned: Arrays = {}
        if Role.COS in arrays:
            roles = (Role.Q, Role.NEW_K, Role.NEW_V, Role.COS, Role.SIN, Role.LENGTHS)
            wanted = options._replace(wants=engine.wants(Role.ROTATED_Q, Role.ROTATED_K))
            turned = engine.run(self, function, Pass.APPEND, {role: arrays[role] for role in roles if role in arrays}, wanted)
        new_k = turned.get(Role.ROTATED_K, arrays[Role.NEW_K])
        count = new_k.shape[1]
        if count:
            place = _place(arrays, options, count)
            arrays[Role.K][place] = new_k
            arrays[Role.V][place] = arrays[Role.NEW_V]
        return turned.get(Role.ROTATED_Q, arrays.get(Role.Q))

    def describe_dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("mlx.core.")


def _emulation() -> tuple[str, str, str]:
    """The words of FLASH_ATTENTION_METAL=emulate:<build>:g<generation>, of which the last two may be missing."""
    text = _core.metal_mode()
    if not text:
        return "", "", ""
    mode, build, family, *more = (*text.split(":"), "", "")
    if any(more) or not re.fullmatch(r"(g\d+)?", family):
        raise RuntimeError(f"[FLASH_ATTENTION_METAL] emulate: expected emulate:<build>:g<number>, found {text}.")
    return mode, build, family


@functools.cache
def _gpu() -> str:
    """The GPU, and what decides what it makes of a kernel's text."""
    system = platform.mac_ver()[0] or platform.release()
    return f"{_architecture()}, system {system}, MLX {mx.__version__}"


def _architecture() -> str:
    information = getattr(mx, "device_info", None) or mx.metal.device_info
    return str(information().get("architecture", "unknown"))


@functools.cache
def _generation() -> int:
    """17 of applegpu_g17s, if the system and MLX compile Metal 4 for it, as MLX decides for its own kernels; else 0. Phones and tablets (p)
    have tensor operations a generation later than Macs."""
    found = re.fullmatch(r"applegpu_g(\d+)([a-z]?)", _architecture())
    system = _first_numbers(platform.release())  # of the kernel, which tells old programs no other: 25.2 is macOS 26.2
    if not found or system < (25, 2) or _first_numbers(mx.__version__) < (0, 30):
        return 0
    return int(found.group(1)) - (found.group(2) == "p")


def _first_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", version)[:2])


FRAMEWORK = MLX()
_HAS_METAL = mx.metal.is_available()


def _small(shape: list[int], code: int) -> mx.array | None:
    """An array of zeros made without an operation; 16-bit floats as uint16. None if it is too large, or has no elements."""
    if code not in _FORMATS:
        return None
    size = 2 if _FORMATS[code] == "H" else 4
    for n in shape:
        size *= n
    return mx.array(_zeros[:size].cast(_FORMATS[code], shape)) if 0 < size <= _SMALL else None


def _place(arrays: Arrays, options: Options, count: int) -> tuple:
    """The index of the new keys in the caches."""
    batch = arrays[Role.NEW_K].shape[0]
    lengths, pages = arrays.get(Role.LENGTHS), arrays.get(Role.PAGES)
    if pages is None and lengths is None and Role.CACHE_ROWS not in arrays:
        return slice(None), slice(options.cache_length, options.cache_length + count)
    position = mx.arange(count) + (options.cache_length if lengths is None else lengths[:, None])
    position = mx.broadcast_to(position, (batch, count))
    if pages is not None:
        size = arrays[Role.K].shape[1]
        return mx.take_along_axis(pages, position // size, axis=1), position % size
    rows = arrays.get(Role.CACHE_ROWS, mx.arange(batch))
    return rows[:, None], position


# ---- custom functions ---------------------------------------------------------------------------------------------------


class Call:
    """What a custom function needs besides arrays: the last argument, because MLX counts axes and gradients wrongly behind others
    that are no arrays. No tuple, or MLX would look for arrays inside."""

    __slots__ = ("function", "made", "options", "outputs", "roles")

    def __init__(self, function: str, options: Options, roles: tuple[int, ...], outputs: tuple[int, ...], made: Arrays | None = None):
        self.function = function
        self.options = options
        self.roles = roles
        self.outputs = outputs  # the roles of the results, in order
        self.made = made  # the results, where they are there already

    def arrays(self, values: Sequence[mx.array]) -> Arrays:
        """The arguments before this one, by role."""
        return dict(zip(self.roles, values[: len(self.roles)], strict=True))


_differentiable: ContextVar[bool] = ContextVar("differentiable", default=True)
_mapped: ContextVar[bool] = ContextVar("mapped", default=False)
_older: ContextVar[bool] = ContextVar("older", default=False)  # the GPU is taken for one without tensor operations


@contextmanager
def without_gradients() -> Iterator[None]:
    """Calls inside run without custom functions, which mx.export_function cannot store."""
    token = _differentiable.set(False)
    try:
        yield
    finally:
        _differentiable.reset(token)


def vmap(function: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
    """mx.vmap, which on Metal alone cannot map our kernels: while it traces, they give way to the plain formula, and what the trace holds
    of that is thrown away when the kernels run on the folded batch."""

    def traced(*arguments: Any) -> Any:
        token = _mapped.set(True)
        try:
            return function(*arguments)
        finally:
            _mapped.reset(token)

    return mx.vmap(traced, in_axes, out_axes)


_FLOATS = (Role.Q, Role.K, Role.V, Role.BIAS, Role.SINK, *BACKWARD_ROLES)  # through which gradients flow; slopes are constants


def _outputs(which: int, options: Options) -> tuple[int, ...]:
    """The roles of what a pass writes, in order."""
    some = (Role.OUT, Role.LSE, Role.PROBABILITIES) if which == Pass.FORWARD else tuple(GRADIENTS)
    always = (Role.OUT, Role.LSE, Role.DQ, Role.DK, Role.DV)
    return tuple(role for role in some if role in always or options.wants >> role & 1)


def _run(which: int, primals: Sequence[Any]) -> tuple[mx.array, ...]:
    """A pass of the core, or of the formula where nothing can be evaluated."""
    call = primals[-1]
    results = call.made or engine.run(FRAMEWORK, call.function, which, call.arrays(primals), call.options, frozenset())
    return tuple(results[role] for role in call.outputs)


@mx.custom_function
def forward(*primals: Any) -> tuple[mx.array, ...]:
    """Arrays, Call -> (out, lse[, probabilities])."""
    return _run(Pass.FORWARD, primals)


@mx.custom_function
def backward(*primals: Any) -> tuple[mx.array, ...]:
    """Arrays of the forward, dout, out, lse, dlse, Call -> (dq, dk, dv[, dbias][, dsink])."""
    return _run(Pass.BACKWARD, primals)


@forward.vjp
def _(primals: Sequence[Any], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]) -> tuple:
    call = primals[-1]
    arrays = call.arrays(primals)
    wanted = 0
    if Role.BIAS in arrays and arrays[Role.BIAS].dtype != mx.bool_:
        wanted |= 1 << Role.DBIAS
    if Role.SINK in arrays:
        wanted |= 1 << Role.DSINK
    options = call.options._replace(wants=wanted, out_dtype=0)
    dout = cotangents[0].astype(arrays[Role.Q].dtype)  # out may be wider than q
    brought = {Role.DOUT: dout, Role.OUT: outputs[0], Role.LSE: outputs[1], Role.DLSE: cotangents[1]}
    outputs, inputs = _outputs(Pass.BACKWARD, options), arrays | brought
    if FRAMEWORK.metal():
        # MLX evaluates all results of a custom function or none. One for each, or launches would run whose gradients nobody asks for.
        made = engine.run(FRAMEWORK, call.function, Pass.BACKWARD, inputs, options, frozenset())
        gradients = [backward(*inputs.values(), Call(call.function, options, tuple(inputs), (role,), made))[0] for role in outputs]
    else:
        gradients = backward(*inputs.values(), Call(call.function, options, tuple(inputs), outputs))
    return _cotangents(arrays, {GRADIENTS[role]: x for role, x in zip(outputs, gradients, strict=True)})


@backward.vjp
def _(primals: Sequence[Any], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]) -> tuple:
    call = primals[-1]
    arrays = call.arrays(primals)
    roles, function = _formula(Pass.BACKWARD, arrays, call)
    cotangents = [cotangents] if isinstance(cotangents, mx.array) else list(cotangents)  # a single one comes bare
    _, gradients = mx.vjp(function, [arrays[role] for role in roles], cotangents)
    return _cotangents(arrays, dict(zip(roles, gradients, strict=True)))


def _cotangents(arrays: Arrays, gradients: Arrays) -> tuple:
    """One for each argument: zeros for arrays that have none, also for integers, and None for the Call."""
    return *(gradients[role] if role in gradients else mx.zeros_like(x) for role, x in arrays.items()), None


def _formula(which: int, arrays: Arrays, call: Call) -> tuple[list[int], Callable[..., list[mx.array]]]:
    """A pass of the plain formula as a function of the arrays through which gradients flow, and their roles."""
    roles = [role for role in _FLOATS if role in arrays and arrays[role].dtype != mx.bool_]

    def function(*values: mx.array) -> list[mx.array]:
        some = {**arrays, **dict(zip(roles, values, strict=True))}
        results = formula.run(_NAMESPACE, which, some, call.options)
        return [results[role] for role in call.outputs]

    return roles, function


def _jvp(which: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[mx.array, ...]:
    call = primals[-1]
    arrays, given = call.arrays(primals), call.arrays(tangents)
    roles, function = _formula(which, arrays, call)
    inputs = [arrays[role] for role in roles]
    directions = [mx.zeros_like(arrays[role]) if given[role] is None else given[role] for role in roles]
    # x -> J^T x is linear, and its own transpose is J: two reverse passes, because not every operation has a forward rule
    anywhere = [mx.zeros_like(x) for x in function(*inputs)]
    _, results = mx.vjp(lambda *x: mx.vjp(function, inputs, list(x))[1], anywhere, directions)
    return tuple(results)


@forward.jvp
def _(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[mx.array, ...]:
    return _jvp(Pass.FORWARD, primals, tangents)


@backward.jvp
def _(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[mx.array, ...]:
    return _jvp(Pass.BACKWARD, primals, tangents)


def _vmap(which: int, function: Callable[..., Sequence[mx.array]], inputs: Sequence[Any], axes: Sequence[Any]) -> tuple[tuple, tuple]:
    call = inputs[-1]

    def operation(arrays: Arrays, options: Options) -> Arrays:
        outputs = tuple(role for role in call.outputs if role in _outputs(which, options))
        results = function(*arrays.values(), Call(call.function, options, tuple(arrays), outputs)) if outputs else ()
        return dict(zip(outputs, results, strict=True))

    results = fold.mapped(_NAMESPACE, call.arrays(inputs), call.arrays(axes), call.options, operation)
    return tuple(results[role] for role in call.outputs), (0,) * len(call.outputs)


@forward.vmap
def _(inputs: Sequence[Any], axes: Sequence[Any]) -> tuple[tuple, tuple]:
    return _vmap(Pass.FORWARD, forward, inputs, axes)


@backward.vmap
def _(inputs: Sequence[Any], axes: Sequence[Any]) -> tuple[tuple, tuple]:
    return _vmap(Pass.BACKWARD, backward, inputs, axes)
