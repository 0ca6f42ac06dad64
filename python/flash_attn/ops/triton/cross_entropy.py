"""Cross entropy over a vocabulary, which may be split over the processes of a group. PyTorch only.

lse = log sum exp(scale z);  loss = lse - (1 - s) scale z[label] - s mean(scale z) + c lse^2     (label smoothing s, lse_square_scale c)
dz = scale dloss ((1 + 2 c lse) exp(scale z - lse) - (1 - s) [label] - s / classes);  both 0 for ignored labels
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class CrossEntropyLoss(torch.autograd.Function):
    """cross_entropy_loss with its gradient; only the logits and the lse are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        logits,
        labels,
        precomputed_lse=None,
        smoothing=0.0,
        logit_scale=1.0,
        lse_square_scale=0.0,
        ignore_index=-100,
        inplace_backward=False,
        process_group=None,
    ):
        ranks = 1 if process_group is None else dist.get_world_size(process_group)
        first = 0 if process_group is None else dist.get_rank(process_group) * logits.shape[1]
        classes = ranks * logits.shape[1]
        scaled = logits.float() * logit_scale
        lse = precomputed_lse if precomputed_lse is not None and ranks == 1 else scaled.logsumexp(dim=-1)
        ignored = labels == ignore_index
        here = (labels >= first) & (labels < first + logits.shape[1]) & ~ignored
        column = torch.where(here, labels - first, 0)[:, None]
        losses = -(1.0 - smoothing) * torch.where(here, scaled.gather(1, column)[:, 0], 0.0)
        if smoothing:
            losses = losses - smoothing / classes * scaled.sum(dim=-1)
        if ranks > 1:
            parts = [torch.empty_like(lse) for _ in range(ranks)]
            dist.all_gather(parts, lse.contiguous(), group=process_group)
            lse = torch.stack(parts).logsumexp(dim=0)
            dist.all_reduce(losses, group=process_group)
        z_losses = torch.where(ignored, 0.0, lse_square_scale * lse.square())
        losses = torch.where(ignored, 0.0, losses + lse) + z_losses
        ctx.save_for_backward(logits, lse, ignored, here, column)
        ctx.numbers = smoothing, logit_scale, lse_square_scale, classes, ranks, inplace_backward
        ctx.mark_non_differentiable(z_losses)
        return losses, z_losses

    @staticmethod
    def backward(ctx: Any, grad_losses, _):
        logits, lse, ignored, here, column = ctx.saved_tensors
        smoothing, logit_scale, lse_square_scale, classes, ranks, inplace = ctx.numbers
        scaled = logits.float() * logit_scale
        if torch.is_grad_enabled():  # create_graph=True: what is saved is a constant, and logits that are written over are lost
            if inplace or ranks > 1:
                raise NotImplementedError(
                    "[cross_entropy_loss] has a second derivative only without inplace_backward and process_group: expected neither, "
                    f"found inplace_backward {inplace} and {ranks} processes."
                )
            lse = scaled.logsumexp(dim=-1)
        gradient = torch.exp(scaled - lse[:, None]) * (1.0 + 2.0 * lse_square_scale * lse)[:, None]
        gradient.scatter_add_(1, column, -(1.0 - smoothing) * here[:, None].to(gradient.dtype))
        if smoothing:
            gradient -= smoothing / classes
        gradient *= (torch.where(ignored, 0.0, grad_losses.float()) * logit_scale)[:, None]
        dlogits = logits.copy_(gradient) if inplace else gradient.to(logits.dtype)
        return dlogits, *(None,) * 8


def cross_entropy_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    precomputed_lse: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    ignore_index=-100,
    inplace_backward: bool = False,
    process_group=None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses, z_losses), float32 (rows,), of logits (rows, classes) and labels int (rows,); z_losses, a part of losses, has no gradient.

    precomputed_lse: of logits * logit_scale. inplace_backward: the gradient replaces the logits. process_group: its processes hold
    equal parts of the classes, in the order of their ranks; labels are the same for all.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"[cross_entropy_loss] labels: expected (rows,) for logits (rows, classes), "
            f"found {tuple(labels.shape)} and {tuple(logits.shape)}."
        )
    return CrossEntropyLoss.apply(
        logits, labels, precomputed_lse, label_smoothing, logit_scale, lse_square_scale, ignore_index, inplace_backward, process_group
    )
