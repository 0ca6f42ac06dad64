"""Plain inference by MLX's own kernel: a row of the table with its conditions, and what it must never be given."""

from __future__ import annotations

import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")

import flash_attn.mlx  # noqa: E402
from flash_attn import explain, flash_attn_func  # noqa: E402
from target_metal import emulated, why_not  # noqa: E402

if why_not():
    pytest.skip(why_not(), allow_module_level=True)


def arrays(rows=16, keys=40, heads=4, kv_heads=2, dim=64, dtype=mx.float16, value_dim=None):
    shapes = ((2, rows, heads, dim), (2, keys, kv_heads, dim), (2, keys, kv_heads, value_dim or dim))
    return [mx.random.normal(shape, key=mx.random.key(i)).astype(dtype) for i, shape in enumerate(shapes)]


def said(x, **options):
    with emulated(), flash_attn.mlx.without_gradients():
        return explain(flash_attn_func, *x, **options)


TAKEN = [
    ({}, {}),
    ({}, {"causal": True}),
    ({}, {"deterministic": True, "softmax_scale": 0.3}),
    ({"dim": 80, "dtype": mx.bfloat16}, {"causal": True}),
    ({"rows": 8}, {"causal": True}),
    ({"rows": 1, "dim": 256}, {}),
    ({"rows": 40, "dim": 128}, {"causal": True}),
]


@pytest.mark.parametrize("shape, options", TAKEN, ids=str)
def test_plain_inference_is_mlxs(shape, options):
    x = arrays(**shape)
    expected = flash_attn_func(*(a.astype(mx.float32) for a in x), **options)
    assert said(x, **options).endswith("runs mlx_sdpa (metal): mlx_sdpa; temporaries 0 bytes")
    with emulated():
        out = flash_attn.mlx.inference(*x, **options)
    assert out.dtype == x[0].dtype and out.shape == expected.shape
    assert mx.abs(out - expected).max().item() < (0.02 if x[0].dtype == mx.bfloat16 else 0.006)


REFUSED = [
    ({"rows": 41}, {"causal": True}, "as many keys as rows"),  # the first row sees no key
    ({"keys": 0}, {}, "no empty arrays"),
    ({"dim": 72}, {}, "head dim 64, 80 or 128"),
    ({"rows": 8, "dim": 80}, {}, "head dim 64, 96, 128 or 256"),
    ({"rows": 8, "keys": 5}, {}, "at least"),
    ({"rows": 8, "heads": 10}, {}, "at most 32 query rows"),
    ({"dtype": mx.float32}, {}, "does not do float32"),
    ({"value_dim": 32}, {}, "value head dim"),
    ({}, {"window_size": (5, 0)}, "window_size"),
    ({}, {"softcap": 2.0}, "softcap"),
    ({}, {"softmax_scale": -1.0}, "softmax_scale"),
    ({}, {"learnable_sink": mx.zeros(4)}, "learnable_sink"),
    ({}, {"alibi_slopes": mx.zeros(4)}, "alibi_slopes"),
    ({}, {"attn_bias": mx.zeros((1, 1, 16, 40))}, "attn_bias"),
    ({}, {"dropout_p": 0.1}, "dropout"),
    ({}, {"q_offset": 3}, "q_offset"),
    ({}, {"seqused_k": mx.array([0, 3], dtype=mx.int32)}, "seqused"),
    ({}, {"attention_chunk": 4}, "attention_chunk"),
    ({}, {"out_dtype": "float32"}, "out_dtype"),
    ({}, {"return_attn_probs": True}, "log-sum-exp"),
]  # fmt: skip


@pytest.mark.parametrize("shape, options, why", REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_everything_else_is_ours(shape, options, why):
    text = said(arrays(**shape), **options)
    assert "runs mlx_sdpa" not in text and why in text.split("\n")[0] and text.startswith("not mlx_sdpa: ")


def test_gradients_need_our_kernels():
    x = arrays()
    with emulated():
        assert "not mlx_sdpa: log-sum-exp (and gradients) not supported" in explain(flash_attn_func, *x)


def test_ours_in_place_of_mlxs_does_not_call_itself():
    x = arrays()
    expected = flash_attn.mlx.inference(*x)
    with emulated(), flash_attn.mlx.install(), flash_attn.mlx.without_gradients():
        q, k, v = (a.swapaxes(1, 2) for a in x)
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=64**-0.5).swapaxes(1, 2)
    assert mx.abs(out - expected).max().item() < 3e-3
