"""Layer and RMS normalisation with residual, dropout and a second branch. PyTorch only, differentiable by its autograd.

h = dropout(x * rowscale) + dropout(x1) + residual;  y = norm(h) * weight + bias;  y1 = norm(h) * weight1 + bias1
"""

from __future__ import annotations

import torch


def _normalise(h: torch.Tensor, is_rms_norm: bool, eps: float) -> torch.Tensor:
    if not is_rms_norm:
        h = h - h.mean(dim=-1, keepdim=True)
    return h * torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps)


def _scaled(h: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, zero_centered: bool) -> torch.Tensor:
    if weight is not None:
        h = h * (weight.float() + 1.0 if zero_centered else weight.float())
    return h if bias is None else h + bias.float()


def _dropped(x: torch.Tensor, dropout_p: float, mask: torch.Tensor | None) -> torch.Tensor:
    return x if mask is None else torch.where(mask, x / (1.0 - dropout_p), 0.0)


def layer_norm_fn(
    x,
    weight,
    bias,
    residual=None,
    x1=None,
    weight1=None,
    bias1=None,
    eps=1e-6,
    dropout_p=0.0,
    rowscale=None,
    prenorm=False,
    residual_in_fp32=False,
    zero_centered_weight=False,
    is_rms_norm=False,
    return_dropout_mask=False,
    out_dtype=None,
    out=None,
    residual_out=None,
):
    """y [, y1 with weight1] [, h with prenorm] [, the masks of x and x1 with return_dropout_mask], alone or as a tuple.

    Arguments:
        x, x1, residual: (..., dim); rowscale: (...,). weight, bias, weight1, bias1: (dim,) or None.
        residual_in_fp32: h is float32 (else the residual's dtype, or x's). out, residual_out: to write y and h into.
        zero_centered_weight: weights mean 1 + weight.
    """
    masks = [None, None]
    if dropout_p > 0.0:
        masks = [torch.rand(t.shape, device=t.device) >= dropout_p if t is not None else None for t in (x, x1)]
    h = x.float()
    if rowscale is not None:
        h = h * rowscale.float()[..., None]
    h = _dropped(h, dropout_p, masks[0])
    if x1 is not None:
        h = h + _dropped(x1.float(), dropout_p, masks[1])
    if residual is not None:
        h = h + residual.float()
    residual_dtype = torch.float32 if residual_in_fp32 else x.dtype if residual is None else residual.dtype
    kept = h.to(residual_dtype)
    normal = _normalise(h, is_rms_norm, eps)
    dtype = x.dtype if out_dtype is None else out_dtype
    y = _scaled(normal, weight, bias, zero_centered_weight).to(dtype)
    results = [y if out is None else out.copy_(y)]
    if weight1 is not None:
        results.append(_scaled(normal, weight1, bias1, zero_centered_weight).to(dtype))
    if prenorm:
        results.append(kept if residual_out is None else residual_out.copy_(kept))
    if return_dropout_mask:
        results += masks
    return results[0] if len(results) == 1 else tuple(results)


def rms_norm_fn(
    x,
    weight,
    bias,
    residual=None,
    x1=None,
    weight1=None,
    bias1=None,
    eps=1e-6,
    dropout_p=0.0,
    rowscale=None,
    prenorm=False,
    residual_in_fp32=False,
    zero_centered_weight=False,
    return_dropout_mask=False,
    out_dtype=None,
    out=None,
    residual_out=None,
):
    """layer_norm_fn without subtracting the mean."""
    return layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32, zero_centered_weight, True,
        return_dropout_mask, out_dtype, out, residual_out,
    )  # fmt: skip


class RMSNorm(torch.nn.Module):
    """RMS normalisation of the last axis, with dropout of its input and a residual."""

    def __init__(self, hidden_size, eps=1e-5, dropout_p=0.0, zero_centered_weight=False, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.drop = torch.nn.Dropout(dropout_p) if dropout_p > 0.0 else None
        self.zero_centered_weight = zero_centered_weight
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self):
        """Weights that change nothing."""
        torch.nn.init.constant_(self.weight, 0.0 if self.zero_centered_weight else 1.0)

    def forward(self, x, residual=None, prenorm=False, residual_in_fp32=False):
        """y, or (y, h) with prenorm."""
        dropout_p = self.drop.p if self.drop is not None and self.training else 0.0
        return rms_norm_fn(
            x, self.weight, self.bias, residual=residual, eps=self.eps, dropout_p=dropout_p, prenorm=prenorm,
            residual_in_fp32=residual_in_fp32, zero_centered_weight=self.zero_centered_weight,
        )  # fmt: skip
