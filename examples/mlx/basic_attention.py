"""Attention in one call: plain, causal for autoregressive models, and with a scale of one's own."""

import mlx.core as mx
from checks import plain_attention, require_close, window

from flash_attn import flash_attn_func

BATCH, LENGTH, HEADS, DIM = 2, 1024, 8, 64


def check(out, q, k, v, what, **options):
    """On one head of each sequence: plain attention is slow."""
    require_close(out[:, :, :1], plain_attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], **options), what)


def main():
    mx.random.seed(42)
    q, k, v = (mx.random.normal((BATCH, LENGTH, HEADS, DIM)).astype(mx.float16) for _ in range(3))
    print("Basic attention")
    print(f"  q {q.shape}, k {k.shape}, v {v.shape}: (batch, seqlen, heads, head_dim)")

    out = flash_attn_func(q, k, v)
    print(f"  output {out.shape}, {out.dtype}")
    check(out, q, k, v, "standard attention")

    out = flash_attn_func(q, k, v, causal=True)
    check(out, q, k, v, "causal attention", visible=window(LENGTH, LENGTH, right=0))

    out = flash_attn_func(q, k, v, softmax_scale=0.1)
    check(out, q, k, v, "attention with softmax_scale=0.1", scale=0.1)


if __name__ == "__main__":
    main()
