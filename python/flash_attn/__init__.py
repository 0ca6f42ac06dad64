"""Exact attention, forward and backward, for NumPy, PyTorch, MLX and JAX arrays, on the hardware they live on.

from flash_attn import flash_attn_func
out = flash_attn_func(q, k, v, causal=True)      # q (b, sq, h, d), k, v (b, sk, hk, d) -> (b, sq, h, d)
"""

from flash_attn.combine import flash_attn_combine, merge
from flash_attn.explain import explain
from flash_attn.interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

__version__ = "2.8.3"  # of the interface, as clients compare it; releases of this package are 2.8.3.postN

__all__ = [
    "explain",
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "merge",
]


def __getattr__(name: str):
    # helpers of one ecosystem each, imported when first asked for
    if name in (
        "numpy",
        "mlx",
        "flash_attn_mlx",
        "transformers",
        "flash_attn_interface",
        "bert_padding",
        "layers",
        "losses",
        "ops",
        "cute",
    ):
        import importlib

        return importlib.import_module(f"flash_attn.{name}")
    raise AttributeError(f"module 'flash_attn' has no attribute {name!r}")
