"""FlashAttention-3's module of that name, for PyTorch: its signatures over the functions of flash_attn, on any device.

pack_gqa, sm_margin, num_splits and scheduler_metadata are hints here. qv (MLA's absorbed form) joins q, and v joins k. 8-bit
floats, and with them q_descale, k_descale and v_descale, are refused.
"""

from __future__ import annotations

import torch

import flash_attn
from flash_attn import flash_attn_combine as _combine
from flash_attn import flash_attn_interface as _fa2
from flash_attn import torch_ops
from flash_attn.call import Pass, Role
from flash_attn.engine import wants
from flash_attn.frameworks.torch import FRAMEWORK
from flash_attn.interface import options_of
from flash_attn.scalars import refuse

Tensor = torch.Tensor


def maybe_contiguous(x: Tensor | None) -> Tensor | None:
    """x with a contiguous last axis."""
    return _fa2.maybe_contiguous(x)


def _joined(function: str, q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None) -> tuple[Tensor, Tensor]:
    """q.k + qv.v as one product: (q and qv, k and v), side by side in each head. The default scale is then (d + dv) ** -0.5."""
    if qv is None:
        return q, k
    if qv.shape != (*q.shape[:-1], v.shape[-1]):
        raise ValueError(f"[{function}] qv: expected shape {(*q.shape[:-1], v.shape[-1])}, found {tuple(qv.shape)}.")
    return torch.cat((q, qv), dim=-1), torch.cat((k, v), dim=-1)


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """flash_attn.flash_attn_func in FlashAttention-3's order: out (b, sq, h, dv); with return_attn_probs also softmax_lse (b, h, sq)."""
    refuse("flash_attn_func", q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    q, k = _joined("flash_attn_func", q, k, v, qv)
    out, lse, _ = flash_attn.flash_attn_func(
        q, k, v, 0.0, softmax_scale, causal, window_size, softcap, None, deterministic, True, attention_chunk=attention_chunk,
        num_splits=num_splits, sm_margin=sm_margin,
    )  # fmt: skip
    return (out, lse) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv,
    softmax_scale=None,
    causal=False,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    deterministic=False,
    num_heads_q=None,
    sm_margin=0,
    return_attn_probs=False,
):
    """Self-attention: qkv (b, s, 3, h, d), or (b, s, num_heads_q + 2 * heads_k, d) with num_heads_q."""
    function = "flash_attn_qkvpacked_func"
    refuse(function, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    if qkv.dim() == 5 and qkv.shape[2] == 3:
        q, k, v = qkv.unbind(2)
    elif qkv.dim() == 4 and num_heads_q is not None and (qkv.shape[2] - num_heads_q) % 2 == 0:
        heads_k = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = qkv.split((num_heads_q, heads_k, heads_k), dim=2)
    else:
        raise ValueError(
            f"[{function}] qkv: expected (batch, seqlen, 3, heads, head_dim), or (batch, seqlen, num_heads_q + 2 * heads_k, head_dim) "
            f"with num_heads_q, found shape {tuple(qkv.shape)} and num_heads_q {num_heads_q}."
        )
    return flash_attn_func(
        q, k, v, softmax_scale, causal, window_size=window_size, attention_chunk=attention_chunk, softcap=softcap,
        deterministic=deterministic, sm_margin=sm_margin, return_attn_probs=return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """flash_attn.flash_attn_varlen_func in FlashAttention-3's order: out (total_q, h, dv), or (out, softmax_lse (h, total_q))."""
    refuse("flash_attn_varlen_func", q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    q, k = _joined("flash_attn_varlen_func", q, k, v, qv)
    out, lse, _ = flash_attn.flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, 0.0, softmax_scale, causal, window_size, softcap, None,
        deterministic, True, seqused_q=seqused_q, seqused_k=seqused_k, attention_chunk=attention_chunk, num_splits=num_splits,
        sm_margin=sm_margin,
    )  # fmt: skip
    return (out, lse) if return_attn_probs else out


def flash_attn_combine(out_partial, lse_partial, out=None, out_dtype=None):
    """flash_attn.flash_attn_combine."""
    return _combine(out_partial, lse_partial, out, out_dtype)


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    rotary_interleaved=True,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
    return_softmax_lse=False,
):
    """flash_attn.flash_attn_with_kvcache in FlashAttention-3's order: out, or (out, softmax_lse) with return_softmax_lse.

    With cu_seqlens_q and max_seqlen_q, q is packed (total_q, h, d), and no new keys may be given.
    """
    function = "flash_attn_with_kvcache"
    refuse(function, qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale, cu_seqlens_k_new=cu_seqlens_k_new)
    refuse(function, rotary_seqlens=rotary_seqlens)
    if cu_seqlens_q is not None:
        refuse(function, k=k, v=v, rotary_cos=rotary_cos, rotary_sin=rotary_sin, cache_leftpad=cache_leftpad)
        return _packed_queries(
            function, q, k_cache, v_cache, cache_seqlens, cache_batch_idx, page_table, cu_seqlens_q, max_seqlen_q, softmax_scale, causal,
            window_size, attention_chunk, softcap, num_splits, sm_margin, return_softmax_lse,
        )  # fmt: skip
    return flash_attn.flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad, page_table, softmax_scale,
        causal, window_size, softcap, rotary_interleaved, None, num_splits, return_softmax_lse, attention_chunk=attention_chunk,
        sm_margin=sm_margin,
    )  # fmt: skip


