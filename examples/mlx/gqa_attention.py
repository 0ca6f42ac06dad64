"""Fewer key/value heads than query heads: multi-query (1), grouped-query (2) and multi-head attention (all)."""

import mlx.core as mx
from checks import plain_attention, require_close, window

from flash_attn import flash_attn_func

BATCH, LENGTH, HEADS, DIM = 2, 512, 8, 64


def part(title, kv_heads):
    print(f"{title}: {HEADS} query heads, {kv_heads} key/value heads, {HEADS // kv_heads} to 1")
    q = mx.random.normal((BATCH, LENGTH, HEADS, DIM)).astype(mx.float16)
    k, v = (mx.random.normal((BATCH, LENGTH, kv_heads, DIM)).astype(mx.float16) for _ in range(2))
    out = flash_attn_func(q, k, v, causal=True)  # the heads of k and v are never repeated in memory
    print(f"  q {q.shape}, k {k.shape}, output {out.shape}")
    require_close(out[:1], plain_attention(q[:1], k[:1], v[:1], visible=window(LENGTH, LENGTH, right=0)), title)


def main():
    mx.random.seed(42)
    part("Multi-query attention", kv_heads=1)
    part("Grouped-query attention", kv_heads=2)
    part("Multi-head attention", kv_heads=8)


if __name__ == "__main__":
    main()
