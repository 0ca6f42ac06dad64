"""The MLX front end beside numerics and transforms: caches in place, dropout's seeds, models, memory, threads, errors."""

import ctypes
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import reference

mx = pytest.importorskip("mlx.core")
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optimizers  # noqa: E402

import flash_attn  # noqa: E402
import flash_attn.mlx  # noqa: E402
from flash_attn import flash_attn_func, flash_attn_varlen_func  # noqa: E402
from flash_attn.flash_attn_mlx import flash_attn_with_kvcache, is_mlx_available  # noqa: E402
from flash_attn.flash_attn_mlx.device import check_mlx_requirements, get_device_info  # noqa: E402
from flash_attn.flash_attn_mlx.paged_cache import update_paged_kv_cache  # noqa: E402
from flash_attn.frameworks.mlx import MLX  # noqa: E402
from tolerance import ROUNDING  # noqa: E402

B, S, H, HK, D = 2, 12, 4, 2, 16


def normal(*shape, dtype=mx.float32):
    return mx.random.normal(shape).astype(dtype)


def qkv(length=S, keys=None, dtype=mx.float32):
    keys = length if keys is None else keys
    return normal(B, length, H, D, dtype=dtype), normal(B, keys, HK, D, dtype=dtype), normal(B, keys, HK, D, dtype=dtype)


def equal(a, b):
    return mx.array_equal(a, b).item()


def close(a, b, tolerance=2e-6):
    return (mx.abs(a - b).max() <= tolerance * mx.maximum(1.0, mx.abs(b).max())).item()


def address(array):
    return ctypes.addressof(ctypes.c_char.from_buffer(memoryview(array)))


# ---- results ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize("length", [1, 7, 700])  # small results are made in another way than large ones
def test_dtypes_and_sizes_of_results(dtype, length):
    q, k, v = qkv(length, dtype=dtype)
    out, lse, probabilities = flash_attn_func(q, k, v, return_attn_probs=True)
    assert (out.shape, out.dtype) == (q.shape, dtype)
    assert (lse.shape, lse.dtype) == ((B, H, length), mx.float32)
    assert probabilities.shape == (0,)
    wide = flash_attn_func(q, k, v, out_dtype="float32")
    assert wide.dtype == mx.float32 and wide.shape == out.shape
    # one rounding of the result, and one of the probabilities: products of bfloat16 pairs take them so, but not for wide results
    rounding = ROUNDING[str(dtype).removeprefix("mlx.core.")]
    assert (mx.abs(out.astype(mx.float32) - wide).max() <= rounding * (mx.abs(wide).max() + mx.abs(v).max())).item()
    assert wide.dtype == flash_attn_func(q, k, v, out_dtype=mx.float32).dtype
    gradients = mx.grad(lambda *x: flash_attn_func(*x, out_dtype="float32").sum(), argnums=(0, 1, 2))(q, k, v)
    assert [(g.shape, g.dtype) for g in gradients] == [(x.shape, dtype) for x in (q, k, v)]


def test_results_share_no_memory():
    q, k, v = qkv(1)
    first, second = (flash_attn_func(x, k, v) for x in (q, 2 * q))
    before = mx.array(first)
    mx.eval(first, second, before)
    assert address(first) != address(second)
    second[:] = 0
    third = flash_attn_func(3 * q, k, v)
    mx.eval(second, third)
    assert equal(first, before)


def test_float64_on_the_cpu():
    with mx.stream(mx.cpu):
        q, k, v = (mx.array(np.random.default_rng(i).standard_normal((1, 5, 2, 4)), dtype=mx.float64) for i in range(3))
        expected = reference.forward(*(np.array(x) for x in (q, k, v)))
        for traced in (False, True):
            with mock.patch.object(MLX, "traced", (lambda self, arrays: True) if traced else MLX.traced):
                out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
                mx.eval(out, lse)
            assert out.dtype == lse.dtype == mx.float64
            assert np.abs(np.array(out) - expected.out).max() < 1e-14
            assert np.abs(np.array(lse) - expected.lse).max() < 1e-14


def test_arrays_of_no_elements():
    q, k, v = qkv(0, 3)
    assert flash_attn_func(q, k, v).shape == q.shape
    q, k, v = qkv(3, 0)
    out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
    assert not out.any().item() and (lse == -mx.inf).all().item()
    dq, dk = mx.grad(lambda q, k: flash_attn_func(q, k, v).sum(), argnums=(0, 1))(q, k)
    assert not dq.any().item() and dk.shape == k.shape


