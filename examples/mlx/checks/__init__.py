"""Attention in plain MLX operations, against which each program checks its results."""

import sys

import mlx.core as mx


def plain_attention(q, k, v, visible=None, scale=None):
    """softmax(scale q k^T) v in float32 with all scores in memory; visible: bool (sq, sk). Arrays (batch, seqlen, heads, head_dim)."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.astype(mx.float32).swapaxes(1, 2) for x in (q, k, v))
    k, v = (mx.repeat(x, group, axis=1) for x in (k, v))
    scores = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.swapaxes(-1, -2))
    if visible is not None:
        scores = mx.where(visible, scores, -mx.inf)
    return (mx.softmax(scores, axis=-1) @ v).swapaxes(1, 2)


def window(rows, keys, left=None, right=None):
    """Which of `keys` each of `rows` sees when at most `left` back and `right` ahead: None is all. Causal is right=0."""
    distance = mx.arange(keys)[None] - (mx.arange(rows)[:, None] + keys - rows)
    visible = mx.ones(distance.shape, dtype=mx.bool_)
    if left is not None:
        visible = visible & (distance >= -left)
    if right is not None:
        visible = visible & (distance <= right)
    return visible


def require_close(found, expected, what, tolerance=2e-3):
    """Ends the program with an error unless the arrays agree."""
    if tuple(found.shape) != tuple(expected.shape):
        sys.exit(f"WRONG: {what}: shape {found.shape}, expected {expected.shape}")
    error = mx.abs(found.astype(mx.float32) - expected.astype(mx.float32)).max().item()
    if not error <= tolerance:  # also for NaN
        sys.exit(f"WRONG: {what}: differs from plain MLX by {error:.2e}")
    print(f"  checked: {what} equals plain MLX to {error:.1e}")
