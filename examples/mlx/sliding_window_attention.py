"""Local attention: each query sees only keys near it, and time and memory no longer grow with the square of the length."""

import mlx.core as mx
from checks import plain_attention, require_close, window

from flash_attn import flash_attn_func

BATCH, LENGTH, HEADS, DIM = 2, 2048, 8, 64
CHECKED = slice(-512, None)  # these rows of one head: plain attention is slow


def part(title, q, k, v, visible=None, **options):
    print(f"{title}: {', '.join(f'{name}={value}' for name, value in options.items())}")
    print(f"  keys a query sees: at most {LENGTH if visible is None else visible.sum(axis=1).max().item()}")
    out = flash_attn_func(q, k, v, **options)
    print(f"  output {out.shape}")
    visible = None if visible is None else visible[CHECKED]
    require_close(out[:1, CHECKED, :1], plain_attention(q[:1, CHECKED, :1], k[:1, :, :1], v[:1, :, :1], visible=visible), title)


def main():
    mx.random.seed(42)
    q, k, v = (mx.random.normal((BATCH, LENGTH, HEADS, DIM)).astype(mx.float16) for _ in range(3))
    print(f"Sequences of {LENGTH}: q, k, v {q.shape}")
    part("Full attention", q, k, v, window_size=(-1, -1))
    part("Symmetric window", q, k, v, visible=window(LENGTH, LENGTH, 128, 128), window_size=(128, 128))
    part("Causal window", q, k, v, visible=window(LENGTH, LENGTH, 128, 0), causal=True, window_size=(128, 0))


if __name__ == "__main__":
    main()