def test_lazy_inputs_and_views_are_read_where_they_are():
    packed = normal(B, 3, H, S, D)
    q, k, v = (packed[:, i].swapaxes(1, 2) for i in range(3))
    expected = flash_attn_func(*(mx.contiguous(x) for x in (q, k, v)), causal=True)
    with mock.patch.object(MLX, "contiguous", side_effect=AssertionError("copied")):
        assert equal(flash_attn_func(q, k, v, causal=True), expected)
        assert close(flash_attn_func(q[:, ::-1], k[:, ::-1], v[:, ::-1])[:, ::-1], flash_attn_func(q, k, v))


def test_backward_is_bitwise_reproducible():
    q, k, v = qkv(90)

    def gradients(deterministic):
        return mx.grad(lambda *x: (flash_attn_func(*x, deterministic=deterministic) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    first, second = gradients(True), gradients(True)
    assert all(equal(a, b) for a, b in zip(first, second))
    assert all(close(a, b, 1e-6) for a, b in zip(first, gradients(False)))


def test_evaluated_arrays_may_come_from_another_thread():
    q, k, v = qkv()
    mx.eval(q, k, v)
    expected, found = flash_attn_func(q, k, v), []
    mx.eval(expected)

    def work():
        out = flash_attn_func(q, k, v)
        mx.eval(out)
        found.append(out)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(equal(out, expected) for out in found)


# ---- dropout ------------------------------------------------------------------------------------------------------------


def mask_of(rng_state=None, length=40):
    q, k, v = (mx.ones((1, length, 2, 4)) for _ in range(3))
    _, _, signed = flash_attn_func(q, k, v, dropout_p=0.3, rng_state=rng_state, return_attn_probs=True)
    return signed > 0


def test_dropout_draws_from_mlx():
    mx.random.seed(5)
    first, second = mask_of(), mask_of()
    mx.random.seed(5)
    assert equal(first, mask_of()) and equal(second, mask_of())
    assert not equal(first, second)
    assert 0.65 < first.mean().item() < 0.75


def test_dropout_of_a_given_state():
    for state in ([11, 2], [0xFFFFFFFF, 7, 2, 0]):
        state = mx.array(state, dtype=mx.int64 if len(state) == 2 else mx.uint32)
        kept = [reference.kept(range(40), range(40), head, 0.3, np.array(state)) for head in range(2)]
        assert equal(mask_of(state), mx.array(np.stack(kept))[None])
    q, k, v = qkv()
    state = mx.array([11, 2], dtype=mx.int64)
    expected = flash_attn_func(q, k, v, dropout_p=0.3, rng_state=state)
    assert equal(expected, flash_attn_func(q, k, v, dropout_p=0.3, rng_state=state))
    loss = lambda q: flash_attn_func(q, k, v, dropout_p=0.3, rng_state=state).sum()  # noqa: E731
    # with its state given, a checkpoint draws the same mask again
    assert equal(mx.grad(mx.checkpoint(loss))(q), mx.grad(loss)(q))


def test_seeds_have_64_bits():
    mx.random.seed(0)
    words = np.concatenate([np.array(flash_attn.frameworks.mlx.FRAMEWORK.seed(None))[None] for _ in range(64)])
    assert words.dtype == np.uint32 and words.shape == (64, 4)
    assert not words[:, 2:].any()
    ones = np.unpackbits(np.ascontiguousarray(words[:, :2]).view(np.uint8).reshape(64, 8), axis=1).mean(axis=0)
    assert ones.shape == (64,) and ones.min() > 0.2 and ones.max() < 0.8


def test_dropout_under_compile():
    """With MLX's random state as input and output each call draws anew, and the same as eager calls; without, the seed is frozen."""
    q, k, v = (mx.ones((1, 16, 1, 4)) for _ in range(3))

    def attention():
        return flash_attn_func(q, k, v, dropout_p=0.5)

    mx.random.seed(3)
    eager = [attention() for _ in range(3)]
    mx.eval(eager)
    mx.random.seed(3)
    compiled = mx.compile(attention, inputs=mx.random.state, outputs=mx.random.state)
    assert all(close(compiled(), expected) for expected in eager)
    assert not equal(eager[0], eager[1])


# ---- caches -------------------------------------------------------------------------------------------------------------

CAPACITY, PAGE = 24, 4


def cache_call(kind, new):
    """(keywords of a call, fresh caches, a function from caches to what they hold of each sequence in order)."""
    lengths = [5, 9]
    shape, keywords, where = (B, CAPACITY, HK, D), {}, None
    if kind == "int":
        keywords, lengths = {"cache_seqlens": 7}, [7, 7]
    elif kind == "lengths":
        keywords = {"cache_seqlens": mx.array(lengths, dtype=mx.int32)}
    elif kind == "rows":
        where = [3, 1]
        shape = (5, CAPACITY, HK, D)
        keywords = {"cache_seqlens": mx.array(lengths, dtype=mx.int32), "cache_batch_idx": mx.array(where, dtype=mx.int32)}
    else:
        table = mx.array(np.random.default_rng(0).permutation(15)[:12].reshape(2, 6).astype(np.int32))
        shape, keywords = (15, PAGE, HK, D), {"cache_seqlens": mx.array(lengths, dtype=mx.int32), "block_table": table}

    def held(cache):
        if kind == "pages":
            return cache[keywords["block_table"]].reshape(B, -1, HK, D)
        return cache if where is None else cache[mx.array(where)]

    caches = normal(*shape), normal(*shape)
    mx.eval(caches)
    q, k, v = normal(B, new, H, D), normal(B, new, HK, D), normal(B, new, HK, D)
    return q, k, v, keywords, lengths, caches, held


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("kind", ["int", "lengths", "rows", "pages"])
def test_caches_are_updated_in_the_callers_own_objects(kind, new, traced):
    q, k, v, keywords, lengths, (k_cache, v_cache), held = cache_call(kind, new)
    before = np.array(held(k_cache)), np.array(held(v_cache))
    alias = k_cache
    with mock.patch.object(MLX, "traced", (lambda self, arrays: True) if traced else MLX.traced):
        out, lse = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, causal=True, return_softmax_lse=True, **keywords)
        mx.eval(out, lse)
    assert alias is k_cache
    for cache, old, added in ((k_cache, before[0], k), (v_cache, before[1], v)):
        for b, length in enumerate(lengths):
            old[b, length : length + new] = np.array(added[b])
        assert (np.array(held(cache)) == old).all()
    for b, length in enumerate(lengths):
        keys = slice(0, length + new)
        expected = reference.forward(np.array(q[b : b + 1]), before[0][b : b + 1, keys], before[1][b : b + 1, keys], causal=True)
        assert np.abs(np.array(out[b]) - expected.out[0]).max() < 1e-5
        assert np.abs(np.array(lse[b]) - expected.lse[0]).max() < 1e-5


@pytest.mark.parametrize("kind", ["int", "lengths", "rows", "pages"])
def test_appending_moves_no_more_than_the_new_tokens(kind):
    q, k, v, keywords, _, _, _ = cache_call(kind, 1)
    shape = {"rows": (6, 30000, HK, D), "pages": (20000, PAGE, HK, D)}.get(kind, (B, 30000, HK, D))
    k_cache, v_cache = mx.zeros(shape), mx.zeros(shape)
    mx.eval(k_cache, v_cache, q, k, v)
    places = address(k_cache), address(v_cache)
    mx.clear_cache()
    for _ in range(3):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(flash_attn_with_kvcache(q, k_cache, v_cache, k, v, causal=True, **keywords))
        assert mx.get_peak_memory() - before < k_cache.nbytes // 50
    assert (address(k_cache), address(v_cache)) == places
    assert (k_cache != 0).sum().item() == k.size


def test_a_cache_without_new_tokens_is_only_read():
    q, _, _, _, _, (k_cache, v_cache), _ = cache_call("int", 2)
    before = address(k_cache), np.array(k_cache)
    out = flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=mx.array([3, CAPACITY], dtype=mx.int32))
    expected = reference.with_kvcache(*(np.array(x) for x in (q, k_cache, v_cache)), cache_seqlens=np.array([3, CAPACITY]))
    assert np.abs(np.array(out) - expected.out).max() < 1e-5
    assert address(k_cache) == before[0] and (np.array(k_cache) == before[1]).all()
    assert equal(flash_attn_with_kvcache(q, k_cache, v_cache), flash_attn_func(q, k_cache, v_cache))


