"""Generating with a key/value cache: a prompt is processed at once, then one token a step. The caches are updated in place."""

import mlx.core as mx
from checks import plain_attention, require_close, window

from flash_attn.flash_attn_mlx import flash_attn_with_kvcache

CAPACITY, PROMPT, STEPS, HEADS, DIM = 128, 8, 10, 8, 64


def normal(length, heads):
    return mx.random.normal((1, length, heads, DIM))


def generate(heads, kv_heads):
    """Prefill and decode; returns how much of the cache is used."""
    k_cache, v_cache = (mx.zeros((1, CAPACITY, kv_heads, DIM)) for _ in range(2))
    queries, keys, values = (normal(PROMPT + STEPS, n) for n in (heads, kv_heads, kv_heads))  # what a model would compute
    expected = plain_attention(queries, keys, values, visible=window(PROMPT + STEPS, PROMPT + STEPS, right=0))
    outputs, position = [], 0
    for count in (PROMPT, *[1] * STEPS):
        new = slice(position, position + count)
        output = flash_attn_with_kvcache(
            q=queries[:, new], k_cache=k_cache, v_cache=v_cache, k=keys[:, new], v=values[:, new],
            cache_seqlens=position, causal=True, softmax_scale=DIM**-0.5,
        )  # fmt: skip
        mx.eval(output, k_cache, v_cache)  # each step: a cache with pending work is copied
        position += count
        outputs.append(output)
        print(f"  {'prefill' if count > 1 else 'decode '}  output {output.shape}, cache position {position}")
    require_close(mx.concatenate(outputs, axis=1), expected, "all steps", tolerance=1e-5)
    require_close(k_cache[:, :position], keys, "the keys in the cache", tolerance=0)
    require_close(v_cache[:, position:], mx.zeros_like(v_cache[:, position:]), "the rest of the cache, zeros", tolerance=0)
    return position


def main():
    mx.random.seed(42)
    print(f"Prefill of {PROMPT} tokens and {STEPS} steps: caches (1, {CAPACITY}, {HEADS}, {DIM})")
    used = generate(HEADS, HEADS)
    print(f"  cache utilisation {used}/{CAPACITY} ({100 * used / CAPACITY:.1f} %)")

    mx.random.seed(123)
    print("Reading a cache that is already filled, without new keys")
    q, k_cache, v_cache = normal(1, HEADS), normal(CAPACITY, HEADS), normal(CAPACITY, HEADS)
    output = flash_attn_with_kvcache(q=q, k_cache=k_cache, v_cache=v_cache, cache_seqlens=64, causal=False, softmax_scale=DIM**-0.5)
    print(f"  output {output.shape}")
    require_close(output, plain_attention(q, k_cache[:, :64], v_cache[:, :64]), "the first 64 keys", tolerance=1e-5)

    mx.random.seed(456)
    kv_heads = 2
    print(f"Grouped-query attention: {HEADS} query heads, {kv_heads} key/value heads")
    generate(HEADS, kv_heads)
    print(f"  memory saved in the caches: {100 * (1 - kv_heads / HEADS):.0f} %")


if __name__ == "__main__":
    main()
