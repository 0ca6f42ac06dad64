"""FlashAttention-4's signatures over the functions of flash_attn, on any device. Results are always (out, lse or None).

Programs of scores and masks, block sparsity and gathered keys have no kernel here and are refused. pack_gqa, num_splits and
scheduler_metadata are hints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import flash_attn
from flash_attn.scalars import refuse

Tensor = torch.Tensor


def _window(window_size: Any) -> tuple[int, int]:
    left, right = window_size
    return -1 if left is None else left, -1 if right is None else right


def _joined(function: str, q: Tensor | None, k: Tensor | None, v: Tensor, qv: Tensor | None) -> tuple[Tensor, Tensor]:
    """q.k + qv.v as one product; without q and k, qv.v alone."""
    if qv is None:
        return q, k
    if q is None or k is None:
        return qv, v
    if qv.shape != (*q.shape[:-1], v.shape[-1]):
        raise ValueError(f"[{function}] qv: expected shape {(*q.shape[:-1], v.shape[-1])}, found {tuple(qv.shape)}.")
    return torch.cat((q, qv), dim=-1), torch.cat((k, v), dim=-1)


def _validate_head_dims(head_dim: int, head_dim_v: int, compute_capability: int, alignment: int) -> None:
    """Raises ValueError unless head dims are 1 to 512; the compute capability and the alignment do not matter here."""
    for name, dim in (("head_dim", head_dim), ("head_dim_v", head_dim_v)):
        if not 1 <= dim <= 512:
            raise ValueError(f"[_validate_head_dims] {name}: expected 1 to 512, found {dim}.")


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None = None,
    gather_kv_indices: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    score_mod: Callable | None = None,
    score_mod_bwd: Callable | None = None,
    mask_mod: Callable | None = None,
    aux_tensors: list | None = None,
    aux_scalars: tuple | None = None,
    block_sparse_tensors: Any = None,
    block_sparse_tensors_bwd: Any = None,
    return_lse: bool = False,
):
    """(out (b, sq, h, dv), lse (b, h, sq) or None); both differentiable."""
    function = "flash_attn_func"
    refuse(
        function, gather_kv_indices=gather_kv_indices, score_mod=score_mod, score_mod_bwd=score_mod_bwd, mask_mod=mask_mod,
        aux_tensors=aux_tensors, aux_scalars=aux_scalars, block_sparse_tensors=block_sparse_tensors,
        block_sparse_tensors_bwd=block_sparse_tensors_bwd,
    )  # fmt: skip
    q, k = _joined(function, q, k, v, qv)
    out, lse, _ = flash_attn.flash_attn_func(
        q, k, v, 0.0, softmax_scale, causal, _window(window_size), softcap or 0.0, None, deterministic, True,
        learnable_sink=learnable_sink, num_splits=num_splits,
    )  # fmt: skip
    return out, lse if return_lse else None


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    min_seqlen_k: int | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    gather_kv_indices: Tensor | None = None,
    page_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    score_mod: Callable | None = None,
    score_mod_bwd: Callable | None = None,
    mask_mod: Callable | None = None,
    block_sparse_tensors: Any = None,
    aux_tensors: list | None = None,
    aux_scalars: tuple | None = None,
    return_lse: bool = False,
    scheduler_metadata: Any = None,
    seqlen_k_per_split: int | None = None,
    disable_scheduler_metadata: bool = False,
):
    """(out, lse or None) of packed queries (total_q, h, d) with cu_seqlens_q, or of padded ones (b, sq, h, d) without; the same for keys.

    page_table: k and v are pages (pages, page_size, hk, d). Maximum lengths default to the whole of the arrays.
    """
    function = "flash_attn_varlen_func"
    refuse(
        function, gather_kv_indices=gather_kv_indices, score_mod=score_mod, score_mod_bwd=score_mod_bwd, mask_mod=mask_mod,
        block_sparse_tensors=block_sparse_tensors, aux_tensors=aux_tensors, aux_scalars=aux_scalars,
        seqlen_k_per_split=seqlen_k_per_split,
    )  # fmt: skip
    q, k = _joined(function, q, k, v, qv)
    more = {"learnable_sink": learnable_sink, "seqused_q": seqused_q, "seqused_k": seqused_k, "num_splits": num_splits}
    mask = (0.0, softmax_scale, causal, _window(window_size), softcap or 0.0, None, deterministic, True)
    if cu_seqlens_q is None and cu_seqlens_k is None and page_table is None:
        out, lse, _ = flash_attn.flash_attn_func(q, k, v, *mask, **more)
        return out, lse if return_lse else None
    padded = cu_seqlens_q is None
    batch, rows = q.shape[:2]
    if padded:
        cu_seqlens_q = torch.arange(0, (batch + 1) * rows, max(rows, 1), dtype=torch.int32, device=q.device)
        q, max_seqlen_q = q.flatten(0, 1), rows
    if cu_seqlens_k is None and page_table is None:
        count, keys = k.shape[:2]
        cu_seqlens_k = torch.arange(0, (count + 1) * keys, max(keys, 1), dtype=torch.int32, device=k.device)
        k, v, max_seqlen_k = k.flatten(0, 1), v.flatten(0, 1), keys
    if max_seqlen_q is None:
        max_seqlen_q = q.shape[0]
    if max_seqlen_k is None:
        max_seqlen_k = k.shape[0] if page_table is None else page_table.shape[1] * k.shape[1]
    out, lse, _ = flash_attn.flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *mask, page_table, **more
    )
    if padded:
        out, lse = out.unflatten(0, (batch, rows)), lse.unflatten(1, (batch, rows)).transpose(0, 1)
    return out, lse if return_lse else None


def flash_attn_combine(
    out_partial: Tensor,
    lse_partial: Tensor,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    cu_seqlens: Tensor | None = None,
    seqused: Tensor | None = None,
    virtual_batch_idx: Tensor | None = None,
    return_lse: bool = True,
):
    """flash_attn.flash_attn_combine, also of packed parts (splits, total, h, d); (out, lse or None). cu_seqlens changes nothing."""
    refuse("flash_attn_combine", seqused=seqused, virtual_batch_idx=virtual_batch_idx)
    result, lse = flash_attn.flash_attn_combine(out_partial, lse_partial, out, out_dtype)
    return result, lse if return_lse else None
