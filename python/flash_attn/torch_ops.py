"""PyTorch operations: passes of the core on tensors' memory, and the same as custom operators for everything that traces.

torch.ops.flash_attn.forward, .backward and .with_kvcache take arrays by role (engine.FORWARD_ROLES) and options as a flat list; they have
fake kernels (torch.compile, torch.export), autograd, second order by the plain formula, and batching rules. Eager calls of
frameworks/torch.py go to run() without a detour through the dispatcher, which costs several times what a small attention does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from flash_attn import _core, fold, namespaces
from flash_attn.call import DTYPE_NAMES, DTYPES, Arrays, Options, Pass, Role
from flash_attn.engine import FORWARD_ROLES, GRADIENTS, wants
from flash_attn.frameworks.base import STRIDED, on_main_thread
from flash_attn.runners import metal_torch

CODES = {getattr(torch, name): code for name, code in DTYPES.items() if name != "bool_" and hasattr(torch, name)}
BY_CODE = tuple(getattr(torch, DTYPE_NAMES.get(code, "uint8"), torch.uint8) for code in range(9))
_KINDS = {"cpu": 0, "cuda": 3 if torch.version.hip else 1, "mps": 2}

# ------------------------------------------------------------------------------------------------------------- on memory


def view(tensor: torch.Tensor, real: bool = True) -> _core.View:
    """The core's view of a tensor; ``real`` False: of its shape only, for tensors without memory."""
    device = tensor.device
    shape = [_hint(n) for n in tensor.shape]
    strides = [_hint(n) for n in tensor.stride()]
    if 0 in shape:  # may be anything in an array without elements
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    kind, owner = _KINDS.get(device.type, 0), tensor if real else None
    return _core.view_of_address(tensor.data_ptr() if real else 0, CODES[tensor.dtype], shape, strides, kind, device.index or 0, owner)


def execute(prepared: _core.Prepared, arrays: Arrays) -> Arrays:
    """Runs a prepared call on tensors: what it writes, by role, in the caller's tensors where there are some."""
    if prepared.backend == "metal":
        return metal_torch.execute(prepared, arrays)
    like = next(iter(arrays.values()))
    results = {
        role: arrays[role] if role in arrays else like.new_empty(shape, dtype=BY_CODE[code]) for role, code, shape in prepared.outputs
    }
    temporaries = [view(like.new_empty(count, dtype=BY_CODE[code])) for code, count in prepared.temporaries]  # views own their memory
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
    _core.run(prepared, [(role, view(tensor)) for role, tensor in results.items()], on_main_thread(), temporaries, stream)
    return results


class _Addresses:
    """What _core.Exchange does, for torch < 2.10, which has no DLPack exchange table, and for kernels that only Python can launch."""

    def _views(self, function: str, arrays: Arrays, written: int) -> tuple[list[tuple[int, _core.View]], Arrays]:
        """Views by role, and the arrays that they are views of: copies of those that no kernel reads as they are."""
        views, placed = [], {}
        for role, tensor in arrays.items():
            name = _core.argument_name(function, role)
            if not isinstance(tensor, torch.Tensor):
                kind = type(tensor)
                raise TypeError(
                    f"[{function}] {name}: expected a PyTorch array like the others, found {kind.__module__}.{kind.__qualname__}."
                )
            if tensor.dtype not in CODES or tensor.layout != torch.strided:
                raise TypeError(
                    f"[{function}] {name}: expected one of {', '.join(DTYPE_NAMES.values())}, found {tensor.dtype} ({tensor.layout})."
                )
            made = view(tensor)
            if not (made.last_axis_contiguous if role in STRIDED else made.contiguous) and not written >> role & 1:
                tensor = tensor.contiguous()
                made = view(tensor)
            views.append((role, made))
            placed[role] = tensor
        return views, placed

    def eager(self, arrays: Arrays) -> bool:
        if any(watcher() for watcher in _WATCHERS):
            return False
        return all(type(x) in _EXACT and not (x.is_meta or x.is_neg()) for x in arrays.values())

    def quick(self, *_: Any) -> None:
        return None

    def check(self, function: str, pass_: int, arrays: Arrays, options: Options, written: int) -> None:
        _core.prepare(function, pass_, self._views(function, arrays, written)[0], options)

    def run(self, function: str, pass_: int, arrays: Arrays, options: Options, written: int, main_thread: bool) -> Arrays:
        views, placed = self._views(function, arrays, written)
        prepared = _core.prepare(function, pass_, views, options)
        if prepared.backend == "metal":
            from flash_attn.frameworks.torch import FRAMEWORK

            prepared = FRAMEWORK.trusted(prepared, function, views, placed, options)
        return execute(prepared, placed)


