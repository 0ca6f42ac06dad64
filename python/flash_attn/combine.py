"""Merging partial results of attention over parts of the keys: differentiable, by the arrays' own operations.

With lse = log(sum of exp(score)) of each part, out = sum_i exp(lse_i - lse) out_i and lse = log sum_i exp(lse_i). A part in which a
row saw no key has lse -inf and weighs nothing; a row that saw none anywhere has out 0 and lse -inf, and zero gradients.
"""

from __future__ import annotations

from typing import Any

from flash_attn import formula, frameworks


def merge(out_a, lse_a, out_b, lse_b):
    """Two partial results into one: out (b, s, h, d) with lse (b, h, s), or packed (total, h, d) with (h, total).

    Returns (out, lse) of the same shapes, out in out_a's dtype, lse float32. Raises TypeError, ValueError.
    """
    xp = _namespace("merge", "out_a", out_a)
    for name, out, lse in (("lse_a", out_a, lse_a), ("lse_b", out_b, lse_b)):
        expected = (*out.shape[:-3], out.shape[-2], out.shape[-3])
        if tuple(lse.shape) != expected:
            raise ValueError(f"[merge] {name}: expected shape {expected} for out {tuple(out.shape)}, found {tuple(lse.shape)}.")
    if tuple(out_a.shape) != tuple(out_b.shape):
        raise ValueError(f"[merge] out_b: expected shape {tuple(out_a.shape)} as out_a, found {tuple(out_b.shape)}.")
    lse = xp.stack([lse_a, lse_b])
    weights, total = formula.merge_weights(xp, lse)
    weights = xp.swapaxes(weights, -1, -2)[..., None]
    wide = [xp.astype(out, xp.float32) * weights[i] for i, out in enumerate((out_a, out_b))]
    return xp.astype(wide[0] + wide[1], out_a.dtype), total


def flash_attn_combine(out_partial, lse_partial, out=None, out_dtype=None):
    """Partial results of any number of parts: out_partial (splits, b, s, h, d), lse_partial (splits, b, s, h), head last.

    Returns (out (b, s, h, d), lse (b, s, h) float32). out: an array to write the result into (NumPy and PyTorch); out_dtype: default
    that of out_partial. Raises TypeError, ValueError.
    """
    xp = _namespace("flash_attn_combine", "out_partial", out_partial)
    if tuple(lse_partial.shape) != tuple(out_partial.shape[:-1]) or len(out_partial.shape) < 3:
        raise ValueError(
            f"[flash_attn_combine] lse_partial: expected shape {tuple(out_partial.shape[:-1])} (splits, batch, seqlen, heads), "
            f"found {tuple(lse_partial.shape)}."
        )
    weights, total = formula.merge_weights(xp, lse_partial)
    result = xp.sum(xp.astype(out_partial, xp.float32) * weights[..., None], axis=0)
    result = xp.astype(result, out_dtype if out_dtype is not None else out_partial.dtype if out is None else out.dtype)
    if out is not None:
        if tuple(out.shape) != tuple(result.shape):
            raise ValueError(f"[flash_attn_combine] out: expected shape {tuple(result.shape)}, found {tuple(out.shape)}.")
        out[...] = result
        return out, total
    return result, total


def _namespace(function: str, argument: str, array: Any) -> Any:
    return frameworks.of(array, function, argument).namespace()
