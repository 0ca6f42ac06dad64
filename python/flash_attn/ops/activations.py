"""Activations that other projects import from here. PyTorch only."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def swiglu_fwd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """silu(x) * y, computed in float32."""
    return (functional.silu(x.float()) * y.float()).to(x.dtype)


def swiglu_bwd(x: torch.Tensor, y: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of swiglu for x and y at the gradient g."""
    a, b, g = x.float(), y.float(), g.float()
    gate = torch.sigmoid(a)
    return (g * b * gate * (1 + a * (1 - gate))).to(x.dtype), (g * a * gate).to(y.dtype)


class SwiGLUFunction(torch.autograd.Function):
    """swiglu that keeps x and y alone for the backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, y)
        return swiglu_fwd(x, y)

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return swiglu_bwd(*ctx.saved_tensors, dout)


swiglu = SwiGLUFunction.apply


def sqrelu_fwd(x: torch.Tensor) -> torch.Tensor:
    """relu(x)^2."""
    return functional.relu(x.float()).square().to(x.dtype)


def sqrelu_bwd(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of sqrelu_fwd at the gradient g."""
    return (2.0 * g.float() * functional.relu(x.float())).to(x.dtype)
