"""PyTorch tensors, on any device: eager calls go straight to the core, traced ones through the operators of torch_ops.py."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from flash_attn import _core, first_use, torch_ops
from flash_attn.call import DTYPES, Arrays, Options, Pass, Role
from flash_attn.engine import FORWARD_ROLES, GRADIENTS
from flash_attn.frameworks.base import Framework, on_main_thread
from flash_attn.runners import metal_torch

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})
_GRADIENT_OF = {source: gradient for gradient, source in GRADIENTS.items()}
_CACHE_ARGUMENTS = (Role.NEW_K, Role.NEW_V, Role.COS, Role.SIN)
_Q, _K, _V, _BIAS, _SINK, _OUT, _LSE, _DOUT, _DLSE = (
    Role.Q, Role.K, Role.V, Role.BIAS, Role.SINK, Role.OUT, Role.LSE, Role.DOUT, Role.DLSE
)  # fmt: skip
_FORWARD, _BACKWARD = Pass.FORWARD, Pass.BACKWARD
_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
# asked once: TorchDynamo does not know the function everywhere
_AUTOCASTING = frozenset(device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device))
_at_word = metal_torch.is_at_word
_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda x: False)  # torch.autograd.grad(is_grads_batched=True)
_eager = torch_ops.is_eager
_run = torch_ops.run


class Torch(Framework):
    name = "PyTorch"

    def owns(self, array: Any) -> bool:
        return isinstance(array, torch.Tensor)

    def dtype_code(self, dtype: Any) -> int | None:
        return DTYPES.get(dtype) if isinstance(dtype, str) else torch_ops.CODES.get(dtype)

    def view(self, array: Any, writable: bool = False) -> _core.View:
        return torch_ops.view(array)

    def empty(self, shape: list[int], code: int, like: Any) -> torch.Tensor:
        return like.new_empty(shape, dtype=torch_ops.BY_CODE[code])

    def contiguous(self, array: Any) -> torch.Tensor:
        return array.contiguous()

    def from_bytes(self, data: bytes, shape: Sequence[int], code: int, like: Any = None) -> torch.Tensor:
        """Lies at a multiple of 16 bytes if ``like`` does."""
        dtype = torch_ops.BY_CODE[code]
        made = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if like is not None:
            skipped = 0 if _at_word(like) else 1
            made = torch.empty(made.numel() + skipped, dtype=dtype, device=like.device)[skipped:].copy_(made)
        return made.reshape(shape)

    def floats(self, array: Any) -> Sequence[float]:
        return array.detach().to(torch.float32).reshape(-1).tolist()

    def execute(self, prepared: _core.Prepared, arrays: Arrays, views: list) -> Arrays:
        return torch_ops.execute(prepared, arrays)

    def trusted(self, prepared: _core.Prepared, function: str, views: list, arrays: Arrays, options: Options) -> _core.Prepared:
        """The plan, or one by the plain kernel where Metal kernels have failed on this device."""
        kernels = metal_torch.kernels(prepared, metal_torch.codes_of(arrays), all(map(_at_word, arrays.values())))
        like = next(iter(arrays.values()))
        if not metal_torch.read_words(kernels):
            like = like.new_empty(2)[1:]
        return first_use.trusted(self, _apple(), kernels, prepared, function, views, options, like)

    def remark(self, function: str, views: list, options: Options) -> str:
        prepared = _core.prepare(function, Pass.FORWARD, views, options)
        if prepared.backend != "metal":
            return ""
        codes = {role: view.dtype for role, view in views}
        return first_use.remark(metal_torch.kernels(prepared, codes, True), prepared)

    def namespace(self) -> torch_ops.Namespace:
        return torch_ops.Namespace()

    def unpack(self, array: Any, axis: int) -> tuple[torch.Tensor, ...]:
        return array.unbind(axis)  # one node for autograd, whose gradient is one stack

    def describe_dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def seed(self, like: Any) -> torch.Tensor:
        # out of place, so that torch.func's rules for randomness hold
        drawn = torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=like.device)
        return drawn * torch.arange(1, -1, -1, device=like.device)  # offset 0

    def length(self, function: str, name: str, value: Any) -> int:
        # a number that is known only when the compiled function runs can be compared with nothing
        return value if _is_compiling() and type(value) is int else super().length(function, name, value)

    def quick(self, function: str, arrays: Arrays, values: tuple[Any, ...], with_lse: bool) -> tuple[Any, Any] | None:
        if _is_compiling() or forward_ad._current_level >= 0 or _any_autocast() or arrays[_Q].is_mps:
            return None
        found = torch_ops.EXCHANGE.quick(function, _FORWARD, arrays, values, on_main_thread())
        if found != ():
            return found
        results = _apply((function, values, arrays, with_lse), arrays[_Q], arrays[_K], arrays[_V])
        return results if with_lse else (results, None)

    def attention(self, function: str, arrays: Arrays, options: Options) -> tuple[Any, Any, Any]:
        if _is_compiling():
            return _traced(function, _cast(arrays, arrays[_Q]), options)
        if _any_autocast():
            arrays = _cast(arrays, arrays[_Q])
        if not _eager(arrays):
            return _traced(function, arrays, options)
        if _is_grad_enabled():
            q, k, v, bias, sink = arrays[_Q], arrays[_K], arrays[_V], arrays.get(_BIAS), arrays.get(_SINK)
            some = bias is not None or sink is not None
            if q.requires_grad or k.requires_grad or v.requires_grad or (some and _requires_grad(bias, sink)):
                results = _apply((function, options, arrays, True), q, k, v, *((bias, sink) if some else ()))
                return results if len(results) == 3 else (*results, None)
        out, lse, *probabilities = _run(function, Pass.FORWARD, arrays, options).values()
        return out, lse, probabilities[0] if probabilities else None

    def with_kvcache(self, function: str, arrays: Arrays, options: Options) -> tuple[Any, Any]:
        arrays = _cast_to_cache(arrays)
        writes = any(role in arrays for role in _CACHE_ARGUMENTS)
        if writes and torch.is_grad_enabled():
            for role in (Role.K, Role.V):
                if arrays[role].requires_grad:
                    raise ValueError(
                        f"[{function}] {_argument(function, role)}: expected a cache that does not require grad, for it is "
                        "written in place, found one that does."
                    )
        if torch.compiler.is_compiling() or not _eager(arrays):
            _check_tensors(function, arrays)
            if writes:
                _refuse_transforms(function, arrays)
                return torch.ops.flash_attn.with_kvcache(function, *torch_ops.flatten(torch_ops.CACHE_ROLES, arrays, options))
            return _traced(function, arrays, options)[:2]
        if torch.is_grad_enabled() and any(x.requires_grad for x in arrays.values()):
            return _WithoutGradients.apply(function, options, tuple(arrays), *arrays.values())
        return torch_ops.run_with_kvcache(function, arrays, options)

    def backward(self, function: str, arrays: Arrays, options: Options, written: int) -> Arrays:
        """Gradients written into arrays that the caller brought (bits of their roles in `written`), for callers with their own autograd."""
        return torch_ops.run(function, Pass.BACKWARD, torch_ops.materialised(arrays), options, written)


# ---------------------------------------------------------------------------------------------------------- which way to go


def _requires_grad(*tensors: Any) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)


def _cast(arrays: Arrays, like: Any) -> Arrays:
    """q, k and v in the dtype of autocast, where it is on; slopes, biases and sinks keep theirs."""
    if not isinstance(like, torch.Tensor):
        return arrays
    device = like.device.type
    if device not in _AUTOCASTING or not torch.is_autocast_enabled(device):
        return arrays
    dtype = torch.get_autocast_dtype(device)
    changed = {role: arrays[role].to(dtype) for role in (Role.Q, Role.K, Role.V) if _differs(arrays.get(role), dtype)}
    return {**arrays, **changed}


def _cast_to_cache(arrays: Arrays) -> Arrays:
    """Under autocast, what is not the cache in the dtype of the cache, which must stay where it is."""
    cache = arrays[Role.K]
    if not isinstance(cache, torch.Tensor) or not _any_autocast() or not torch.is_autocast_enabled(cache.device.type):
        return arrays
    roles = (Role.Q, *_CACHE_ARGUMENTS)
    return {**arrays, **{role: arrays[role].to(cache.dtype) for role in roles if _differs(arrays.get(role), cache.dtype)}}


def _differs(x: Any, dtype: torch.dtype) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in _FLOATS and x.dtype != dtype


def _argument(function: str, role: int) -> str:
    return _core.argument_name(function, role)


_argument._dynamo_marked_constant = True  # torch.compiler.assume_constant_result() without the import of the compiler, which takes seconds


def _refuse_transforms(function: str, arrays: Arrays) -> None:
    """For a cache that is written: torch.func would leave its derivatives out without a word, or say something of its own insides."""
    if _is_compiling():
        inside = torch_ops.differentiated_inside()
    else:
        inside = torch_ops.forward_mode(arrays) or any(torch_ops.is_wrapped(x) for x in arrays.values())
    if inside:
        raise NotImplementedError(
            f"[{function}] writes into its caches: expected a call outside of torch.func.grad, vmap and jvp and without forward-mode "
            "derivatives, found one inside."
        )


def _check_tensors(function: str, arrays: Arrays) -> None:
    for role, x in arrays.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(
                f"[{function}] {_argument(function, role)}: expected a PyTorch array like the others, "
                f"found {type(x).__module__}.{type(x).__qualname__}."
            )


def _traced(function: str, arrays: Arrays, options: Options) -> tuple[Any, Any, Any]:
    """For torch.compile, torch.export, torch.func, fake and meta tensors, subclasses, dispatch modes."""
    _check_tensors(function, arrays)
    if _is_compiling():
        if torch_ops.differentiated_inside():
            constants = {role: x.detach() for role, x in arrays.items()}
            torch.ops.flash_attn.forward(function, *torch_ops.flatten(FORWARD_ROLES, constants, options))  # for its checks: it is dead code
            return _formula(function, arrays, options)
    elif torch_ops.forward_mode(arrays):
        torch_ops.check_fake(function, Pass.FORWARD, arrays, options)
        return _formula(function, arrays, options)
    elif torch_ops.transforms() is not None:
        return _wanted(options, *_Transformed.apply(function, options, tuple(arrays), *arrays.values()))
    return _wanted(options, *torch.ops.flash_attn.forward(function, *torch_ops.flatten(FORWARD_ROLES, arrays, options)))


def _wanted(options: Options, out: Any, lse: Any, probabilities: Any) -> tuple[Any, Any, Any]:
    return out, lse, probabilities if options.wants >> Role.PROBABILITIES & 1 else None


def _formula(function: str, arrays: Arrays, options: Options) -> tuple[Any, Any, Any]:
    from flash_attn import formula

    results = formula.run(torch_ops.Namespace(arrays[Role.Q].device), Pass.FORWARD, arrays, options)
    return results[Role.OUT], results[Role.LSE], results.get(Role.PROBABILITIES)


# ---------------------------------------------------------------------------------------------------------- eager autograd


class _Attention(torch.autograd.Function):
    # q, k, v and, if one of them is there, the bias and the sink are arguments; the rest of the arrays has no gradient
    @staticmethod
    def forward(ctx: Any, call: tuple[str, tuple[Any, ...], Arrays, bool], *_: Any) -> Any:
        function, options, arrays, with_lse = call
        results = tuple(_run(function, _FORWARD, arrays, options).values())
        ctx.call = function, options, (*arrays, _OUT, _LSE), with_lse
        ctx.save_for_backward(*arrays.values(), *results[:2])
        if not with_lse:
            return results[0]
        ctx.set_materialize_grads(False)
        if len(results) > 2:
            ctx.mark_non_differentiable(results[2])
        return results

    @staticmethod
    def backward(ctx: Any, dout: Any, dlse: Any = None, *_: Any) -> tuple[Any, ...]:
        function, options, roles, has_lse = ctx.call
        arrays = dict(zip(roles, ctx.saved_tensors))
        others = ctx.needs_input_grad[4:]  # bias, sink
        usual = dlse is None and dout is not None and not others and forward_ad._current_level < 0
        if usual and not _legacy_batched(dout) and not dout.is_mps:
            arrays[_DOUT] = dout
            found = type(torch_ops.EXCHANGE).quick(torch_ops.EXCHANGE, function, _BACKWARD, arrays, options, on_main_thread())
            if found is not None:
                return None, *found
        if not has_lse and _is_grad_enabled():  # an lse that was no result is a constant to autograd: second order needs one that is not
            again = {role: arrays[role] for role in roles[:-2]}
            arrays[_OUT], arrays[_LSE] = _apply((function, options, again, True), arrays[_Q], arrays[_K], arrays[_V])
        needed = {role: _GRADIENT_OF[role] for role, needs in zip((_BIAS, _SINK), others) if needs}
        found = torch_ops.gradients(function, arrays, Options(*options), dout, dlse, needed, _backward)
        gradients = None, found[Role.DQ], found[Role.DK], found[Role.DV]
        return (*gradients, *(found.get(needed.get(role)) for role in (_BIAS, _SINK))) if others else gradients


# Without the part of Function.apply() that is written in Python and is for torch.func, which _eager() has excluded.
_apply = super(torch.autograd.Function, _Attention).apply


def _backward(function: str, arrays: Arrays, options: Options) -> Arrays:
    if not _eager(arrays) or _legacy_batched(arrays[_DOUT]):
        flat = torch_ops.flatten(torch_ops.BACKWARD_ROLES, arrays, options)
        return dict(zip(GRADIENTS, torch.ops.flash_attn.backward(function, *flat)))
    if _is_grad_enabled():  # create_graph=True
        outputs = [role for role in GRADIENTS if role in (Role.DQ, Role.DK, Role.DV) or options.wants >> role & 1]
        return dict(zip(outputs, _Gradients.apply(function, options, tuple(arrays), *arrays.values())))
    return _run(function, Pass.BACKWARD, arrays, options)


class _Gradients(torch.autograd.Function):
    """The backward pass where it shall be differentiated in its turn."""

    @staticmethod
    def forward(ctx: Any, function: str, options: Options, roles: tuple[int, ...], *tensors: torch.Tensor) -> tuple[Any, ...]:
        results = torch_ops.run(function, Pass.BACKWARD, dict(zip(roles, tensors)), options)
        ctx.call = options, roles, tuple(results)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(results.values())

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        options, roles, outputs = ctx.call
        arrays = dict(zip(roles, ctx.saved_tensors))
        needed = torch_ops.asked(roles, ctx.needs_input_grad[3:])
        gradients = dict(zip(needed, torch_ops.second_order(arrays, options, needed, outputs, cotangents)))
        return None, None, None, *(gradients.get(role) for role in roles)


class _Transformed(torch.autograd.Function):
    """The forward operator for torch.func, which asks for this form."""

    generate_vmap_rule = True  # by the operators' own rules

    @staticmethod
    def forward(function: str, options: Options, roles: tuple[int, ...], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = torch_ops.flatten(FORWARD_ROLES, dict(zip(roles, tensors)), options)
        return torch.ops.flash_attn.forward(function, *flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.call = inputs[:3]
        ctx.save_for_backward(*inputs[3:], *output[:2])

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor, dlse: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        function, options, roles = ctx.call
        arrays = dict(zip((*roles, Role.OUT, Role.LSE), ctx.saved_tensors))
        if Role.SLOPES in roles and ctx.needs_input_grad[3 + roles.index(Role.SLOPES)]:  # torch.func would make zeros of no gradient
            name = _argument(function, Role.SLOPES)
            raise NotImplementedError(f"[{function}] {name}: expected a constant, for it has no gradient, found an argument of torch.func.")
        needed = {role: _GRADIENT_OF[role] for role in torch_ops.asked(roles, ctx.needs_input_grad[3:])}

        def step(function: str, arrays: Arrays, options: Options) -> Arrays:
            return dict(zip(GRADIENTS, _TransformedBackward.apply(function, options, tuple(arrays), *arrays.values())))

        gradients = torch_ops.gradients(function, arrays, options, dout, dlse, needed, step)
        return None, None, None, *(gradients.get(needed.get(role)) for role in roles)


class _TransformedBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: str, options: Options, roles: tuple[int, ...], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = torch_ops.flatten(torch_ops.BACKWARD_ROLES, dict(zip(roles, tensors)), options)
        return torch.ops.flash_attn.backward(function, *flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.call = inputs[1:3]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        options, roles = ctx.call
        arrays = dict(zip(roles, ctx.saved_tensors))
        needed = torch_ops.asked(roles, ctx.needs_input_grad[3:])
        found = torch_ops.second_order_of_operator(arrays, options, needed, cotangents)
        return None, None, None, *(found.get(role) for role in roles)


class _WithoutGradients(torch.autograd.Function):
    """A call that has no backward says so when one is asked for, rather than giving no gradient."""

    @staticmethod
    def forward(ctx: Any, function: str, options: Options, roles: tuple[int, ...], *tensors: torch.Tensor) -> tuple[Any, Any]:
        ctx.function = function
        return torch_ops.run_with_kvcache(function, dict(zip(roles, tensors)), options)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Callable[..., Any]:
        raise NotImplementedError(
            f"[{ctx.function}] has no backward: expected a call under torch.no_grad(), or gradients that nobody asks for."
        )


@functools.cache
def _apple() -> str:
    """The GPU of device mps, and what decides what it makes of a kernel's text."""
    name = getattr(torch.backends.mps, "get_name", lambda: "Apple GPU")()
    return f"{name}, system {platform.mac_ver()[0] or platform.release()}, PyTorch {torch.__version__}"


FRAMEWORK = Torch()
