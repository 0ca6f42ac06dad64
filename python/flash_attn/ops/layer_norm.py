"""Dropout, residual and layer normalisation in one, under the names that other projects import from here. PyTorch only."""

from __future__ import annotations

import torch

from flash_attn.ops.triton.layer_norm import layer_norm_fn


def layer_norm(x, weight, bias, epsilon):
    """Layer normalisation of the last axis."""
    return layer_norm_fn(x, weight, bias, eps=epsilon)


def normalise(
    x0, residual, weight, bias, dropout_p, epsilon, rowscale, layerscale, prenorm, residual_in_fp32, return_dropout_mask, is_rms_norm,
    x1=None, weight1=None, bias1=None,
):  # fmt: skip
    """norm(dropout(x0 * rowscale) * layerscale + dropout(x1) + residual), as the functions of this module and of rms_norm return it."""
    if rowscale is not None:
        x0 = x0 * rowscale[..., None].to(x0.dtype)
    keeps = [torch.rand(t.shape, device=t.device) >= dropout_p for t in (x0, x1) if t is not None] if dropout_p > 0.0 else []
    if keeps:
        x0 = torch.where(keeps[0], x0 / (1.0 - dropout_p), 0.0)
        x1 = None if x1 is None else torch.where(keeps[1], x1 / (1.0 - dropout_p), 0.0)
    masks = keeps or [torch.ones(t.shape, dtype=torch.bool, device=t.device) for t in (x0, x1) if t is not None]
    if layerscale is not None:
        x0 = x0 * layerscale.to(x0.dtype)
    results = layer_norm_fn(
        x0, weight, bias, residual, x1, weight1, bias1, eps=epsilon, prenorm=prenorm, residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm, out_dtype=None if weight is None else weight.dtype,
    )  # fmt: skip
    if not return_dropout_mask:
        return results
    return (*(results if isinstance(results, tuple) else (results,)), *masks)


def dropout_add_layer_norm(
    x0,
    residual,
    weight,
    bias,
    dropout_p,
    epsilon,
    rowscale=None,
    layerscale=None,
    prenorm=False,
    residual_in_fp32=False,
    return_dropout_mask=False,
):
    """out = layer_norm(h), h = dropout(x0 * rowscale) * layerscale + residual.

    Returns out, then h with prenorm, then the mask with return_dropout_mask: alone or as a tuple. residual may be None.
    """
    return normalise(
        x0, residual, weight, bias, dropout_p, epsilon, rowscale, layerscale, prenorm, residual_in_fp32, return_dropout_mask, False
    )


def normalise_parallel(
    x0, x1, residual, weight0, bias0, weight1, bias1, dropout_p, epsilon, prenorm, residual_in_fp32, return_dropout_mask, is_rms_norm
):
    """normalise() of two branches with a weight for each; always a tuple."""
    results = normalise(
        x0, residual, weight0, bias0, dropout_p, epsilon, None, None, prenorm, residual_in_fp32, return_dropout_mask, is_rms_norm, x1,
        weight1, bias1,
    )  # fmt: skip
    return results if isinstance(results, tuple) else (results, None)


def dropout_add_layer_norm_parallel_residual(
    x0, x1, residual, weight0, bias0, weight1, bias1, dropout_p, epsilon, prenorm=False, residual_in_fp32=False, return_dropout_mask=False
):
    """Two normalisations of h = dropout(x0) + dropout(x1) + residual: (out0, out1), then h, then both masks."""
    return normalise_parallel(
        x0, x1, residual, weight0, bias0, weight1, bias1, dropout_p, epsilon, prenorm, residual_in_fp32, return_dropout_mask, False
    )


class DropoutAddNorm(torch.nn.Module):
    """What the modules here and in rms_norm share."""

    is_rms_norm: bool

    def __init__(self, hidden_size, prenorm=False, p=0.0, eps=1e-5, residual_in_fp32=False, device=None, dtype=None):
        super().__init__()
        self.prenorm = prenorm
        self.p = p
        self.eps = eps
        self.residual_in_fp32 = residual_in_fp32
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        bias = None if self.is_rms_norm else torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", bias)
        self.reset_parameters()

    def reset_parameters(self):
        """Weights that change nothing."""
        torch.nn.init.ones_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, x0, residual=None):
        """out, or (out, h) with prenorm."""
        p = self.p if self.training else 0.0
        return normalise(
            x0, residual, self.weight, self.bias, p, self.eps, None, None, self.prenorm, self.residual_in_fp32, False, self.is_rms_norm
        )


class DropoutAddLayerNorm(DropoutAddNorm):
    """dropout_add_layer_norm as a module."""

    is_rms_norm = False
