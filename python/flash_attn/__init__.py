"""Exact attention, forward and backward, for NumPy, PyTorch, MLX and JAX arrays, on the hardware they live on.

from flash_attn import flash_attn_func
out = flash_attn_func(q, k, v, causal=True)      # q (b, sq, h, d), k, v (b, sk, hk, d) -> (b, sq, h, d)
"""

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

__version__ = "2.8.3"  # of the interface, as clients compare it; releases of this package are its builds, 2.8.3-N

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


# what is imported when it is first asked for: importing the package is then a matter of milliseconds
_MODULES = ("numpy", "mlx", "flash_attn_mlx", "transformers", "flash_attn_interface", "bert_padding", "layers", "losses", "ops", "cute")
_COMBINE = ("flash_attn_combine", "merge")


def __getattr__(name: str):
    if name in _MODULES or name in _COMBINE:
        import importlib

        if name in _MODULES:
            return importlib.import_module(f"flash_attn.{name}")
        globals()[name] = found = getattr(importlib.import_module("flash_attn.combine"), name)
        return found
    raise AttributeError(f"module 'flash_attn' has no attribute {name!r}")
