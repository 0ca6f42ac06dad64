"""Between padded batches and packed sequences, under the names that other projects import from here. PyTorch only."""

from __future__ import annotations

from typing import Any

import torch

__all__ = [
    "IndexFirstAxis",
    "IndexFirstAxisResidual",
    "IndexPutFirstAxis",
    "index_first_axis",
    "index_first_axis_residual",
    "index_put_first_axis",
    "pad_input",
    "rearrange",  # noqa: F822 (imported when first asked for)
    "unpad_input",
    "unpad_input_for_concatenated_sequences",
]


class IndexFirstAxis(torch.autograd.Function):
    """input[indices] along the first axis; indices (n,) int32 or int64, none twice."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        indices = indices.long()
        ctx.save_for_backward(indices)
        ctx.rows = input.shape[0]
        return input.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        (indices,) = ctx.saved_tensors
        return index_put_first_axis(grad_output, indices, ctx.rows), None


class IndexPutFirstAxis(torch.autograd.Function):
    """Zeros (first_axis_dim, ...) with values at the rows `indices`, none twice."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, indices: torch.Tensor, first_axis_dim: int) -> torch.Tensor:
        indices = indices.long()
        ctx.save_for_backward(indices)
        return values.new_zeros((first_axis_dim, *values.shape[1:])).index_copy_(0, indices, values)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return index_first_axis(grad_output, indices), None, None


class IndexFirstAxisResidual(torch.autograd.Function):
    """(input[indices], input): the second output for a residual connection, whose gradient joins that of the first."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        indices = indices.long()
        ctx.save_for_backward(indices)
        return input.index_select(0, indices), input.detach()

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor, grad_residual: torch.Tensor) -> tuple[torch.Tensor, None]:
        (indices,) = ctx.saved_tensors
        return grad_residual.index_add(0, indices, grad_output), None


index_first_axis = IndexFirstAxis.apply
index_put_first_axis = IndexPutFirstAxis.apply
index_first_axis_residual = IndexFirstAxisResidual.apply


def _cumulative(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def unpad_input(hidden_states: torch.Tensor, attention_mask: torch.Tensor, unused_mask: torch.Tensor | None = None):
    """The rows of a padded batch that attention_mask marks, packed.

    Arguments:
        hidden_states: (batch, seqlen, ...).
        attention_mask: (batch, seqlen), bool or int: 1 is a token.
        unused_mask: the same for tokens that are allocated but not used.
    Returns:
        (packed (total, ...), indices (total,), cu_seqlens int32 (batch + 1,), the longest sequence, lengths int32 (batch,)); lengths
        are those of attention_mask alone, the others count unused tokens too.
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(dim=-1, dtype=torch.int32)
    used = attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero(kept.flatten(), as_tuple=False).flatten()
    longest = int(lengths.max()) if lengths.numel() else 0
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, _cumulative(lengths), longest, used


def unpad_input_for_concatenated_sequences(hidden_states: torch.Tensor, attention_mask_in_length: torch.Tensor):
    """As unpad_input for rows that hold several sequences: attention_mask_in_length (batch, seqlen) lists their lengths, then zeros.

    Returns (packed (total, ...), indices (total,), cu_seqlens int32 (sequences + 1,), the longest sequence).
    """
    seqlen = attention_mask_in_length.shape[-1]
    filled = attention_mask_in_length.sum(dim=-1)
    kept = torch.arange(seqlen, device=filled.device)[None] < filled[:, None]
    lengths = attention_mask_in_length.flatten()
    lengths = lengths[lengths > 0]
    indices = torch.nonzero(kept.flatten(), as_tuple=False).flatten()
    longest = int(lengths.max()) if lengths.numel() else 0
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, _cumulative(lengths), longest


def pad_input(hidden_states: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """The inverse of unpad_input: (batch, seqlen, ...) with zeros where no token was."""
    return index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(0, (batch, seqlen))


def __getattr__(name: str) -> Any:
    if name == "rearrange":  # of einops; some projects import it from here
        from einops import rearrange

        return rearrange
    raise AttributeError(f"module 'flash_attn.bert_padding' has no attribute {name!r}")
