"""Training through attention: the loss, its gradient by mx.grad, and steps of gradient descent."""

import sys

import mlx.core as mx
from checks import plain_attention, require_close, window

from flash_attn import flash_attn_func

BATCH, LENGTH, HEADS, DIM = 1, 256, 4, 64
STEPS, RATE = 5, 0.01


def main():
    mx.random.seed(42)
    q, k, v, target = (mx.random.normal((BATCH, LENGTH, HEADS, DIM)) for _ in range(4))
    visible = window(LENGTH, LENGTH, right=0)

    def loss(q, k, v):
        return mx.sum((flash_attn_func(q, k, v, causal=True) - target) ** 2) / HEADS

    def plain_loss(q, k, v):
        return mx.sum((plain_attention(q, k, v, visible=visible) - target) ** 2) / HEADS

    print("Training with gradients")
    print(f"  output {flash_attn_func(q, k, v, causal=True).shape}")
    gradients, expected = (mx.grad(function, argnums=(0, 1, 2))(q, k, v) for function in (loss, plain_loss))
    for name, found, wanted in zip(("dq", "dk", "dv"), gradients, expected):
        require_close(found, wanted, name, tolerance=1e-4 * mx.abs(wanted).max().item())

    step = mx.value_and_grad(loss, argnums=0)
    losses = []
    for i in range(STEPS):
        value, dq = step(q, k, v)
        q = q - RATE * dq
        mx.eval(q)
        losses.append(value.item())
        print(f"  Step {i + 1}: Loss = {losses[-1]:.4f}")
    if losses != sorted(set(losses), reverse=True):
        sys.exit(f"WRONG: the loss did not fall: {losses}")
    print("  checked: the loss falls at every step")


if __name__ == "__main__":
    main()
