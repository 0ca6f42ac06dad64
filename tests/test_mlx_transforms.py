"""Every transform of MLX over flash_attn_func, against the same transform of plain MLX operations."""

from unittest import mock

import numpy as np
import pytest

import reference

mx = pytest.importorskip("mlx.core")
import flash_attn.mlx  # noqa: E402
from flash_attn import flash_attn_func, flash_attn_varlen_func, formula  # noqa: E402
from flash_attn.frameworks.mlx import MLX  # noqa: E402

B, ROWS, KEYS, HEADS, KV_HEADS, DIM = 2, 13, 18, 4, 2, 8
RNG = [0x1234567, 3]

FEATURES = {
    "causal": {"causal": True},
    "score": {"window_size": (6, 2), "softcap": 1.5, "alibi_slopes": (HEADS,)},
    "arrays": {"attn_bias": (1, HEADS, 1, KEYS), "learnable_sink": (HEADS,), "dropout_p": 0.25},
}


def normal(*shape):
    return mx.random.normal(shape)


class Problem:
    """Inputs, and attention as a function of those through which gradients flow: ours, and in plain operations."""

    def __init__(self, features: str):
        mx.random.seed(1)
        options = dict(FEATURES[features])
        self.inputs = [normal(B, ROWS, HEADS, DIM), normal(B, KEYS, KV_HEADS, DIM), normal(B, KEYS, KV_HEADS, DIM)]
        self.names = [name for name in ("attn_bias", "learnable_sink") if name in options]
        self.inputs += [normal(*options.pop(name)) for name in self.names]
        if "alibi_slopes" in options:
            options["alibi_slopes"] = mx.abs(normal(*options["alibi_slopes"])) * 0.2
        if "dropout_p" in options:
            options["rng_state"] = mx.array(RNG, dtype=mx.int64)
        self.options = options
        self.weights = normal(B, ROWS, HEADS, DIM), normal(B, HEADS, ROWS)
        self.tangents = [normal(*x.shape) for x in self.inputs]
        mx.eval(self.inputs, self.weights, self.tangents)  # or compiled functions would draw what they capture

    def ours(self, q, k, v, *others):
        return flash_attn_func(q, k, v, return_attn_probs=True, **self.options, **dict(zip(self.names, others)))[:2]

    def plain(self, q, k, v, *others):
        return plain(q, k, v, **self.options, **dict(zip(self.names, others)))

    def loss(self, attention):
        """A function of all inputs to a number that is not linear in them, through out and lse."""

        def function(*inputs):
            out, lse = attention(*inputs)
            return (mx.sin(out) * self.weights[0]).sum() + (mx.sin(lse) * self.weights[1]).sum()

        return function

    def argnums(self):
        return tuple(range(len(self.inputs)))


def plain(
    q, k, v, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, attn_bias=None, learnable_sink=None, dropout_p=0.0,
    rng_state=None,
):  # fmt: skip
    """(out, lse) in operations that MLX differentiates itself."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.swapaxes(1, 2) for x in (q, mx.repeat(k, group, axis=2), mx.repeat(v, group, axis=2)))
    scores = q.shape[-1] ** -0.5 * (q @ k.swapaxes(-1, -2))
    if softcap:
        scores = softcap * mx.tanh(scores / softcap)
    distance = mx.arange(scores.shape[-1])[None] - (mx.arange(scores.shape[-2])[:, None] + scores.shape[-1] - scores.shape[-2])
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * mx.abs(distance)
    if attn_bias is not None:
        scores = scores + attn_bias
    left, right = window_size
    hidden = (distance > (0 if causal else right)) if causal or right >= 0 else distance != distance
    hidden = hidden | (distance < -left) if left >= 0 else hidden
    scores = mx.where(hidden, -1e30, scores)
    if learnable_sink is not None:
        sink = mx.broadcast_to(learnable_sink[:, None, None], (*scores.shape[:-1], 1))
        scores = mx.concatenate([scores, sink], axis=-1)
    lse = mx.logsumexp(scores, axis=-1)
    weights = mx.exp(scores - lse[..., None])[..., : k.shape[2]]
    if dropout_p:
        streams = [reference.kept(range(weights.shape[2]), range(weights.shape[3]), s, dropout_p, RNG) for s in range(B * HEADS)]
        kept = mx.array(np.stack(streams).reshape(B, HEADS, *streams[0].shape))
        weights = mx.where(kept, weights / (1 - dropout_p), 0)
    return (weights @ v).swapaxes(1, 2), lse


def arrays_of(tree):
    return [tree] if isinstance(tree, mx.array) else [x for part in tree for x in arrays_of(part)]


def check(found, expected, tolerance=2e-6):
    found, expected = arrays_of(found), arrays_of(expected)
    mx.eval(found, expected)
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected)):
        assert a.shape == b.shape and a.dtype == b.dtype, f"result {i}: {a.shape} {a.dtype}, expected {b.shape} {b.dtype}"
        error = mx.abs(a - b).max().item()
        assert error <= tolerance * max(1.0, mx.abs(b).max().item()), f"result {i}: error {error:.2e}"


@pytest.fixture(params=FEATURES)
def problem(request):
    return Problem(request.param)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """The plain formula goes through several blocks."""
    monkeypatch.setattr(formula, "BLOCK_SCORES", 1000)
    monkeypatch.setattr(formula, "MIN_BLOCK_ROWS", 4)


def forced():
    """As inside a compiled function, but without MLX's compiler, which calls g++ for every new kernel."""
    return mock.patch.object(MLX, "traced", lambda self, arrays: True)


