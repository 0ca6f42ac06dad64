"""Merging partial results of attention over parts of the keys: differentiable, by the arrays' own operations.

With lse = log(sum of exp(score)) of each part, out = sum_i exp(lse_i - lse) out_i and lse = log sum_i exp(lse_i). A part in which a
row saw no key has lse -inf and weighs nothing; a row that saw none anywhere has out 0 and lse -inf, and zero gradients.
"""

from __future__ import annotations

from typing import Any

from flash_attn import formula, frameworks
from flash_attn.call import DTYPE_NAMES
from flash_attn.frameworks.base import Framework
from flash_attn.scalars import said


def merge(out_a, lse_a, out_b, lse_b):
    """Two partial results into one: out (b, s, h, d) with lse (b, h, s), or packed (total, h, d) with (h, total).

    Returns (out, lse) of the same shapes, out in out_a's dtype, lse float32 (float64 for float64). Raises TypeError, ValueError.
    """
    framework = _framework("merge", out_a=out_a, lse_a=lse_a, out_b=out_b, lse_b=lse_b)
    if len(out_a.shape) not in (3, 4):
        _refuse("merge", "out_a", "axes (b, s, h, d) or (total, h, d)", f"shape {tuple(out_a.shape)}")
    _shape("merge", "out_b", out_b, tuple(out_a.shape))
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        _shape("merge", name, lse, (*out_a.shape[:-3], out_a.shape[-2], out_a.shape[-3]))
    xp = framework.namespace()
    weights, total = formula.merge_weights(xp, xp.stack([lse_a, lse_b]))
    weights = xp.swapaxes(weights, -1, -2)[..., None]
    wide = [xp.astype(out, weights.dtype) * weights[i] for i, out in enumerate((out_a, out_b))]
    return xp.astype(wide[0] + wide[1], out_a.dtype), total


def flash_attn_combine(out_partial, lse_partial, out=None, out_dtype=None):
    """Partial results of any number of parts: out_partial (splits, b, s, h, d), lse_partial (splits, b, s, h), head last.

    Returns (out (b, s, h, d), lse (b, s, h) float32). out: an array to write the result into (NumPy and PyTorch); out_dtype: default
    that of out_partial. Raises TypeError, ValueError.
    """
    function = "flash_attn_combine"
    framework = _framework(function, out_partial=out_partial, lse_partial=lse_partial, **({} if out is None else {"out": out}))
    shape = tuple(out_partial.shape)
    if len(shape) not in (4, 5) or shape[0] < 1:
        _refuse(function, "out_partial", "axes (splits, b, s, h, d) or (splits, total, h, d), at least one split", f"shape {shape}")
    _shape(function, "lse_partial", lse_partial, shape[:-1])
    if out is not None:
        _shape(function, "out", out, shape[1:])
    if out_dtype is not None and framework.dtype_code(out_dtype) not in _FLOATS:
        raise TypeError(f"[{function}] out_dtype: expected a float dtype of {framework.name}, found {said(out_dtype)}.")
    xp = framework.namespace()
    weights, total = formula.merge_weights(xp, lse_partial)
    result = xp.sum(xp.astype(out_partial, weights.dtype) * weights[..., None], axis=0)
    if out is None:
        return xp.astype(result, out_partial.dtype if out_dtype is None else out_dtype), total
    result = xp.astype(result, out.dtype)
    try:
        out[...] = result
    except (TypeError, ValueError) as error:
        raise ValueError(f"[{function}] out: expected a writable array, found one that is not.") from error
    return out, total


_FLOATS = tuple(code for code, name in DTYPE_NAMES.items() if "float" in name)


def _framework(function: str, **arrays: Any) -> Framework:
    """The framework of all arrays, which must be floats."""
    name, first = next(iter(arrays.items()))
    framework = frameworks.of(first, function, name)
    for name, array in arrays.items():
        if not framework.owns(array):
            raise TypeError(f"[{function}] {name}: expected a {framework.name} array like the others, found {said(array)}.")
        if framework.dtype_code(array.dtype) not in _FLOATS:
            raise TypeError(f"[{function}] {name}: expected a float array, found {framework.describe_dtype(array)}.")
    return framework


def _shape(function: str, name: str, array: Any, expected: tuple[int, ...]) -> None:
    if tuple(array.shape) != expected:
        _refuse(function, name, f"shape {expected}", str(tuple(array.shape)))


def _refuse(function: str, name: str, expected: str, found: str) -> None:
    raise ValueError(f"[{function}] {name}: expected {expected}, found {found}.")
