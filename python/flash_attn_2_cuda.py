"""Upstream's compiled module by name: its positional C signatures over the functions of flash_attn, on any device."""

from __future__ import annotations

import torch

from flash_attn import flash_attn_interface as _interface

_Tensor = torch.Tensor


def _no_generator(function: str, gen_) -> None:
    if gen_ is not None:
        raise NotImplementedError(f"[{function}] gen_: expected None (seeds come from torch's default generator), found a generator.")


def _into(function: str, out_: _Tensor | None, out: _Tensor) -> _Tensor:
    """out, copied into the caller's out_ if there is one."""
    if out_ is None:
        return out
    if out_.shape != out.shape or out_.dtype != out.dtype:
        raise ValueError(
            f"[{function}] out_: expected {out.dtype} of shape {tuple(out.shape)}, found {out_.dtype} of shape {tuple(out_.shape)}."
        )
    return out_.copy_(out)


def fwd(
    q, k, v, out_, alibi_slopes_, p_dropout, softmax_scale, is_causal, window_size_left, window_size_right, softcap, return_softmax, gen_,
):  # fmt: skip
    """[out, softmax_lse, S_dmask, rng_state]."""
    _no_generator("fwd", gen_)
    out, *rest = _interface._flash_attn_forward(
        q, k, v, p_dropout, softmax_scale, is_causal, window_size_left, window_size_right, softcap, alibi_slopes_, return_softmax
    )
    return [_into("fwd", out_, out), *rest]


def varlen_fwd(
    q, k, v, out_, cu_seqlens_q, cu_seqlens_k, seqused_k, leftpad_k_, block_table_, alibi_slopes_, max_seqlen_q, max_seqlen_k, p_dropout,
    softmax_scale, zero_tensors, is_causal, window_size_left, window_size_right, softcap, return_softmax, gen_, num_splits=0,
):  # fmt: skip
    """[out, softmax_lse, S_dmask, rng_state]."""
    _no_generator("varlen_fwd", gen_)
    out, *rest = _interface._flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, p_dropout, softmax_scale, is_causal, window_size_left,
        window_size_right, softcap, alibi_slopes_, return_softmax, block_table_, leftpad_k_, seqused_k, zero_tensors, num_splits,
    )  # fmt: skip
    return [_into("varlen_fwd", out_, out), *rest]


def _outputs(q, k, v, dq_, dk_, dv_) -> list[_Tensor]:
    return [torch.empty_like(x) if dx is None else dx for x, dx in ((q, dq_), (k, dk_), (v, dv_))]


def bwd(
    dout, q, k, v, out, softmax_lse, dq_, dk_, dv_, alibi_slopes_, p_dropout, softmax_scale, is_causal, window_size_left, window_size_right,
    softcap, deterministic, gen_, rng_state,
):  # fmt: skip
    """[dq, dk, dv, softmax_d], the first three written into dq_, dk_, dv_ where they are given."""
    _no_generator("bwd", gen_)
    dq, dk, dv = _outputs(q, k, v, dq_, dk_, dv_)
    softmax_d = _interface._flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, p_dropout, softmax_scale, is_causal, window_size_left, window_size_right, softcap,
        alibi_slopes_, deterministic, rng_state,
    )  # fmt: skip
    return [dq, dk, dv, softmax_d]


def varlen_bwd(
    dout, q, k, v, out, softmax_lse, dq_, dk_, dv_, cu_seqlens_q, cu_seqlens_k, alibi_slopes_, max_seqlen_q, max_seqlen_k, p_dropout,
    softmax_scale, zero_tensors, is_causal, window_size_left, window_size_right, softcap, deterministic, gen_, rng_state,
):  # fmt: skip
    """[dq, dk, dv, softmax_d], as bwd."""
    _no_generator("varlen_bwd", gen_)
    dq, dk, dv = _outputs(q, k, v, dq_, dk_, dv_)
    softmax_d = _interface._flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, p_dropout, softmax_scale,
        is_causal, window_size_left, window_size_right, softcap, alibi_slopes_, deterministic, rng_state, zero_tensors,
    )  # fmt: skip
    return [dq, dk, dv, softmax_d]


def fwd_kvcache(
    q, kcache, vcache, k_, v_, seqlens_k_, rotary_cos_, rotary_sin_, cache_batch_idx_, leftpad_k_, block_table_, alibi_slopes_, out_,
    softmax_scale, is_causal, window_size_left, window_size_right, softcap, is_rotary_interleaved, num_splits,
):  # fmt: skip
    """[out, softmax_lse]; the caches are written in place."""
    out, lse = _interface.flash_attn_with_kvcache(
        q, kcache, vcache, k_, v_, rotary_cos_, rotary_sin_, seqlens_k_, cache_batch_idx_, leftpad_k_, block_table_, softmax_scale,
        is_causal, (window_size_left, window_size_right), softcap, is_rotary_interleaved, alibi_slopes_, num_splits,
        return_softmax_lse=True,
    )  # fmt: skip
    return [_into("fwd_kvcache", out_, out), lse]