# ---- derivatives ------------------------------------------------------------------------------------------------------


def test_forward(problem):
    check(problem.ours(*problem.inputs), problem.plain(*problem.inputs))


@pytest.mark.parametrize("outputs", ["out", "lse", "both"])
def test_vjp(problem, outputs):
    which = {"out": slice(0, 1), "lse": slice(1, 2), "both": slice(0, 2)}[outputs]

    def gradients(attention):
        return mx.vjp(lambda *inputs: attention(*inputs)[which], problem.inputs, problem.weights[which])[1]

    expected = gradients(problem.plain)
    check(gradients(problem.ours), expected)
    with forced():
        check(gradients(problem.ours), expected)


def test_value_and_grad_of_a_broadcast_cotangent(problem):
    def value_and_grad(attention):
        return mx.value_and_grad(lambda *inputs: attention(*inputs)[0].sum(), argnums=problem.argnums())(*problem.inputs)

    check(value_and_grad(problem.ours), value_and_grad(problem.plain))


def test_checkpoint(problem):
    def gradients(attention):
        def loss(*inputs):
            out, lse = attention(*inputs)
            return (out**2).sum() + lse.sum()

        return mx.grad(loss, argnums=problem.argnums())(*problem.inputs)

    check(gradients(lambda *inputs: mx.checkpoint(problem.ours)(*inputs)), gradients(problem.plain))


def second(problem, attention):
    def slope(*inputs):
        return sum((x**2).sum() for x in mx.grad(problem.loss(attention), argnums=problem.argnums())(*inputs))

    return mx.grad(slope, argnums=problem.argnums())(*problem.inputs)


def test_second_order(problem):
    expected = second(problem, problem.plain)
    check(second(problem, problem.ours), expected, 1e-5)
    with forced():
        check(second(problem, problem.ours), expected, 1e-5)


def test_third_order():
    problem = Problem("score")
    q, k, v = problem.inputs

    def along(attention):
        def f(t):
            out, lse = attention(q * t, k, v)
            return (mx.sin(out) * problem.weights[0]).sum() + lse.sum()

        return mx.grad(mx.grad(mx.grad(f)))(mx.array(0.7))

    check(along(problem.ours), along(problem.plain), 1e-5)


def forward_mode(function, inputs, tangents):
    """J t of a function MLX may have no forward rule for: the transpose of its transpose."""
    outputs = function(*inputs)
    zeros = [mx.zeros_like(x) for x in outputs]
    return mx.vjp(lambda *u: mx.vjp(function, inputs, list(u))[1], zeros, tangents)[1]


def test_jvp(problem):
    expected = forward_mode(problem.plain, problem.inputs, problem.tangents)
    check(mx.jvp(lambda *inputs: list(problem.ours(*inputs)), problem.inputs, problem.tangents)[1], expected)
    q, *others = problem.inputs
    expected = forward_mode(lambda q: problem.plain(q, *others), [q], problem.tangents[:1])
    check(mx.jvp(lambda q: list(problem.ours(q, *others)), [q], problem.tangents[:1])[1], expected)


def test_jvp_of_grad(problem):
    def gradient(attention):
        return lambda *inputs: list(mx.grad(problem.loss(attention), argnums=problem.argnums())(*inputs))

    expected = forward_mode(gradient(problem.plain), problem.inputs, problem.tangents)
    check(mx.jvp(gradient(problem.ours), problem.inputs, problem.tangents)[1], expected, 1e-5)


def test_two_layers_with_options_of_their_own():
    def model(attention):
        def loss(q, k, v):
            first = attention(q, k, v, causal=True)[0]
            return (attention(first, k, v, softcap=0.7, window_size=(3, 3))[0] ** 2).sum()

        return mx.grad(loss, argnums=(0, 1, 2))

    inputs = Problem("causal").inputs
    check(model(lambda *x, **options: flash_attn_func(*x, return_attn_probs=True, **options))(*inputs), model(plain)(*inputs))