ADDRESSES = _Addresses()
_EXACT = (torch.Tensor, torch.nn.Parameter)  # subclasses may hide anything: they take the dispatcher
transforms = torch._C._functorch.peek_interpreter_stack
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
GRAD, JVP = torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp
_WATCHERS = (torch._C._len_torch_dispatch_stack, transforms, torch._C._get_tracing_state)
EXCHANGE: Any = ADDRESSES
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    EXCHANGE = _core.Exchange(_EXACT, torch.empty_like, BY_CODE, "PyTorch", _WATCHERS, torch.is_grad_enabled)


def _exchange(arrays: Arrays) -> Any:
    """Kernels for tensors on mps are launched from Python, and not every PyTorch has DLPack views of them."""
    return ADDRESSES if getattr(next(iter(arrays.values())), "is_mps", False) else EXCHANGE


def run(function: str, which: int, arrays: Arrays, options: Options, written: int = 0) -> Arrays:
    """One pass on plain tensors: what it wrote, by role. ``written``: bits of roles that are written in place."""
    exchange = _exchange(arrays)
    # not exchange.run(): TorchDynamo, which may come here after torch.vmap(compiled), forgets the object of methods that are written in C++
    results = type(exchange).run(exchange, function, which, arrays, options, written, on_main_thread())
    if written:
        for role, tensor in arrays.items():
            if written >> role & 1 and not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
    return results


def is_eager(arrays: Arrays) -> bool:
    """Whether these are tensors with memory, and nobody is watching what is done with them."""
    return forward_ad._current_level < 0 and EXCHANGE.eager(arrays)


def transform_kinds() -> set[Any]:
    """Which transforms of torch.func we are inside of."""
    return {level.key() for level in torch._C._functorch.get_interpreter_stack() or ()}


def forward_mode(arrays: Arrays) -> bool:
    """Whether forward-mode derivatives are asked for: no kernel computes them, the plain formula does."""
    if JVP in transform_kinds():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in arrays.values() if x.is_floating_point())


def differentiated(arrays: Arrays) -> bool:
    """Whether torch.func.grad, jvp or forward mode would have to see what is done with these arrays."""
    return forward_mode(arrays) or (GRAD in transform_kinds() and any(is_wrapped(x) and x.requires_grad for x in arrays.values()))


def differentiated_inside() -> bool:
    """Whether torch.func.grad or jvp is part of what is being compiled: in which operators take no part, but the plain formula does."""
    return bool(transform_kinds() & {GRAD, JVP})


differentiated_inside._dynamo_marked_constant = True  # evaluated while tracing, as by torch.compiler.assume_constant_result()


def materialised(arrays: Arrays) -> Arrays:
    """Arrays without the lazy negation that views of complex tensors can carry and no kernel reads."""
    return {role: x.resolve_neg() if isinstance(x, torch.Tensor) else x for role, x in arrays.items()}


CACHE_ROLES = (*FORWARD_ROLES, Role.NEW_K, Role.NEW_V, Role.COS, Role.SIN)
APPEND_ROLES = frozenset(CACHE_ROLES) - {Role.SLOPES, Role.SINK, Role.SEED, Role.BIAS}
CACHES = wants(Role.K, Role.V)