@pytest.mark.parametrize("style", [True, False], ids=["interleaved", "halves"])
@pytest.mark.parametrize("traced", [False, True])
def test_rotary(style, traced):
    q, k, v, keywords, _, (k_cache, v_cache), _ = cache_call("lengths", 3)
    angle = np.random.default_rng(0).uniform(0, 6, (CAPACITY + 3, D // 4)).astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    arrays = [np.array(x) for x in (q, k_cache, v_cache, k, v)]
    expected = reference.with_kvcache(
        *arrays, cos, sin, np.array(keywords["cache_seqlens"]), rotary_interleaved=style, causal=True
    )  # fmt: skip
    with mock.patch.object(MLX, "traced", (lambda self, arrays: True) if traced else MLX.traced):
        out = flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, mx.array(cos), mx.array(sin), rotary_interleaved=style, causal=True, **keywords
        )
        mx.eval(out, k_cache)
    assert np.abs(np.array(out) - expected.out).max() < 1e-5
    assert np.abs(np.array(k_cache) - expected.k_cache).max() < 1e-5


def test_a_failing_call_leaves_caches_alone():
    q, k, v, _, _, (k_cache, v_cache), _ = cache_call("int", 3)
    before, place = np.array(k_cache), address(k_cache)
    full = mx.array([1, CAPACITY - 2], dtype=mx.int32)
    for error, wrong in [
        (ValueError, {"cache_seqlens": full}),
        (ValueError, {"cache_seqlens": CAPACITY - 2}),
        (TypeError, {"cache_seqlens": 3, "v": v.astype(mx.int32)}),
        (ValueError, {"cache_seqlens": 3, "v": v.astype(mx.float16)}),
        (ValueError, {"cache_seqlens": 3, "v": v[:, :2]}),
        (ValueError, {"cache_seqlens": 3, "cache_batch_idx": mx.array([0, 5], dtype=mx.int32)}),
        (ValueError, {"cache_seqlens": 3, "cache_leftpad": mx.array([0, 9], dtype=mx.int32)}),
    ]:
        with pytest.raises(error, match=r"^\[flash_attn_with_kvcache\] \w+: expected"):
            flash_attn_with_kvcache(**{"q": q, "k_cache": k_cache, "v_cache": v_cache, "k": k, "v": v, **wrong})
    assert address(k_cache) == place and (np.array(k_cache) == before).all()


def test_a_cache_in_the_state_of_a_compiled_function():
    q, k, v, _, _, caches, _ = cache_call("int", 1)
    state = list(caches)
    expected = [mx.array(x) for x in caches]
    out = flash_attn_with_kvcache(q, *expected, k, v, cache_seqlens=7)

    def step(q, k, v):
        return flash_attn_with_kvcache(q, state[0], state[1], k, v, cache_seqlens=7)

    found = mx.compile(step, inputs=state, outputs=state)(q, k, v)
    assert close(found, out)
    assert equal(state[0], expected[0]) and equal(state[1], expected[1])


def test_update_paged_kv_cache():
    _, k, v, keywords, lengths, (k_cache, v_cache), held = cache_call("pages", 3)
    before, alias = np.array(held(k_cache)), v_cache
    found = update_paged_kv_cache(k_cache, v_cache, k, v, keywords["block_table"], keywords["cache_seqlens"])
    assert found.tolist() == [length + 3 for length in lengths] and alias is v_cache
    for b, length in enumerate(lengths):
        before[b, length : length + 3] = np.array(k[b])
    assert (np.array(held(k_cache)) == before).all()
    with pytest.raises(ValueError, match=r"^\[update_paged_kv_cache\] v_cache: expected"):
        update_paged_kv_cache(k_cache, v_cache[:, :, :1], k, v, keywords["block_table"], keywords["cache_seqlens"])
    assert (np.array(held(k_cache)) == before).all()


# ---- MLX's own name, and models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, "causal", "bool", "added", "added, one for all"])
@pytest.mark.parametrize("sinks", [False, True])
def test_scaled_dot_product_attention(mask, sinks):
    q, k, v = normal(B, H, S, D), normal(B, HK, 20, D), normal(B, HK, 20, D)
    if mask == "bool":
        mask = mx.random.uniform(shape=(S, 20)) > 0.3
    elif mask is not None and mask != "causal":
        mask = normal(B, 1, S, 20) if mask == "added" else normal(20)
    options = {"scale": 0.3, "mask": mask} | ({"sinks": normal(H)} if sinks else {})
    expected = mx.fast.scaled_dot_product_attention(q, k, v, **options)
    found = flash_attn.mlx.scaled_dot_product_attention(q, k, v, **options)
    assert found.dtype == expected.dtype and close(found, expected)
    assert close(flash_attn.mlx.scaled_dot_product_attention(q, k, v, stream=mx.cpu, **options), expected)
    mixed = flash_attn.mlx.scaled_dot_product_attention(q.astype(mx.float16), k, v, **options)
    assert mixed.dtype == mx.float32 and close(mixed, expected, 5e-3)


def test_the_adapter_copies_nothing():
    big = normal(B, HK, 256, D)  # a cache as mlx_lm has it: (b, hk, steps of 256, d), of which a slice is used
    q, k = normal(B, 1, H, D).transpose(0, 2, 1, 3), big[:, :, :77]
    mx.eval(q, k, big)
    expected = mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0)
    with mock.patch.object(MLX, "contiguous", side_effect=AssertionError("copied")):
        out = flash_attn.mlx.scaled_dot_product_attention(q, k, k, scale=1.0)
        mx.eval(out)
    assert close(out, expected)
    joined = out.transpose(0, 2, 1, 3).reshape(B, 1, -1)
    mx.eval(joined)
    assert address(out) == address(joined)


