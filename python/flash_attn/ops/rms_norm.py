"""Dropout, residual and RMS normalisation in one, under the names that other projects import from here. PyTorch only."""

from __future__ import annotations

import torch

from flash_attn.ops.layer_norm import DropoutAddNorm, normalise, normalise_parallel
from flash_attn.ops.triton.layer_norm import layer_norm_fn


def rms_norm(x, weight, epsilon):
    """RMS normalisation of the last axis."""
    return layer_norm_fn(x, weight, None, eps=epsilon, is_rms_norm=True)


def dropout_add_rms_norm(
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
    """dropout_add_layer_norm without subtracting the mean."""
    return normalise(
        x0, residual, weight, bias, dropout_p, epsilon, rowscale, layerscale, prenorm, residual_in_fp32, return_dropout_mask, True
    )


def dropout_add_rms_norm_parallel_residual(
    x0, x1, residual, weight0, bias0, weight1, bias1, dropout_p, epsilon, prenorm=False, residual_in_fp32=False, return_dropout_mask=False
):
    """dropout_add_layer_norm_parallel_residual without subtracting the mean."""
    return normalise_parallel(
        x0, x1, residual, weight0, bias0, weight1, bias1, dropout_p, epsilon, prenorm, residual_in_fp32, return_dropout_mask, True
    )


class RMSNorm(torch.nn.Module):
    """RMS normalisation of the last axis."""

    def __init__(self, hidden_size, eps=1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self):
        """Weights that change nothing."""
        torch.nn.init.ones_(self.weight)

    def forward(self, x):
        """Of the same shape, in the dtype of the weight."""
        return rms_norm(x, self.weight, self.eps)


class DropoutAddRMSNorm(DropoutAddNorm):
    """dropout_add_rms_norm as a module."""

    is_rms_norm = True
