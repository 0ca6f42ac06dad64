"""Projections that come in one array: qkv for self-attention, kv for cross-attention. They are read where they are, not copied apart."""

import mlx.core as mx
from checks import plain_attention, require_close, window

from flash_attn import flash_attn_kvpacked_func, flash_attn_qkvpacked_func

BATCH, LENGTH, HEADS, DIM = 2, 512, 8, 64
QUERIES = 128


def main():
    mx.random.seed(42)
    print("QKV packed, self-attention")
    qkv = mx.random.normal((BATCH, LENGTH, 3, HEADS, DIM)).astype(mx.float16)
    out = flash_attn_qkvpacked_func(qkv, causal=True)
    print(f"  qkv {qkv.shape}, output {out.shape}")
    q, k, v = (qkv[:1, :, i] for i in range(3))
    require_close(out[:1], plain_attention(q, k, v, visible=window(LENGTH, LENGTH, right=0)), "qkvpacked")

    print("KV packed, cross-attention")
    q = mx.random.normal((BATCH, QUERIES, HEADS, DIM)).astype(mx.float16)
    kv = mx.random.normal((BATCH, LENGTH, 2, HEADS, DIM)).astype(mx.float16)
    out = flash_attn_kvpacked_func(q, kv, causal=False)
    print(f"  q {q.shape}, kv {kv.shape}, output {out.shape}")
    require_close(out, plain_attention(q, kv[:, :, 0], kv[:, :, 1]), "kvpacked")


if __name__ == "__main__":
    main()
