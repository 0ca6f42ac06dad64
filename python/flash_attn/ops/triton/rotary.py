"""Rotary embedding of whole tensors: by the core where it has a kernel, else by PyTorch operations. No autograd: layers.rotary."""

from __future__ import annotations

import itertools

import torch

from flash_attn import torch_ops
from flash_attn.call import Options, Pass, Role
from flash_attn.engine import wants

_TURNED_IN_PLACE = wants(Role.ROTATED_K)


def apply_rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    seqlen_offsets: int | torch.Tensor = 0,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
    interleaved=False,
    inplace=False,
    conjugate=False,
) -> torch.Tensor:
    """Turns the first rotary_dim elements of each head by the angle of its position.

    Arguments:
        x: (batch, seqlen, heads, head_dim), or (total, heads, head_dim) with cu_seqlens int32 (batch + 1,) and max_seqlen.
        cos, sin: (positions, rotary_dim / 2), rotary_dim <= head_dim.
        seqlen_offsets: position of each sequence's first row, int or (batch,).
        interleaved: pairs (2t, 2t + 1), else halves (t, t + rotary_dim / 2).
        inplace: writes into x, whether or not it requires grad, and returns it. conjugate: the other way round.
    """
    _check(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen)
    if inplace and x.requires_grad and not torch.compiler.is_compiling():
        x = x.detach()
    if _core_takes(x, cos, sin, seqlen_offsets):
        return _by_core(x, cos, sin, seqlen_offsets, cu_seqlens, interleaved, inplace, conjugate)
    turned = _by_torch(x, cos, sin, seqlen_offsets, cu_seqlens, interleaved, conjugate)
    return x.copy_(turned) if inplace else turned


def _bad(argument: str, message: str) -> ValueError:
    return ValueError(f"[apply_rotary_emb] {argument}: {message}.")


def _check(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen) -> None:
    rank, axes = (4, "(batch, seqlen, heads, head_dim)") if cu_seqlens is None else (3, "(total, heads, head_dim)")
    if x.dim() != rank:
        raise _bad("x", f"must be {rank}D, expected {axes}, found {x.dim()} axes (shape {tuple(x.shape)})")
    if cos.dim() != 2 or cos.shape != sin.shape:
        raise _bad("cos, sin", f"expected one shape (positions, rotary_dim / 2), found {tuple(cos.shape)} and {tuple(sin.shape)}")
    if 2 * cos.shape[1] > x.shape[-1]:
        raise _bad("cos", f"expected at most head_dim / 2 = {x.shape[-1] // 2} columns, found {cos.shape[1]}")
    if cu_seqlens is not None and max_seqlen is None:
        raise _bad("max_seqlen", "expected the longest sequence with cu_seqlens, found None")
    if isinstance(seqlen_offsets, int):
        last = seqlen_offsets + (x.shape[1] if cu_seqlens is None else max_seqlen)
        if seqlen_offsets < 0 or last > cos.shape[0]:
            raise _bad("cos", f"expected at least {last} positions from an offset of 0 or more, found {cos.shape[0]} and {seqlen_offsets}")


def _core_takes(x, cos, sin, seqlen_offsets) -> bool:
    """Plain CPU tensors of one dtype whose last axis is contiguous, of which nobody is watching the operations."""
    if torch.compiler.is_compiling() or not (x.is_cpu and x.dtype == cos.dtype == sin.dtype and x.dtype in torch_ops.CODES):
        return False
    if isinstance(seqlen_offsets, torch.Tensor) and seqlen_offsets.dtype != torch.int32:
        return False
    return x.stride(-1) == 1 and torch_ops.is_eager({0: x, 1: cos, 2: sin})


def _by_core(x, cos, sin, seqlen_offsets, cu_seqlens, interleaved, inplace, conjugate) -> torch.Tensor:
    out = x if inplace else torch.empty(x.shape, dtype=x.dtype)
    sin = -sin if conjugate else sin
    tables = {Role.COS: cos, Role.SIN: sin}
    fixed = isinstance(seqlen_offsets, int)
    options = Options(cache_length=seqlen_offsets if fixed else None, rotary_interleaved=bool(interleaved), wants=_TURNED_IN_PLACE)
    if not fixed:
        tables[Role.LENGTHS] = seqlen_offsets
    if cu_seqlens is None:
        parts = [(x, out, tables, options)]
    else:
        starts = cu_seqlens.tolist()
        parts = []
        for i, (start, end) in enumerate(itertools.pairwise(starts)):
            own = tables if fixed else {**tables, Role.LENGTHS: seqlen_offsets[i : i + 1]}
            parts.append((x[None, start:end], out[None, start:end], own, options))
    nothing = x.new_empty((1, 1, 1, 1))  # an append brings values, too; without a cache they go nowhere
    for source, target, own, options in parts:
        arrays = {Role.NEW_K: source, Role.NEW_V: nothing.expand(*source.shape[:3], 1), **own, Role.ROTATED_K: target}
        torch_ops.run("apply_rotary_emb", Pass.APPEND, arrays, options, _TURNED_IN_PLACE)
    return out


def _by_torch(x, cos, sin, seqlen_offsets, cu_seqlens, interleaved, conjugate) -> torch.Tensor:
    half = cos.shape[1]
    if cu_seqlens is None:
        steps = torch.arange(x.shape[1], device=x.device)[None]
        first = seqlen_offsets if isinstance(seqlen_offsets, int) else seqlen_offsets[:, None]
        positions = (steps + first).expand(x.shape[0], -1) if not isinstance(first, int) else steps + first
    else:
        rows = torch.arange(x.shape[0], device=x.device)
        sequence = torch.bucketize(rows, cu_seqlens[1:].long(), right=True).clamp(max=cu_seqlens.shape[0] - 2)
        first = seqlen_offsets if isinstance(seqlen_offsets, int) else seqlen_offsets[sequence]
        positions = (rows - cu_seqlens[sequence] + first).clamp(0, cos.shape[0] - 1)
    real = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (table.to(real)[positions.long()].unsqueeze(-2) for table in (cos, sin))
    sin = -sin if conjugate else sin
    turning, rest = x[..., : 2 * half].to(real), x[..., 2 * half :]
    one, other = (turning[..., 0::2], turning[..., 1::2]) if interleaved else (turning[..., :half], turning[..., half:])
    one, other = one * cos - other * sin, one * sin + other * cos
    turned = torch.stack((one, other), dim=-1).flatten(-2) if interleaved else torch.cat((one, other), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)