def test_install():
    theirs = mx.fast.scaled_dot_product_attention
    with flash_attn.mlx.install():
        assert mx.fast.scaled_dot_product_attention is flash_attn.mlx.scaled_dot_product_attention
        with flash_attn.mlx.install():
            pass
        assert mx.fast.scaled_dot_product_attention is flash_attn.mlx.scaled_dot_product_attention
    assert mx.fast.scaled_dot_product_attention is theirs
    try:
        flash_attn.mlx.install()
        assert mx.fast.scaled_dot_product_attention is not theirs
    finally:
        flash_attn.mlx.uninstall()
    assert mx.fast.scaled_dot_product_attention is theirs


def counted():
    """Our attention, counted: a model that does not reach it would pass every comparison."""
    return mock.patch.object(flash_attn.mlx, "flash_attn_func", wraps=flash_attn_func)


@pytest.mark.parametrize("masked", [False, True])
def test_layers_of_mlx_nn(masked):
    mx.random.seed(0)
    model = nn.TransformerEncoder(num_layers=2, dims=32, num_heads=4, mlp_dims=48)
    x, target = normal(2, 10, 32), normal(2, 10, 32)
    mask = nn.MultiHeadAttention.create_additive_causal_mask(10) if masked else None
    step = nn.value_and_grad(model, lambda x: ((model(x, mask) - target) ** 2).mean())
    expected, expected_gradients = step(x)
    with flash_attn.mlx.install(), counted() as ours:
        loss, gradients = step(x)
        mx.eval(loss, gradients)
    assert ours.call_count == 2
    assert close(loss, expected)
    flat, expected_flat = (dict(nn.utils.tree_flatten(tree)) for tree in (gradients, expected_gradients))
    assert all(close(flat[name], expected_flat[name], 1e-5) for name in expected_flat)


