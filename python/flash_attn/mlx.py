"""For MLX users: our kernels under MLX's own name for attention, so that mlx.nn and mlx_lm models run on them, and calls for export.

One line does it: ``flash_attn.mlx.install()`` for good, ``with flash_attn.mlx.install(): ...`` for a while.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx

from flash_attn.frameworks.mlx import vmap, without_gradients
from flash_attn.interface import flash_attn_func

__all__ = ["inference", "install", "scaled_dot_product_attention", "uninstall", "vmap", "without_gradients"]

_theirs = mx.fast.scaled_dot_product_attention


def scaled_dot_product_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: Any = None,
    sinks: mx.array | None = None,
    stream: Any = None,
    **ignored: Any,
) -> mx.array:
    """mx.fast.scaled_dot_product_attention by our kernels: q (b, h, sq, d), k (b, hk, sk, d), v (b, hk, sk, dv) -> (b, h, sq, dv).

    mask: None, "causal" (aligned at the bottom right), a bool array (True: visible) or one that is added to the scores, broadcastable to
    (b, h, sq, sk). sinks: (h,). Differentiable, mask and sinks too. Nothing is copied: the transposes are views. Two differences: a row
    that sees no key is 0, not the mean of v; arrays of different float dtypes are computed and returned in the dtype they promote to, as
    MLX does. Other keywords are hints to MLX's own kernels and ignored.
    """
    if stream is not None:
        with mx.stream(stream):
            return scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)
    if isinstance(mask, str) and mask != "causal":
        raise ValueError(f'[scaled_dot_product_attention] mask: expected "causal", an array or None, found {mask!r}.')
    if not q.dtype == k.dtype == v.dtype:
        dtype = (mx.zeros((), q.dtype) + mx.zeros((), k.dtype) + mx.zeros((), v.dtype)).dtype  # never evaluated
        q, k, v = (x.astype(dtype) for x in (q, k, v))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    causal = isinstance(mask, str)
    out = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal, attn_bias=None if causal else mask, learnable_sink=sinks)
    return out.transpose(0, 2, 1, 3)


class _Installed(AbstractContextManager):
    """What install() returns; leaving it brings back what was there before."""

    def __init__(self, before: Any):
        self._before = before

    def __exit__(self, *error: Any) -> None:
        mx.fast.scaled_dot_product_attention = self._before


def install() -> AbstractContextManager:
    """Replace mx.fast.scaled_dot_product_attention, which mlx.nn and mlx_lm look up at each call, by ours.

    For good, or as a context manager for a while. uninstall() brings MLX's back. Not for one thread only: the module is the process's.
    """
    installed = _Installed(mx.fast.scaled_dot_product_attention)
    mx.fast.scaled_dot_product_attention = scaled_dot_product_attention
    return installed


def uninstall() -> None:
    """MLX's own scaled_dot_product_attention again."""
    mx.fast.scaled_dot_product_attention = _theirs


def inference(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    """flash_attn_func with its keywords, but without gradients: mx.export_function can store it.

    ``without_gradients()`` does the same to every call inside: for whole models, and for the other functions.
    """
    with without_gradients():
        return flash_attn_func(q, k, v, **options)