def run_with_kvcache(function: str, arrays: Arrays, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse), after the new keys, if any, have been written into the caches; nothing is written if anything is wrong."""
    if any(role in arrays for role in (Role.NEW_K, Role.NEW_V, Role.COS, Role.SIN)):
        exchange = _exchange(arrays)
        type(exchange).check(exchange, function, Pass.FORWARD, arrays, options, CACHES)
        some = {role: array for role, array in arrays.items() if role in APPEND_ROLES}
        turned = options._replace(wants=wants(Role.ROTATED_Q) if Role.COS in arrays else 0)
        results = run(function, Pass.APPEND, some, turned, CACHES)
        arrays = arrays | {Role.Q: results.get(Role.ROTATED_Q, arrays[Role.Q])}
    results = run(function, Pass.FORWARD, arrays, options)
    return results[Role.OUT], results[Role.LSE]


# ---------------------------------------------------------------------------------------------------------- fake kernels


def _hint(number: Any) -> int:
    """The size that a traced size has now; 2 where it has none, as for sizes that depend on data."""
    if isinstance(number, torch.SymInt):
        return number.node.hint if number.node.has_hint() else 2
    return int(number)


def _is_known(number: Any) -> bool:
    return not isinstance(number, torch.SymInt) or number.node.has_hint()


def check_fake(function: str, which: int, arrays: Arrays, options: Options) -> None:
    """Every check that needs no values, at trace time. Sizes that depend on data are left to the run."""
    for role, x in arrays.items():
        if x.device != arrays[Role.Q].device:
            name = _core.argument_name(function, role)
            raise ValueError(f"[{function}] {name}: expected an array on the device of q, {arrays[Role.Q].device}, found {x.device}.")
    numbers = [n for x in arrays.values() for n in (*x.shape, *x.stride())]
    if all(_is_known(n) for n in (*numbers, *options)):
        known = Options(*(_hint(o) if isinstance(o, torch.SymInt) else o for o in options))
        views = []
        for role, x in arrays.items():
            if x.dtype not in CODES:
                raise TypeError(
                    f"[{function}] {_core.argument_name(function, role)}: expected one of "
                    f"{', '.join(DTYPE_NAMES.values())}, found {x.dtype}."
                )
            if not _contiguous(x, role in STRIDED):
                x = torch.empty(x.shape, dtype=x.dtype, device="meta")
            views.append((role, view(x, real=False)))
        _core.describe(function, which, views, known)


def _contiguous(x: torch.Tensor, last_axis_only: bool) -> bool:
    return x.dim() == 0 or x.is_contiguous() or (last_axis_only and (_hint(x.stride(-1)) == 1 or _hint(x.shape[-1]) <= 1))


def _lse_dtype(q: torch.Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def empty_outputs(arrays: Arrays, options: Options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = arrays[Role.Q], arrays[Role.K], arrays[Role.V]
    out = q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=BY_CODE[options.out_dtype] if options.out_dtype else q.dtype)
    packed = Role.CU_ROWS in arrays
    lse = q.new_empty((q.shape[1], q.shape[0]) if packed else (q.shape[0], q.shape[2], q.shape[1]), dtype=_lse_dtype(q))
    if not options.wants >> Role.PROBABILITIES & 1:
        shape = (0,)
    elif packed:
        keys = torch.sym_min(options.max_keys, k.shape[0]) if Role.PAGES not in arrays else options.max_keys
        shape = (arrays[Role.CU_ROWS].shape[0] - 1, q.shape[1], torch.sym_min(options.max_rows, q.shape[0]), keys)
    else:
        shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    return out, lse, q.new_empty(shape)


# ------------------------------------------------------------------------------------------------------------- operators

_TENSORS = {role: _core.ROLES[role] for role in CACHE_ROLES}
_OPTIONS = (
    "float dropout, float? scale, bool causal, SymInt left, SymInt right, float softcap, bool deterministic, SymInt chunk, "
    "bool has_offsets, SymInt q_offset, SymInt k_offset, SymInt max_rows, SymInt max_keys, int out_dtype, int splits, "
    "SymInt? cache_length, bool rotary_interleaved, int wants"
)
BACKWARD_ROLES = (Role.DOUT, Role.OUT, Role.LSE, Role.DLSE, *FORWARD_ROLES)
_REQUIRED = (Role.Q, Role.K, Role.V, Role.DOUT, Role.OUT, Role.LSE)


def _schema(roles: tuple[int, ...], results: int, written: dict[int, str]) -> str:
    tensors = [
        f"Tensor{f'({written[role]}!)' if role in written else '' if role in _REQUIRED else '?'} {_core.ROLES[role]}" for role in roles
    ]
    return f"(str function, {', '.join(tensors)}, {_OPTIONS}) -> ({', '.join(['Tensor'] * results)})"


def _call(roles: tuple[int, ...], flat: tuple[Any, ...]) -> tuple[Arrays, Options]:
    arrays = {role: x for role, x in zip(roles, flat) if x is not None}
    return arrays, Options(*flat[len(roles) :])


def flatten(roles: tuple[int, ...], arrays: Arrays, options: Options) -> tuple[Any, ...]:
    """Arguments of an operator after the function's name."""
    return (*(arrays.get(role) for role in roles), *options)