def llama():
    models = pytest.importorskip("mlx_lm.models.llama")
    mx.random.seed(0)
    arguments = models.ModelArgs(
        model_type="llama", hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
        rms_norm_eps=1e-5, vocab_size=97, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    model = models.Model(arguments)
    mx.eval(model.parameters())
    return model


def test_llama_logits_and_generation():
    model = llama()
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import KVCache, RotatingKVCache

    tokens = mx.array([[3, 14, 15, 92, 65, 35, 89, 79]])

    def generate(cache):
        return [int(token) for token, _ in generate_step(tokens[0], model, max_tokens=12, prompt_cache=[cache() for _ in range(2)])]

    kinds = (KVCache, lambda: RotatingKVCache(max_size=12, keep=2))
    expected, texts = model(tokens), [generate(cache) for cache in kinds]
    mx.eval(expected)
    with flash_attn.mlx.install(), counted() as ours:
        assert close(model(tokens), expected, 1e-5)
        assert ours.call_count == 2
        assert [generate(cache) for cache in kinds] == texts


@pytest.mark.parametrize("compiled", [False, True])
def test_llama_training(compiled):
    tokens = mx.random.randint(0, 97, (2, 9), key=mx.random.key(1))

    def losses(compiled):
        model, optimizer = llama(), optimizers.AdamW(learning_rate=1e-2)
        step_of = nn.value_and_grad(model, lambda x: nn.losses.cross_entropy(model(x[:, :-1]), x[:, 1:], reduction="mean"))

        def step(x):
            loss, gradients = step_of(x)
            optimizer.update(model, gradients)
            return loss

        state = [model.state, optimizer.state]
        run = mx.compile(step, inputs=state, outputs=state) if compiled else step
        found = []
        for _ in range(3):
            found.append(run(tokens))
            mx.eval(found, state)
        return mx.stack(found)

    expected = losses(False)
    with flash_attn.mlx.install(), counted() as ours:
        assert close(losses(compiled), expected, 1e-4)
        assert ours.call_count >= 2
    assert expected[2].item() < expected[0].item()


# ---- errors, names, examples --------------------------------------------------------------------------------------------


def test_mixed_frameworks_and_dtypes():
    q, k, v = qkv()
    with pytest.raises(TypeError, match=r"^\[flash_attn_func\] k: expected a MLX array like the others, found numpy.ndarray"):
        flash_attn_func(q, np.array(k), v)
    with pytest.raises(TypeError, match=r"^\[flash_attn_func\] q: expected .*found uint8"):
        flash_attn_func(*(x.astype(mx.uint8) for x in (q, k, v)))
    with pytest.raises(TypeError, match=r"^\[flash_attn_func\] q: expected .*found int32"):
        flash_attn_func(*(x.astype(mx.int32) for x in (q, k, v)))
    with pytest.raises(ValueError, match=r"^\[flash_attn_func\] k: expected dtype float32 as q, found float16"):
        flash_attn_func(q, k.astype(mx.float16), v)
    with pytest.raises(ValueError, match="must be 4D"):
        flash_attn_func(q[0], k, v)
    with pytest.raises(ValueError, match="Head dimensions must match"):
        flash_attn_func(q[..., :8], k, v)
    with pytest.raises(ValueError, match="divisible"):
        flash_attn_func(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match='mask: expected "causal"'):
        flash_attn.mlx.scaled_dot_product_attention(q, k, v, scale=1.0, mask="left")


@pytest.mark.parametrize(
    "transform", [lambda f: mx.grad(f), lambda f: mx.vmap(f), lambda f: mx.checkpoint(f)], ids=["grad", "vmap", "checkpoint"]
)
def test_errors_pass_through_transforms(transform):
    q, k, v = (x[None] for x in qkv())
    with pytest.raises(ValueError, match=r"^\[flash_attn_func\] window_size: expected"):
        transform(lambda q: flash_attn_func(q[0] if q.ndim == 5 else q, k[0], v[0], window_size=(-2, 0)).sum())(q)


def test_values_are_checked_when_they_can_be_had():
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in qkv())
    cu = mx.array([0, 5, 30], dtype=mx.int32)
    with pytest.raises(ValueError, match=r"^\[flash_attn_varlen_func\] cu_seqlens_q: expected"):
        mx.grad(lambda q: flash_attn_varlen_func(q, k, v, cu, cu, 30, 30).sum())(q)


