"""Upstream's module of the same name, for PyTorch: the seven functions, the private forward and backward functions that ring attention
and context parallelism call with their own (out, lse), and the autograd classes. Argument names and return arity are those of 2.8.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from flash_attn import interface, torch_ops
from flash_attn.call import Arrays, Options, Pass, Role
from flash_attn.engine import wants
from flash_attn.frameworks.torch import FRAMEWORK
from flash_attn.interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

Tensor = torch.Tensor


def maybe_contiguous(x: Tensor | None) -> Tensor | None:
    """x with a contiguous last axis."""
    return x.contiguous() if x is not None and x.stride(-1) != 1 else x


def _given(arrays: dict[str, Any]) -> Arrays:
    return {getattr(Role, name): x for name, x in arrays.items() if x is not None}


def _options(function: str, dropout_p, softmax_scale, causal, left, right, softcap, deterministic=False, splits=0, **more: Any) -> Options:
    return interface.options_of(
        function, FRAMEWORK, dropout_p, softmax_scale, causal, (left, right), softcap, deterministic, 0, None, splits, **more
    )


def _forward(function: str, arrays: Arrays, options: Options, return_softmax: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q = arrays[Role.Q]
    if options.dropout:
        arrays[Role.SEED] = FRAMEWORK.seed(q)
        if return_softmax:
            options = options._replace(wants=wants(Role.PROBABILITIES))
    with torch.no_grad():
        results = torch_ops.run(function, Pass.FORWARD, torch_ops.materialised(arrays), options)
    rng_state = arrays[Role.SEED] if options.dropout else torch.zeros(2, dtype=torch.int64, device=q.device)
    probabilities = results.get(Role.PROBABILITIES)
    return results[Role.OUT], results[Role.LSE], q.new_empty((0,)) if probabilities is None else probabilities, rng_state


def _backward(function: str, arrays: Arrays, options: Options) -> Tensor:
    """Writes DQ, DK, DV of `arrays` in place, those that are there, and returns softmax_d = rowsum(dout * out)."""
    given = [role for role in (Role.DQ, Role.DK, Role.DV) if role in arrays]
    with torch.no_grad():
        results = torch_ops.run(
            function, Pass.BACKWARD, torch_ops.materialised(arrays), options._replace(wants=wants(Role.DELTA)), wants(*given)
        )
    return results[Role.DELTA]


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, softmax_lse, S_dmask, rng_state) of q (b, sq, h, d), k, v (b, sk, hk, d); without autograd.

    softmax_lse: float32 (b, h, sq). S_dmask: empty (0,) unless return_softmax and dropout_p > 0. rng_state: int64 (2,) [seed, offset].
    """
    function = "_flash_attn_forward"
    if _traces(function, q, k, v):
        return _wrapped_flash_attn_forward(
            q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, return_softmax
        )
    options = _options(function, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap)
    return _forward(function, _given({"Q": q, "K": k, "V": v, "SLOPES": alibi_slopes}), options, return_softmax)


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
    num_splits: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """_flash_attn_forward for packed sequences; softmax_lse is (h, total_q). Absent rows are 0 and -inf, with zero_tensors or without."""
    function = "_flash_attn_varlen_forward"
    if _traces(function, q, k, v):
        return _wrapped_flash_attn_varlen_forward(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size_left,
            window_size_right, softcap, alibi_slopes, return_softmax, block_table, leftpad_k, seqused_k, zero_tensors, num_splits,
        )  # fmt: skip
    arrays = _given(
        {
            "Q": q,
            "K": k,
            "V": v,
            "SLOPES": alibi_slopes,
            "CU_ROWS": cu_seqlens_q,
            "CU_KEYS": cu_seqlens_k,
            "USED_KEYS": seqused_k,
            "LEFTPAD": leftpad_k,
            "PAGES": block_table,
        }
    )
    options = _options(
        function, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, splits=num_splits,
        max_rows=max_seqlen_q, max_keys=max_seqlen_k,
    )  # fmt: skip
    return _forward(function, arrays, options, return_softmax)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Writes dq, dk and dv in place and returns softmax_d (b, h, sq) float32.

    out and softmax_lse may be those of a softmax over more keys than k: dk and dv are then the gradients of these keys, and dq their
    share. With dropout, rng_state must be that of the forward call.
    """
    function = "_flash_attn_backward"
    if _traces(function, q, k, v):
        return _wrapped_flash_attn_backward(
            dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
            alibi_slopes, deterministic, rng_state,
        )  # fmt: skip
    arrays = _given(
        {
            "DOUT": dout,
            "Q": q,
            "K": k,
            "V": v,
            "OUT": out,
            "LSE": softmax_lse,
            "DQ": dq,
            "DK": dk,
            "DV": dv,
            "SLOPES": alibi_slopes,
            "SEED": rng_state if dropout_p else None,
        }
    )
    options = _options(function, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, deterministic)
    return _backward(function, arrays, options)


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """_flash_attn_backward for packed sequences; softmax_lse and softmax_d are (h, total_q). Gradients of absent rows are 0."""
    function = "_flash_attn_varlen_backward"
    if _traces(function, q, k, v):
        return _wrapped_flash_attn_varlen_backward(
            dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale,
            causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state, zero_tensors,
        )  # fmt: skip
    arrays = _given(
        {
            "DOUT": dout,
            "Q": q,
            "K": k,
            "V": v,
            "OUT": out,
            "LSE": softmax_lse,
            "DQ": dq,
            "DK": dk,
            "DV": dv,
            "CU_ROWS": cu_seqlens_q,
            "CU_KEYS": cu_seqlens_k,
            "SLOPES": alibi_slopes,
            "SEED": rng_state if dropout_p else None,
        }
    )
    options = _options(
        function, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, deterministic,
        max_rows=max_seqlen_q, max_keys=max_seqlen_k,
    )  # fmt: skip
    return _backward(function, arrays, options)


# ------------------------------------------------------------------------------------- the same as operators: _wrapped_flash_attn_*


_running = threading.local()  # .operator: this thread is inside one of the operators below, which the dispatcher has called


def _traces(function: str, *tensors: Any) -> bool:
    """Whether the call belongs to the dispatcher: it is being traced, or its arrays are not plain tensors."""
    arrays = dict(enumerate(tensors))
    compiling = torch.compiler.is_compiling()
    if not compiling:
        plain = getattr(_running, "operator", False) or not all(isinstance(x, torch.Tensor) for x in tensors)
        if plain or torch_ops.is_eager(arrays):
            return False
    if torch_ops.differentiated_inside() if compiling else torch_ops.differentiated(arrays):
        raise NotImplementedError(
            f"[{function}] has no derivatives: expected a call outside of torch.func.grad and forward mode, found one inside."
        )
    return True


_MASK = "float dropout_p, float? softmax_scale, bool causal, SymInt window_size_left{0}, SymInt window_size_right{0}, float softcap{1}"
_LENGTHS = "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k"
_BEFORE = "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(a!)? dq, Tensor(b!)? dk, Tensor(c!)? dv, "
_AFTER = ", Tensor? alibi_slopes, bool deterministic, Tensor? rng_state=None"
_FORWARD_RESULT = " -> (Tensor, Tensor, Tensor, Tensor)"
_SCHEMAS = {
    "_flash_attn_forward": "(Tensor q, Tensor k, Tensor v, "
    + _MASK.format("", "")
    + ", Tensor? alibi_slopes, bool return_softmax)"
    + _FORWARD_RESULT,
    "_flash_attn_varlen_forward": f"(Tensor q, Tensor k, Tensor v, {_LENGTHS}, "
    + _MASK.format("=-1", "=0.0")
    + ", Tensor? alibi_slopes=None, bool return_softmax=False, Tensor? block_table=None, Tensor? leftpad_k=None, Tensor? seqused_k=None, "
    + "bool zero_tensors=False, int num_splits=0)"
    + _FORWARD_RESULT,
    "_flash_attn_backward": _BEFORE + _MASK.format("", "") + _AFTER + ") -> Tensor",
    "_flash_attn_varlen_backward": _BEFORE + f"{_LENGTHS}, " + _MASK.format("", "") + _AFTER + ", bool zero_tensors=False) -> Tensor",
}


def _operator(function: Any) -> Any:
    name = function.__name__
    written = ("dq", "dk", "dv") if "backward" in name else ()

    def kernel(*arguments: Any, **named: Any) -> Any:
        _running.operator = True
        try:
            return function(*arguments, **named)
        finally:
            _running.operator = False

    return torch.library.custom_op(f"flash_attn::{name}", kernel, mutates_args=written, schema=_SCHEMAS[name])


_forward_operator, _varlen_forward_operator = _operator(_flash_attn_forward), _operator(_flash_attn_varlen_forward)
_backward_operator, _varlen_backward_operator = _operator(_flash_attn_backward), _operator(_flash_attn_varlen_backward)


def _fake_forward(arrays: Arrays, options: Options, return_softmax: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q = arrays[Role.Q]
    out, lse, probabilities = torch_ops.empty_outputs(arrays, options._replace(wants=wants(Role.PROBABILITIES) if return_softmax else 0))
    return out, lse, probabilities, q.new_empty((2,), dtype=torch.int64)


@_forward_operator.register_fake
def _(q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, return_softmax):
    options = _options("_flash_attn_forward", 0.0, softmax_scale, causal, window_size_left, window_size_right, softcap)
    arrays = _given({"Q": q, "K": k, "V": v, "SLOPES": alibi_slopes})
    torch_ops.check_fake("_flash_attn_forward", Pass.FORWARD, arrays, options)
    return _fake_forward(arrays, options, return_softmax and dropout_p > 0)


@_varlen_forward_operator.register_fake
def _(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size_left=-1,
    window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False, block_table=None, leftpad_k=None, seqused_k=None,
    zero_tensors=False, num_splits=0,
):  # fmt: skip
    arrays = _given({"Q": q, "K": k, "V": v, "CU_ROWS": cu_seqlens_q, "PAGES": block_table})
    options = Options(max_rows=max_seqlen_q, max_keys=max_seqlen_k)
    return _fake_forward(arrays, options, return_softmax and dropout_p > 0)


@_backward_operator.register_fake
def _(dout, q, k, v, out, softmax_lse, *_):
    return torch.empty_like(softmax_lse, memory_format=torch.contiguous_format)


@_varlen_backward_operator.register_fake
def _(dout, q, k, v, out, softmax_lse, *_):
    return torch.empty_like(softmax_lse, memory_format=torch.contiguous_format)


_wrapped_flash_attn_forward = torch.ops.flash_attn._flash_attn_forward
_wrapped_flash_attn_backward = torch.ops.flash_attn._flash_attn_backward
_wrapped_flash_attn_varlen_forward = torch.ops.flash_attn._flash_attn_varlen_forward
_wrapped_flash_attn_varlen_backward = torch.ops.flash_attn._flash_attn_varlen_backward


# --------------------------------------------------------------------------------------------------------------- autograd classes


def _results(function: Any, *args: Any, return_softmax: bool, is_grad_enabled: bool, **kwargs: Any) -> Any:
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(is_grad_enabled)):
        return function(*args, return_attn_probs=return_softmax, **kwargs)


class FlashAttnFunc:
    """FlashAttnFunc.apply(...) is flash_attn_func in upstream's positional order, with its gradients of any order.

    No torch.autograd.Function: torch.compile would look into it for a forward and a backward.
    """

    @staticmethod
    def apply(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax, is_grad_enabled=True
    ):
        mask = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
        return _results(flash_attn_func, q, k, v, *mask, return_softmax=return_softmax, is_grad_enabled=is_grad_enabled)


class FlashAttnQKVPackedFunc:
    """flash_attn_qkvpacked_func, as FlashAttnFunc."""

    @staticmethod
    def apply(
        qkv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax, is_grad_enabled=True
    ):
        mask = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
        return _results(flash_attn_qkvpacked_func, qkv, *mask, return_softmax=return_softmax, is_grad_enabled=is_grad_enabled)


class FlashAttnKVPackedFunc:
    """flash_attn_kvpacked_func, as FlashAttnFunc."""

    @staticmethod
    def apply(
        q, kv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax, is_grad_enabled=True
    ):
        mask = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
        return _results(flash_attn_kvpacked_func, q, kv, *mask, return_softmax=return_softmax, is_grad_enabled=is_grad_enabled)


class FlashAttnVarlenFunc:
    """flash_attn_varlen_func, as FlashAttnFunc."""

    @staticmethod
    def apply(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size, softcap,
        alibi_slopes, deterministic, return_softmax, block_table, is_grad_enabled=True,
    ):  # fmt: skip
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        mask = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
        more = {"return_softmax": return_softmax, "is_grad_enabled": is_grad_enabled, "block_table": block_table}
        return _results(flash_attn_varlen_func, q, k, v, *lengths, *mask, **more)


class FlashAttnVarlenQKVPackedFunc:
    """flash_attn_varlen_qkvpacked_func, as FlashAttnFunc."""

    @staticmethod
    def apply(
        qkv, cu_seqlens, max_seqlen, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax,
        is_grad_enabled=True,
    ):  # fmt: skip
        mask = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
        more = {"return_softmax": return_softmax, "is_grad_enabled": is_grad_enabled}
        return _results(flash_attn_varlen_qkvpacked_func, qkv, cu_seqlens, max_seqlen, *mask, **more)


class FlashAttnVarlenKVPackedFunc:
    """flash_attn_varlen_kvpacked_func, as FlashAttnFunc."""

    @staticmethod
    def apply(
        q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
        deterministic, return_softmax, is_grad_enabled=True,
    ):  # fmt: skip
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        mask = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
        more = {"return_softmax": return_softmax, "is_grad_enabled": is_grad_enabled}
        return _results(flash_attn_varlen_kvpacked_func, q, kv, *lengths, *mask, **more)


def __getattr__(name: str) -> Any:
    if name in ("flash_attn_gpu", "flash_attn_cuda"):  # what upstream calls its compiled module
        import flash_attn_2_cuda

        return flash_attn_2_cuda
    raise AttributeError(f"module 'flash_attn.flash_attn_interface' has no attribute {name!r}")