def _forward(function: str, *flat: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    arrays, options = _call(FORWARD_ROLES, flat)
    results = run(function, Pass.FORWARD, materialised(arrays), options)
    probabilities = results.get(Role.PROBABILITIES)
    return results[Role.OUT], results[Role.LSE], arrays[Role.Q].new_empty((0,)) if probabilities is None else probabilities


def _backward(function: str, *flat: Any) -> tuple[torch.Tensor, ...]:
    arrays, options = _call(BACKWARD_ROLES, flat)
    results = run(function, Pass.BACKWARD, materialised(arrays), options)
    return tuple(results[role] if role in results else arrays[Role.Q].new_empty((0,)) for role in GRADIENTS)


def _with_kvcache(function: str, *flat: Any) -> tuple[torch.Tensor, torch.Tensor]:
    arrays, options = _call(CACHE_ROLES, flat)
    return run_with_kvcache(function, arrays, options)


forward = torch.library.custom_op("flash_attn::forward", _forward, mutates_args=(), schema=_schema(FORWARD_ROLES, 3, {}))
backward = torch.library.custom_op("flash_attn::backward", _backward, mutates_args=(), schema=_schema(BACKWARD_ROLES, 5, {}))
with_kvcache = torch.library.custom_op(
    "flash_attn::with_kvcache", _with_kvcache, mutates_args=("k", "v"), schema=_schema(CACHE_ROLES, 2, {Role.K: "a", Role.V: "b"})
)


@forward.register_fake
def _(function: str, *flat: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    arrays, options = _call(FORWARD_ROLES, flat)
    check_fake(function, Pass.FORWARD, arrays, options)
    return empty_outputs(arrays, options)


@backward.register_fake
def _(function: str, *flat: Any) -> tuple[torch.Tensor, ...]:
    arrays, options = _call(BACKWARD_ROLES, flat)
    check_fake(function, Pass.BACKWARD, arrays, options)
    always = (Role.DQ, Role.DK, Role.DV)
    return tuple(
        arrays[of].new_empty(arrays[of].shape) if role in always or options.wants >> role & 1 else arrays[Role.Q].new_empty((0,))
        for role, of in GRADIENTS.items()
    )


@with_kvcache.register_fake
def _(function: str, *flat: Any) -> tuple[torch.Tensor, torch.Tensor]:
    arrays, options = _call(CACHE_ROLES, flat)
    check_fake(function, Pass.FORWARD, arrays, options)
    return empty_outputs(arrays, options)[:2]


# -------------------------------------------------------------------------------------------------------------- autograd


class Namespace(namespaces.Namespace):
    """torch under the names that formula.py, fold.py and combine.py use; arrays are made on `device`."""

    bool_ = torch.bool
    transpose = staticmethod(torch.permute)

    def __init__(self, device: torch.device | None = None):
        super().__init__(torch)
        self.word = torch.int64  # holds 32 unsigned bits and their sums
        self.device = device

    def arange(self, first: int, end: int) -> torch.Tensor:
        return torch.arange(first, end, dtype=torch.int32, device=self.device)

    def zeros(self, shape: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def astype(self, array: torch.Tensor, dtype: torch.dtype | str) -> torch.Tensor:
        return array.to(self.dtype(dtype))

    def constant(self, array: torch.Tensor) -> torch.Tensor:
        return array.detach()

    def concatenate(self, parts: Any, axis: int = 0) -> torch.Tensor:
        return torch.cat(tuple(parts), dim=axis)

    def take(self, x: torch.Tensor, index: torch.Tensor, axis: int = 0) -> torch.Tensor:
        return torch.index_select(x, axis, index.to(torch.int64))

    def sum(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.sum(x, dim=axis, keepdim=keepdims)

    def max(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.amax(x, dim=axis, keepdim=keepdims)

    def any(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.any(x, dim=axis, keepdim=keepdims)

    def maximum(self, x: torch.Tensor, other: Any) -> torch.Tensor:
        return torch.maximum(x, other) if isinstance(other, torch.Tensor) else torch.clamp(x, min=other)

    def minimum(self, x: torch.Tensor, other: Any) -> torch.Tensor:
        return torch.minimum(x, other) if isinstance(other, torch.Tensor) else torch.clamp(x, max=other)


def asked(roles: Sequence[int], needs: Sequence[bool]) -> list[int]:
    """Roles of which autograd wants a gradient: slopes, though they may require one, are constants, as they are upstream."""
    return [role for role, wanted in zip(roles, needs) if wanted and role != Role.SLOPES]


def gradients(
    function: str, arrays: Arrays, options: Options, dout: Any, dlse: Any, needed: dict[int, int], step: Callable[..., Arrays]
) -> Arrays:
    """Gradients by their own roles of a forward call, computed by ``step``, a backward pass; ``needed``: role -> role of its gradient."""
    dtype = arrays[Role.Q].dtype
    if dout is None:  # only the lse was used
        dout = torch.zeros_like(arrays[Role.OUT])
    arrays[Role.DOUT] = dout if dout.dtype == dtype else dout.to(dtype)
    if dlse is not None:
        arrays[Role.DLSE] = dlse
    if needed or options.wants:
        extra = (gradient for source, gradient in needed.items() if source in (Role.BIAS, Role.SINK))
        options = options._replace(wants=wants(*extra))
    return step(function, arrays, options)


def second_order(
    arrays: Arrays, options: Options, needed: Sequence[int], outputs: Sequence[int], cotangents: Sequence[Any]
) -> Sequence[Any]:
    """Gradients of gradients, by the plain formula, whose memory is that of its scores: of `outputs` with respect to `needed`."""
    from flash_attn import formula

    xp = Namespace(arrays[Role.Q].device)

    def first_order(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = formula.run(xp, Pass.BACKWARD, {**arrays, **dict(zip(needed, tensors))}, options)
        return tuple(results[role] for role in outputs)

    values, pull = torch.func.vjp(first_order, *(arrays[role] for role in needed))
    return pull(tuple(torch.zeros_like(x) if c is None else c for x, c in zip(values, cotangents)))


def second_order_of_operator(arrays: Arrays, options: Options, needed: Sequence[int], cotangents: Sequence[Any]) -> Arrays:
    """second_order() for the outputs of the backward operator, some of which may be absent."""
    present = [role in (Role.DQ, Role.DK, Role.DV) or bool(options.wants >> role & 1) for role in GRADIENTS]
    outputs, some = ([x for x, here in zip(all_, present) if here] for all_ in (GRADIENTS, cotangents))
    return dict(zip(needed, second_order(arrays, options, needed, outputs, some)))


_BY_GRADIENT = {source: gradient for gradient, source in GRADIENTS.items()}


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    function, tensors, options = inputs[0], inputs[1 : 1 + len(FORWARD_ROLES)], inputs[1 + len(FORWARD_ROLES) :]
    ctx.function, ctx.options = function, options
    ctx.save_for_backward(*tensors, output[0], output[1])
    ctx.set_materialize_grads(False)


def _forward_backward(ctx: Any, dout: Any, dlse: Any, _: Any) -> tuple[Any, ...]:
    arrays = {role: x for role, x in zip((*FORWARD_ROLES, Role.OUT, Role.LSE), ctx.saved_tensors) if x is not None}
    needed = {role: _BY_GRADIENT[role] for role in asked(FORWARD_ROLES, ctx.needs_input_grad[1:])}

    def step(function: str, arrays: Arrays, options: Options) -> Arrays:
        return dict(zip(GRADIENTS, torch.ops.flash_attn.backward(function, *flatten(BACKWARD_ROLES, arrays, options))))

    found = gradients(ctx.function, arrays, Options(*ctx.options), dout, dlse, needed, step)
    return None, *(found[needed[role]] if role in needed else None for role in FORWARD_ROLES), *(None for _ in ctx.options)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.options = inputs[1 + len(BACKWARD_ROLES) :]
    ctx.save_for_backward(*inputs[1 : 1 + len(BACKWARD_ROLES)])
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
    arrays = {role: x for role, x in zip(BACKWARD_ROLES, ctx.saved_tensors) if x is not None}
    needed = asked(BACKWARD_ROLES, ctx.needs_input_grad[1:])
    found = second_order_of_operator(arrays, Options(*ctx.options), needed, cotangents)
    return None, *(found.get(role) for role in BACKWARD_ROLES), *(None for _ in ctx.options)


forward.register_autograd(_forward_backward, setup_context=_save_forward)
backward.register_autograd(_backward_backward, setup_context=_save_backward)


# -------------------------------------------------------------------------------------------------------------- batching


def _batched(operator: Any, roles: tuple[int, ...], results: tuple[int, ...]) -> Callable[..., Any]:
    """The rule of torch.vmap for an operator."""

    def rule(info: Any, in_dims: tuple[int | None, ...], function: str, *flat: Any) -> tuple[Any, Any]:
        arrays, options = _call(roles, flat)
        axes = {role: axis for role, axis in zip(roles, in_dims[1:]) if axis is not None}

        def operation(arrays: Arrays, options: Options) -> Arrays:
            return {role: x for role, x in zip(results, operator(function, *flatten(roles, arrays, options))) if x.shape != (0,)}

        found = fold.mapped(Namespace(arrays[Role.Q].device), arrays, axes, options, operation)
        absent = arrays[Role.Q].new_empty((0,))
        return tuple(found.get(role, absent) for role in results), tuple(0 if role in found else None for role in results)

    return rule


if hasattr(forward, "register_vmap"):  # torch >= 2.5
    forward.register_vmap(_batched(torch.ops.flash_attn.forward, FORWARD_ROLES, (Role.OUT, Role.LSE, Role.PROBABILITIES)))
    backward.register_vmap(_batched(torch.ops.flash_attn.backward, BACKWARD_ROLES, tuple(GRADIENTS)))