def test_names_of_the_mlx_package():
    import flash_attn.flash_attn_mlx as package

    assert all(getattr(package, name) is getattr(flash_attn, name) for name in package.__all__ if name.startswith("flash_attn_"))
    assert is_mlx_available() and check_mlx_requirements()[0]
    with mock.patch("importlib.metadata.version", return_value="0.28.0"):
        assert not is_mlx_available() and "0.29" in check_mlx_requirements()[1]
    assert get_device_info()["mlx_available"]


EXAMPLES = sorted((Path(__file__).parent.parent / "examples" / "mlx").glob("*.py"))


def test_there_are_six_examples():
    names = "basic_attention gqa_attention kv_cache_inference packed_variants sliding_window_attention training_with_gradients"
    assert [path.stem for path in EXAMPLES] == names.split()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    result = subprocess.run([sys.executable, "-B", path], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "checked: " in result.stdout


def test_an_example_that_is_wrong_fails():
    """A checked program is worth what its check finds."""
    spoiled = "import runpy, mlx.core as mx, flash_attn as f; g = f.flash_attn_func\n"
    spoiled += "f.flash_attn_func = lambda *a, **o: g(*a, **o) + 0.01\n"
    spoiled += "import sys; sys.path.insert(0, sys.argv[1].rpartition('/')[0]); runpy.run_path(sys.argv[1], run_name='__main__')"
    path = next(path for path in EXAMPLES if path.stem == "gqa_attention")
    result = subprocess.run([sys.executable, "-B", "-c", spoiled, path], capture_output=True, text=True, timeout=200)
    assert result.returncode != 0 and "WRONG" in result.stderr