# ---- vmap -------------------------------------------------------------------------------------------------------------

N = 3
AXES = {"all": (0, 0, 0), "some": (0, 2, None), "only v": (None, None, 1)}


def mapped_inputs(problem, axes):
    mx.random.seed(7)
    inputs = [x if axis is None else mx.stack([normal(*x.shape) for _ in range(N)], axis) for x, axis in zip(problem.inputs, axes)]
    return inputs, [[x if axis is None else mx.take(x, n, axis) for x, axis in zip(inputs, axes)] for n in range(N)]


def stacked(function, entries):
    results = [arrays_of(function(*entry)) for entry in entries]
    return [mx.stack(parts) for parts in zip(*results)]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("features", ["causal", "score"])
def test_vmap(features, axes):
    problem, axes = Problem(features), AXES[axes]
    inputs, entries = mapped_inputs(problem, axes)
    check(mx.vmap(problem.ours, in_axes=axes)(*inputs), stacked(problem.plain, entries))

    def gradient(attention):
        return mx.grad(problem.loss(attention), argnums=(0, 1, 2))

    check(mx.vmap(gradient(problem.ours), in_axes=axes)(*inputs), stacked(gradient(problem.plain), entries))

    def total(attention):
        return lambda *inputs: sum((x**2).sum() for x in attention(*inputs))

    def plain_map(*inputs):
        return stacked(problem.plain, [[x if axis is None else mx.take(x, n, axis) for x, axis in zip(inputs, axes)] for n in range(N)])

    found = mx.grad(total(mx.vmap(problem.ours, in_axes=axes)), argnums=(0, 1, 2))(*inputs)
    check(found, mx.grad(total(plain_map), argnums=(0, 1, 2))(*inputs))


def test_vmap_of_vmap():
    problem = Problem("causal")
    q, k, v = problem.inputs
    qs = normal(2, N, *q.shape)
    found = mx.vmap(mx.vmap(problem.ours, in_axes=(0, None, None)), in_axes=(0, None, None))(qs, k, v)
    expected = [mx.stack([mx.stack([problem.plain(qs[a, b], k, v)[i] for b in range(N)]) for a in range(2)]) for i in range(2)]
    check(found, expected)


@pytest.mark.parametrize("bias, sink", [(0, None), (None, 0), (None, None), (0, 0), (1, None)])
def test_vmap_of_bias_and_sink(bias, sink):
    problem = Problem("arrays")
    del problem.options["dropout_p"]
    axes = (0, 1, None, bias, sink)
    inputs, entries = mapped_inputs(problem, axes)
    check(mx.vmap(problem.ours, in_axes=axes)(*inputs), stacked(problem.plain, entries))

    def gradient(attention):
        return mx.grad(problem.loss(attention), argnums=problem.argnums())

    check(mx.vmap(gradient(problem.ours), in_axes=axes)(*inputs), stacked(gradient(problem.plain), entries))


@pytest.mark.parametrize("shape", [(B, HEADS, ROWS, KEYS), (ROWS, KEYS), (B, 1, 1, KEYS)], ids=str)
@pytest.mark.parametrize("axis", [0, None])
def test_vmap_of_biases_of_every_shape(shape, axis):
    problem = Problem("causal")
    problem.names = ["attn_bias"]
    problem.inputs.append(normal(*shape))
    axes = (0, 0, 0, axis)
    inputs, entries = mapped_inputs(problem, axes)
    check(mx.vmap(problem.ours, in_axes=axes)(*inputs), stacked(problem.plain, entries))

    def gradient(attention):
        return mx.grad(problem.loss(attention), argnums=(0, 3))

    check(mx.vmap(gradient(problem.ours), in_axes=axes)(*inputs), stacked(gradient(problem.plain), entries))


def test_vmap_of_slopes_and_lengths():
    q, k, v = Problem("causal").inputs
    slopes, lengths = mx.abs(normal(N, HEADS)), mx.array([[3, 18], [0, 7], [18, 18]], dtype=mx.int32)

    def attention(q, slopes, lengths):
        return flash_attn_func(q, k, v, alibi_slopes=slopes, seqused_k=lengths, causal=True)

    qs = normal(N, *q.shape)
    found = mx.vmap(attention)(qs, slopes, lengths)
    check(found, mx.stack([attention(qs[n], slopes[n], lengths[n]) for n in range(N)]))
    found = mx.vmap(attention, in_axes=(0, None, None))(qs, slopes[0], lengths[0])
    check(found, mx.stack([attention(qs[n], slopes[0], lengths[0]) for n in range(N)]))


