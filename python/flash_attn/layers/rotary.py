"""Rotary position embedding (Su et al., arXiv:2104.09864), under the names that other projects import from here. PyTorch only.

A pair (a, b) of a head at position p turns by the angle p * base^(-2t / dim): (a cos - b sin, a sin + b cos). In place where the name
ends in _, on the CPU by the core; its gradient is the same turn the other way round.
"""

from __future__ import annotations

from typing import Any

import torch

from flash_attn.ops.triton.rotary import apply_rotary


def rotate_half(x: torch.Tensor, interleaved=False) -> torch.Tensor:
    """(-b, a) for each pair (a, b)."""
    if not interleaved:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((-b, a), dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((-b, a), dim=-1).flatten(-2)


def apply_rotary_emb_torch(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved=False) -> torch.Tensor:
    """By PyTorch operations alone: x (batch, seqlen, heads, head_dim), cos, sin (seqlen, rotary_dim / 2) or (batch, seqlen, ...)."""
    turned_dim = 2 * cos.shape[-1]
    if turned_dim > x.shape[-1]:
        raise ValueError(f"[apply_rotary_emb_torch] cos: expected at most head_dim / 2 columns, found {cos.shape[-1]} for {x.shape[-1]}.")
    both = [t.repeat_interleave(2, dim=-1) if interleaved else torch.cat((t, t), dim=-1) for t in (cos, sin)]
    cos, sin = (t.unsqueeze(-2) for t in both)
    turning, rest = x[..., :turned_dim], x[..., turned_dim:]
    return torch.cat((turning * cos + rotate_half(turning, interleaved) * sin, rest), dim=-1)


class ApplyRotaryEmb(torch.autograd.Function):
    """apply_rotary with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x,
        cos,
        sin,
        interleaved=False,
        inplace=False,
        seqlen_offsets: int | torch.Tensor = 0,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        conjugate=False,
    ):
        offsets = seqlen_offsets if isinstance(seqlen_offsets, torch.Tensor) else None
        ctx.save_for_backward(cos, sin, cu_seqlens, offsets)
        ctx.call = interleaved, seqlen_offsets if offsets is None else None, max_seqlen, conjugate
        out = apply_rotary(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen, interleaved, inplace, conjugate)
        return x if inplace else out  # x itself, not marked dirty: leaves that require grad may be turned, as upstream's callers do

    @staticmethod
    def backward(ctx: Any, dout):
        cos, sin, cu_seqlens, offsets = ctx.saved_tensors
        interleaved, offset, max_seqlen, conjugate = ctx.call
        offsets = offset if offsets is None else offsets
        dx = ApplyRotaryEmb.apply(dout, cos, sin, interleaved, False, offsets, cu_seqlens, max_seqlen, not conjugate)
        return dx, *(None,) * 8


def apply_rotary_emb(
    x,
    cos,
    sin,
    interleaved=False,
    inplace=False,
    seqlen_offsets: int | torch.Tensor = 0,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
):
    """x (batch, seqlen, heads, head_dim), or (total, heads, head_dim) with cu_seqlens and max_seqlen, turned; see apply_rotary."""
    return ApplyRotaryEmb.apply(x, cos, sin, interleaved, inplace, seqlen_offsets, cu_seqlens, max_seqlen)


apply_rotary_emb_func = apply_rotary_emb


def _parts(function: str, packed: torch.Tensor, count: int, num_heads_q: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k of a packed qkv, as views."""
    if packed.dim() == 5 and packed.shape[2] == count:
        return packed[:, :, 0], packed[:, :, 1]
    if packed.dim() == 4 and num_heads_q is not None and (packed.shape[2] - num_heads_q) % 2 == 0:
        heads_k = (packed.shape[2] - num_heads_q) // 2
        return packed[:, :, :num_heads_q], packed[:, :, num_heads_q : num_heads_q + heads_k]
    raise ValueError(
        f"[{function}] qkv: expected (batch, seqlen, 3, heads, head_dim), or (batch, seqlen, heads_q + 2 * heads_k, head_dim) with "
        f"num_heads_q, found shape {tuple(packed.shape)} and num_heads_q {num_heads_q}."
    )


class ApplyRotaryEmbQKV_(torch.autograd.Function):
    """Turns q and k of a packed qkv in place."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv,
        cos,
        sin,
        cos_k=None,
        sin_k=None,
        interleaved=False,
        seqlen_offsets: int | torch.Tensor = 0,
        num_heads_q: int | None = None,
    ):
        offsets = seqlen_offsets if isinstance(seqlen_offsets, torch.Tensor) else None
        ctx.save_for_backward(cos, sin, cos_k, sin_k, offsets)
        ctx.call = interleaved, seqlen_offsets if offsets is None else None, num_heads_q
        q, k = _parts("apply_rotary_emb_qkv_", qkv, 3, num_heads_q)
        for x, c, s in ((q, cos, sin), (k, cos if cos_k is None else cos_k, sin if sin_k is None else sin_k)):
            apply_rotary(x, c, s, seqlen_offsets, interleaved=interleaved, inplace=True)
        return qkv

    @staticmethod
    def backward(ctx: Any, dqkv):
        cos, sin, cos_k, sin_k, offsets = ctx.saved_tensors
        interleaved, offset, num_heads_q = ctx.call
        offsets = offset if offsets is None else offsets
        dq, dk = _parts("apply_rotary_emb_qkv_", dqkv, 3, num_heads_q)
        dq = ApplyRotaryEmb.apply(dq, cos, sin, interleaved, False, offsets, None, None, True)
        tables = (cos if cos_k is None else cos_k, sin if sin_k is None else sin_k)
        dk = ApplyRotaryEmb.apply(dk, *tables, interleaved, False, offsets, None, None, True)
        if dqkv.dim() == 5:
            return torch.stack((dq, dk, dqkv[:, :, 2]), dim=2), *(None,) * 7
        return torch.cat((dq, dk, dqkv[:, :, dq.shape[2] + dk.shape[2] :]), dim=2), *(None,) * 7


def apply_rotary_emb_qkv_(
    qkv, cos, sin, cos_k=None, sin_k=None, interleaved=False, seqlen_offsets: int | torch.Tensor = 0, num_heads_q: int | None = None
):
    """Turns q and k of qkv (batch, seqlen, 3, heads, head_dim) in place, and returns qkv.

    Or of (batch, seqlen, num_heads_q + 2 * heads_k, head_dim). cos_k, sin_k: other tables for k.
    """
    return ApplyRotaryEmbQKV_.apply(qkv, cos, sin, cos_k, sin_k, interleaved, seqlen_offsets, num_heads_q)


class ApplyRotaryEmbKV_(torch.autograd.Function):
    """Turns k of a packed kv in place."""

    @staticmethod
    def forward(ctx: Any, kv, cos, sin, interleaved=False, seqlen_offsets: int | torch.Tensor = 0):
        if kv.dim() != 5 or kv.shape[2] != 2:
            raise ValueError(f"[apply_rotary_emb_kv_] kv: expected (batch, seqlen, 2, heads, head_dim), found shape {tuple(kv.shape)}.")
        offsets = seqlen_offsets if isinstance(seqlen_offsets, torch.Tensor) else None
        ctx.save_for_backward(cos, sin, offsets)
        ctx.call = interleaved, seqlen_offsets if offsets is None else None
        apply_rotary(kv[:, :, 0], cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True)
        return kv

    @staticmethod
    def backward(ctx: Any, dkv):
        cos, sin, offsets = ctx.saved_tensors
        interleaved, offset = ctx.call
        dk = ApplyRotaryEmb.apply(dkv[:, :, 0], cos, sin, interleaved, False, offset if offsets is None else offsets, None, None, True)
        return torch.stack((dk, dkv[:, :, 1]), dim=2), None, None, None, None


def apply_rotary_emb_kv_(kv, cos, sin, interleaved=False, seqlen_offsets: int | torch.Tensor = 0):
    """Turns k of kv (batch, seqlen, 2, heads, head_dim) in place, and returns kv."""
    return ApplyRotaryEmbKV_.apply(kv, cos, sin, interleaved, seqlen_offsets)


class RotaryEmbedding(torch.nn.Module):
    """Turns q and k of its input in place; keeps the tables of sines and cosines as far as they were needed.

    interleaved: pairs (2t, 2t + 1), else halves. scale_base: XPos (Sun et al., arXiv:2212.10554), 512 is usual.
    """

    def __init__(self, dim: int, base=10000.0, interleaved=False, scale_base=None, device=None):
        super().__init__()
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved
        self.scale_base = scale_base
        self.register_buffer("inv_freq", self._compute_inv_freq(device), persistent=False)
        scale = None
        if scale_base is not None:
            scale = (torch.arange(0, dim, 2, device=device, dtype=torch.float32) + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("scale", scale, persistent=False)
        self._seq_len_cached = 0
        self._cos_cached = self._sin_cached = self._cos_k_cached = self._sin_k_cached = None

    def _compute_inv_freq(self, device=None) -> torch.Tensor:
        return self.base ** -(torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim)

    def _update_cos_sin_cache(self, seqlen, device=None, dtype=None) -> None:
        cached = self._cos_cached
        if (
            cached is not None
            and seqlen <= self._seq_len_cached
            and (cached.device, cached.dtype) == (device, dtype)
            and (torch.compiler.is_compiling() or not (self.training and cached.is_inference()))
        ):
            return
        self._seq_len_cached = seqlen
        # float32 whatever the model was cast to: positions are large, and a rounded frequency turns them elsewhere
        frequencies = self.inv_freq if self.inv_freq.dtype == torch.float32 else self._compute_inv_freq(device)
        angles = torch.outer(torch.arange(seqlen, device=device, dtype=torch.float32), frequencies.to(device))
        cos, sin = angles.cos(), angles.sin()
        if self.scale is None:
            self._cos_cached, self._sin_cached = cos.to(dtype), sin.to(dtype)
            return
        power = (torch.arange(seqlen, device=device, dtype=torch.float32) - seqlen // 2) / self.scale_base
        scale = self.scale.to(device=device, dtype=torch.float32) ** power[:, None]
        self._cos_cached, self._sin_cached = (cos * scale).to(dtype), (sin * scale).to(dtype)
        self._cos_k_cached, self._sin_k_cached = (cos / scale).to(dtype), (sin / scale).to(dtype)

    def forward(
        self,
        qkv: torch.Tensor,
        kv: torch.Tensor | None = None,
        seqlen_offset: int | torch.Tensor = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Turns qkv (batch, seqlen, 3, heads, head_dim), or with num_heads_q (batch, seqlen, num_heads_q + 2 * heads_k, head_dim).

        With kv (batch, seqlen, 2, heads, head_dim), qkv is q alone, (batch, seqlen, heads, head_dim), and both are returned.
        seqlen_offset: position of each sequence's first row, int or (batch,); the latter needs max_seqlen, how far the tables go.
        """
        if max_seqlen is not None:
            self._update_cos_sin_cache(max_seqlen, device=qkv.device, dtype=qkv.dtype)
        elif isinstance(seqlen_offset, int):
            self._update_cos_sin_cache(qkv.shape[1] + seqlen_offset, device=qkv.device, dtype=qkv.dtype)
        elif self._cos_cached is None:
            raise ValueError("[RotaryEmbedding] max_seqlen: expected how far the tables go with an array of offsets, found None.")
        cos, sin = self._cos_cached, self._sin_cached
        cos_k, sin_k = (None, None) if self.scale is None else (self._cos_k_cached, self._sin_k_cached)
        if kv is None:
            return apply_rotary_emb_qkv_(
                qkv, cos, sin, cos_k, sin_k, interleaved=self.interleaved, seqlen_offsets=seqlen_offset, num_heads_q=num_heads_q
            )
        q = apply_rotary_emb(qkv, cos, sin, interleaved=self.interleaved, inplace=True, seqlen_offsets=seqlen_offset)
        tables = (cos, sin) if cos_k is None else (cos_k, sin_k)
        return q, apply_rotary_emb_kv_(kv, *tables, interleaved=self.interleaved, seqlen_offsets=seqlen_offset)
