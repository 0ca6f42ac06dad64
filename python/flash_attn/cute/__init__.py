"""FlashAttention-4's package of that name, for PyTorch."""

from flash_attn.cute.interface import flash_attn_combine, flash_attn_func, flash_attn_varlen_func

__all__ = ["flash_attn_combine", "flash_attn_func", "flash_attn_varlen_func"]