def _packed_queries(
    function, q, k_cache, v_cache, cache_seqlens, cache_batch_idx, page_table, cu_seqlens_q, max_seqlen_q, softmax_scale, causal,
    window_size, attention_chunk, softcap, num_splits, sm_margin, return_softmax_lse,
):  # fmt: skip
    batch = cu_seqlens_q.shape[0] - 1
    if max_seqlen_q is None:
        raise ValueError(f"[{function}] max_seqlen_q: expected the longest sequence with cu_seqlens_q, found None.")
    if page_table is None:  # a cache row is a page as long as the cache
        rows = torch.arange(batch, dtype=torch.int32, device=q.device) if cache_batch_idx is None else cache_batch_idx
        page_table = rows[:, None]
    capacity = page_table.shape[1] * k_cache.shape[1]
    if cache_seqlens is None or isinstance(cache_seqlens, int):
        length = capacity if cache_seqlens is None else cache_seqlens
        cache_seqlens = torch.full((batch,), length, dtype=torch.int32, device=q.device)
    out, lse, _ = flash_attn.flash_attn_varlen_func(
        q, k_cache, v_cache, cu_seqlens_q, None, max_seqlen_q, capacity, 0.0, softmax_scale, causal, window_size, softcap, None, False,
        True, page_table, seqused_k=cache_seqlens, attention_chunk=attention_chunk, num_splits=num_splits, sm_margin=sm_margin,
    )  # fmt: skip
    return (out, lse) if return_softmax_lse else out


def get_scheduler_metadata(
    batch_size,
    max_seqlen_q,
    max_seqlen_k,
    num_heads_q,
    num_heads_kv,
    headdim,
    cache_seqlens: Tensor,
    qkv_dtype=torch.bfloat16,
    headdim_v=None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_size: int | None = None,
    max_seqlen_k_new=0,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    has_softcap=False,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
):
    """None: calls are planned when they are made, in less than a microsecond."""
    return None


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_new: Tensor | None = None,
    v_new: Tensor | None = None,
    qv: Tensor | None = None,
    out_: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    page_table: Tensor | None = None,
    kv_batch_idx: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    seqlens_rotary: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, softmax_lse, empty, empty), without autograd; the last two are FlashAttention-3's partial results."""
    function = "_flash_attn_forward"
    refuse(function, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    window = (window_size_left, window_size_right)
    with torch.no_grad():
        if k_new is not None or kv_batch_idx is not None or leftpad_k is not None or (page_table is not None and cu_seqlens_q is None):
            refuse(function, seqused_q=seqused_q, cu_seqlens_k=cu_seqlens_k)
            out, lse = flash_attn_with_kvcache(
                q, k, v, k_new, v_new, qv, rotary_cos, rotary_sin, seqused_k, kv_batch_idx, leftpad_k, page_table, cu_seqlens_q,
                cu_seqlens_k_new, max_seqlen_q, seqlens_rotary, None, None, None, softmax_scale, causal, window, attention_chunk, softcap,
                rotary_interleaved, scheduler_metadata, num_splits, pack_gqa, sm_margin, return_softmax_lse=True,
            )  # fmt: skip
        elif cu_seqlens_q is not None:
            q_, k_ = _joined(function, q, k, v, qv)
            longest = max_seqlen_k if max_seqlen_k is not None or page_table is None else page_table.shape[1] * k.shape[1]
            out, lse, _ = flash_attn.flash_attn_varlen_func(
                q_, k_, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, longest, 0.0, softmax_scale, causal, window, softcap, None, False,
                True, page_table, seqused_q=seqused_q, seqused_k=seqused_k, attention_chunk=attention_chunk, num_splits=num_splits,
            )  # fmt: skip
        else:
            q_, k_ = _joined(function, q, k, v, qv)
            out, lse, _ = flash_attn.flash_attn_func(
                q_, k_, v, 0.0, softmax_scale, causal, window, softcap, None, False, True, seqused_q=seqused_q, seqused_k=seqused_k,
                attention_chunk=attention_chunk, num_splits=num_splits,
            )  # fmt: skip
        if out_ is not None:
            out = out_.copy_(out)
    return out, lse, out.new_empty((0,)), lse.new_empty((0,))


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    sequed_q: Tensor | None = None,
    sequed_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    softmax_scale: float | None = None,
    is_causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> Tensor:
    """Writes dq, dk and dv in place, with the (out, softmax_lse) of the caller, and returns softmax_d."""
    named = {
        "DOUT": dout, "Q": q, "K": k, "V": v, "OUT": out, "LSE": softmax_lse, "CU_ROWS": cu_seqlens_q, "CU_KEYS": cu_seqlens_k,
        "USED_ROWS": sequed_q, "USED_KEYS": sequed_k, "DQ": dq, "DK": dk, "DV": dv,
    }  # fmt: skip
    arrays = {getattr(Role, name): x for name, x in named.items() if x is not None}
    lengths = {} if cu_seqlens_q is None else {"max_rows": max_seqlen_q, "max_keys": max_seqlen_k}
    options = options_of(
        "_flash_attn_backward", FRAMEWORK, 0.0, softmax_scale, is_causal, (window_size_left, window_size_right), softcap, deterministic, 0,
        None, 0, **lengths,
    )  # fmt: skip
    written = wants(*(role for role in (Role.DQ, Role.DK, Role.DV) if role in arrays))
    with torch.no_grad():
        results = torch_ops.run(
            "_flash_attn_backward", Pass.BACKWARD, torch_ops.materialised(arrays), options._replace(wants=wants(Role.DELTA)), written
        )
    return results[Role.DELTA]
