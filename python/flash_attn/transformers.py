"""Hugging Face transformers: one line makes attn_implementation="flash_attn" run here, on any device, without CUDA.

import flash_attn.transformers
flash_attn.transformers.register()
model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="flash_attn")
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from flash_attn import interface

__all__ = ["attention", "attention_mask", "register"]


def register(name: str = "flash_attn") -> None:
    """Makes `name` an attention implementation of transformers (4.53 or newer). Calling it twice does no harm.

    Models compute what they compute with "sdpa": causal, padded, sliding, chunked and packed masks, caches, soft caps, sinks. A name
    without "flash" in it is free of the restrictions that transformers puts on all implementations that have it (static caches are
    not compiled with fullgraph, and chunked attention is refused).
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, attention_mask)
    _accept(name)


_accepted: set[str] = set()


def _accept(name: str) -> None:
    """transformers 5 looks for whatever has "flash" in its name in a package or a hub, and not all models let it: `name` is here."""
    from transformers import PreTrainedModel

    known = getattr(PreTrainedModel, "_check_and_adjust_attn_implementation", None)
    _accepted.add(name)
    if known is None or getattr(known, "_accepts_ours", False):
        return

    @functools.wraps(known)
    def check(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
        return attn_implementation if attn_implementation in _accepted else known(self, attn_implementation, *args, **kwargs)

    check._accepts_ours = True
    PreTrainedModel._check_and_adjust_attn_implementation = check


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask that `attention` gets: None where causal says all; (batch, kv) bool where padding is all there is to add; (batch, kv) or
    (1, 1) int32 where a causal window is, whose size its elements are, 0 being padding: not all models say to `attention` which of
    their layers slide; else the (batch, 1, q, kv) bool of transformers' own "sdpa", which says everything."""
    from transformers import masking_utils

    causal = mask_function is None or mask_function is masking_utils.causal_mask_function
    window = None if causal or torch.compiler.is_compiling() else _causal_window(mask_function)
    sizes = (q_length, kv_length, q_offset, kv_offset)
    end = kv_offset + kv_length
    aligned = all(isinstance(n, int) for n in sizes) and q_offset + q_length == end
    if (causal or window is not None) and aligned and allow_is_causal_skip:
        slides = window is not None and kv_length > window
        if attention_mask is None:
            return torch.full((1, 1), window, dtype=torch.int32, device=kwargs.get("device")) if slides else None
        if attention_mask.dim() == 2 and attention_mask.shape[1] >= end:
            mask = attention_mask[:, kv_offset:end].to(torch.bool)
            if not torch.compiler.is_compiling() and mask.all():
                mask = mask[:1, :1] if slides else None
            return mask * torch.tensor(window, dtype=torch.int32, device=mask.device) if slides else mask
    given = {} if mask_function is None else {"mask_function": mask_function}
    return masking_utils.sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
        attention_mask=attention_mask, allow_is_causal_skip=False, allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **given, **kwargs,
    )  # fmt: skip


def _causal_window(mask_function: Any) -> int | None:
    """The size of the window, if this is transformers' causal sliding window and nothing else."""
    from transformers import masking_utils

    variables = inspect.getclosurevars(mask_function).nonlocals if inspect.isfunction(mask_function) else {}
    overlay, *others = variables.get("mask_functions", (None,))
    if (
        others != [masking_utils.causal_mask_function]
        or getattr(overlay, "__qualname__", "") != "sliding_window_overlay.<locals>.inner_mask"
    ):
        return None
    return inspect.getclosurevars(overlay).nonlocals["sliding_window"]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers calls it: query (b, h, sq, d), key, value (b, hk, sk, d) -> ((b, sq, h, dv), None)."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if query.dtype != value.dtype:  # layer norms in float32, as PEFT has them
        query, key = query.to(value.dtype), key.to(value.dtype)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    options = {"softmax_scale": scaling, "softcap": softcap or 0.0, "dropout_p": dropout, "s_aux": s_aux}
    if kwargs.get("cu_seq_lens_q") is not None and q.shape[0] == 1 and attention_mask is None:
        return _packed(q, k, v, kwargs, causal=bool(causal), window_size=_window(sliding_window, k.shape[1]), **options), None
    if attention_mask is not None and attention_mask.dim() == 4:  # says everything: what is causal, and what slides
        bias = attention_mask[..., : k.shape[1]]
        if position_bias is not None:
            bias = torch.where(bias, position_bias, float("-inf")) if bias.dtype == torch.bool else bias + position_bias
        out = interface.flash_attn_func(q, k, v, attn_bias=bias, **options)
        return out, None
    bias = position_bias
    if attention_mask is not None and attention_mask.dtype == torch.int32:
        sliding_window = sliding_window or int(attention_mask.max())
        attention_mask = None if attention_mask.shape == (1, 1) else attention_mask
    if attention_mask is not None:
        padding = attention_mask[:, None, None, :].to(torch.bool)
        bias = padding if bias is None else torch.where(padding, bias, float("-inf"))
        k, v = k[:, : padding.shape[-1]], v[:, : padding.shape[-1]]
    out = interface.flash_attn_func(
        q, k, v, causal=bool(causal), window_size=_window(sliding_window, k.shape[1]), attn_bias=bias, **options
    )
    return out, None


def _window(sliding_window: int | None, keys: int) -> tuple[int, int]:
    if sliding_window is None or keys <= sliding_window:
        return -1, -1
    return sliding_window - 1, sliding_window - 1


def _packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: dict[str, Any], **options: Any) -> torch.Tensor:
    """Sequences packed into one row, whose starts the model passes on."""
    cu_q, cu_k = lengths["cu_seq_lens_q"], lengths.get("cu_seq_lens_k")
    cu_k = cu_q if cu_k is None else cu_k
    longest = [lengths.get(name) for name in ("max_length_q", "max_length_k")]
    max_q, max_k = (int((cu[1:] - cu[:-1]).max()) if n is None else n for n, cu in zip(longest, (cu_q, cu_k)))
    return interface.flash_attn_varlen_func(q[0], k[0], v[0], cu_q.to(torch.int32), cu_k.to(torch.int32), max_q, max_k, **options)[None]
