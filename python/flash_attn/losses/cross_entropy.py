"""Cross entropy as a module."""

from __future__ import annotations

import torch

from flash_attn.ops.triton.cross_entropy import cross_entropy_loss


class CrossEntropyLoss(torch.nn.Module):
    """torch.nn.CrossEntropyLoss for class indices, with a scale of the logits and a penalty of lse_square_scale * lse^2 (z loss).

    reduction: "mean" (over labels that are not ignored), "sum" or "none". process_group: logits are split over it by classes.
    """

    def __init__(
        self,
        ignore_index=-100,
        reduction="mean",
        label_smoothing=0.0,
        logit_scale=1.0,
        lse_square_scale=0.0,
        inplace_backward=False,
        process_group=None,
        return_z_loss=False,
    ):
        super().__init__()
        if reduction not in ("mean", "none", "sum"):
            raise NotImplementedError(f"[CrossEntropyLoss] reduction: expected 'mean', 'sum' or 'none', found {reduction!r}.")
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.logit_scale = logit_scale
        self.lse_square_scale = lse_square_scale
        self.inplace_backward = inplace_backward
        self.process_group = process_group
        self.return_z_loss = return_z_loss

    def forward(self, input, target, precomputed_lse=None):
        """input (rows, classes), target (rows,) -> the loss, or (loss, z loss) with return_z_loss."""
        losses = cross_entropy_loss(
            input, target, precomputed_lse, self.label_smoothing, self.logit_scale, self.lse_square_scale, self.ignore_index,
            self.inplace_backward, self.process_group,
        )  # fmt: skip
        reduced = [self._reduced(x, target) for x in losses]
        return tuple(reduced) if self.return_z_loss else reduced[0]

    def _reduced(self, losses: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() / (target != self.ignore_index).sum()