def test_vmap_of_packed_sequences():
    cu = mx.array([0, 5, 13], dtype=mx.int32)
    q, k, v = (normal(N, 13, HEADS, DIM) for _ in range(3))

    def attention(q, k, v):
        return flash_attn_varlen_func(q, k, v, cu, cu, 8, 8, causal=True)

    check(mx.vmap(attention)(q, k, v), mx.stack([attention(q[n], k[n], v[n]) for n in range(N)]))

    def gradient(q, k, v):
        return mx.grad(lambda *x: (attention(*x) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    check(mx.vmap(gradient)(q, k, v), stacked(gradient, [(q[n], k[n], v[n]) for n in range(N)]))


def test_vmap_of_dropout_is_dropout_of_the_folded_batch():
    qs, ks, vs = (normal(N, B, ROWS, HEADS, DIM) for _ in range(3))
    options = {"dropout_p": 0.4, "rng_state": mx.array(RNG, dtype=mx.int64), "attn_bias": normal(ROWS, ROWS)}

    def attention(q, k, v):
        return flash_attn_func(q, k, v, **options)

    def folded(*inputs):
        return attention(*(x.reshape(N * B, *x.shape[2:]) for x in inputs)).reshape(qs.shape)

    check(mx.vmap(attention)(qs, ks, vs), folded(qs, ks, vs))
    weights = normal(*qs.shape)
    expected = mx.grad(lambda *x: (folded(*x) * weights).sum(), argnums=(0, 1, 2))(qs, ks, vs)

    def gradient(q, k, v, w):
        return mx.grad(lambda *x: (attention(*x) * w).sum(), argnums=(0, 1, 2))(q, k, v)

    check(mx.vmap(gradient)(qs, ks, vs, weights), expected)
    # many cotangents of one forward call: the mask is that of the forward
    _, (dq,) = mx.vjp(lambda q: attention(q, ks[0], vs[0]), [qs[0]], [weights[1]])
    found = mx.vmap(lambda w: mx.vjp(lambda q: attention(q, ks[0], vs[0]), [qs[0]], [w])[1][0])(weights)
    check(found[1], dq)


# ---- compile and export ------------------------------------------------------------------------------------------------


def test_compile():
    problem = Problem("causal")
    step = mx.compile(mx.value_and_grad(problem.loss(problem.ours), argnums=problem.argnums()))
    expected = mx.value_and_grad(problem.loss(problem.plain), argnums=problem.argnums())(*problem.inputs)
    check(step(*problem.inputs), expected)
    check(step(*problem.inputs), expected)
    check(mx.grad(mx.compile(problem.loss(problem.ours)), argnums=problem.argnums())(*problem.inputs), expected[1])


def test_compile_of_vmap():
    problem = Problem("causal")
    inputs, entries = mapped_inputs(problem, (0, 0, None))
    found = mx.compile(mx.vmap(lambda *x: problem.ours(*x)[0], in_axes=(0, 0, None)))(*inputs)
    check(found, stacked(lambda *x: problem.plain(*x)[0], entries))


def test_compile_of_jvp():
    problem = Problem("causal")
    found = mx.compile(lambda *x: mx.jvp(lambda *y: list(problem.ours(*y)), list(x), problem.tangents)[1])(*problem.inputs)
    check(found, forward_mode(problem.plain, problem.inputs, problem.tangents))


def test_memory_inside_a_compiled_function_is_that_of_a_block(monkeypatch):
    q, k, v = (normal(1, 1024, 4, 16) for _ in range(3))
    mx.eval(q, k, v)
    monkeypatch.setattr(formula, "BLOCK_SCORES", 1 << 17)
    whole = 4 * 1024 * 1024 * 4  # bytes of the scores
    with forced():
        gradients = mx.grad(lambda *x: flash_attn_func(*x).sum(), argnums=(0, 1, 2))(q, k, v)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(gradients)
    assert mx.get_peak_memory() - before < whole


def test_export(tmp_path):
    problem = Problem("causal")
    path = str(tmp_path / "attention.mlxfn")
    expected = problem.plain(*problem.inputs)[0]
    mx.export_function(path, lambda *x: flash_attn.mlx.inference(*x, causal=True), *problem.inputs)
    check(mx.import_function(path)(*problem.inputs)[0], expected)
    with flash_attn.mlx.install(), flash_attn.mlx.without_gradients():  # a model that calls MLX's name

        def model(q, k, v):
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=DIM**-0.5, mask="causal").swapaxes(1, 2)

        mx.export_function(path, model, *problem.inputs)
    check(mx.import_function(path)(*problem.inputs)[0], expected)


def test_an_error_inside_a_trace_is_ours():
    q, k, v = Problem("causal").inputs
    with pytest.raises(ValueError, match=r"\[flash_attn_func\] k: expected .*divisible"):
        mx.compile(lambda q, k, v: flash_attn_func(q, k, v))(q[:, :, :3], k, v)
