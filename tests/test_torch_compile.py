"""torch.compile, torch.export and make_fx: one graph, the same numbers as eager mode, checks while tracing."""

from __future__ import annotations

import functools

import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from flash_attn import flash_attn_func, flash_attn_interface, flash_attn_varlen_func, flash_attn_with_kvcache  # noqa: E402


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arrays(*shape, count=3, grad=True):
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(*shape, generator=generator).requires_grad_(grad) for _ in range(count)]


def with_gradients(function, *leaves):
    out = function(*leaves)
    return out, *torch.autograd.grad(out.sin().sum(), leaves)


def same(compiled, function, *leaves):
    for a, b in zip(with_gradients(compiled, *leaves), with_gradients(function, *leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def attention(q, k, v):
    return flash_attn_func(q * 2, k, v, causal=True, window_size=(5, 0), softcap=3.0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_one_graph(backend):
    compiled = torch.compile(attention, backend=backend, fullgraph=True)
    same(compiled, attention, *arrays(2, 9, 2, 8))


def test_dynamic_shapes_compile_once():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, backend=counter, fullgraph=True, dynamic=True)
    attention(*arrays(2, 9, 2, 8))
    counts = []
    for rows in (9, 12, 31):
        same(compiled, attention, *arrays(2, rows, 2, 8))
        counts.append(counter.frame_count)
    assert counts[0] == counts[2], counts


def test_varlen_with_lengths_that_change():
    def packed(q, k, v, cu, longest: int):
        return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, causal=True)

    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True, dynamic=True)
    for lengths in ((4, 6), (1, 9), (3, 8)):
        cu = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32)
        ours, theirs = (functools.partial(_with_lengths, function, cu, max(lengths)) for function in (compiled, packed))
        same(ours, theirs, *arrays(sum(lengths), 2, 8))


def _with_lengths(function, cu, longest, q, k, v):
    return function(q, k, v, cu, longest)


@pytest.mark.parametrize("rows, keys", [(0, 5), (5, 0)])
def test_nothing_to_do(rows, keys):
    leaves = [*arrays(2, rows, 2, 8, count=1), *arrays(2, keys, 2, 8, count=2)]
    same(torch.compile(flash_attn_func, backend="aot_eager", fullgraph=True), flash_attn_func, *leaves)


def test_sink_bias_and_lse():
    def function(q, k, v, bias, sink):
        out, lse, _ = flash_attn_func(q, k, v, attn_bias=bias, learnable_sink=sink, return_attn_probs=True)
        return out * lse.transpose(1, 2)[..., None]

    leaves = [*arrays(2, 7, 2, 8), *arrays(2, 7, 7, count=1), *arrays(2, count=1)]
    same(torch.compile(function, backend="aot_eager", fullgraph=True), function, *leaves)


def test_dropout_draws_from_torchs_generator():
    def function(q, k, v):
        return flash_attn_func(q, k, v, dropout_p=0.5)

    q, k, v = arrays(1, 40, 2, 8, grad=False)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = []
    for call in (function, compiled, compiled):
        torch.manual_seed(3)
        results.append((call(q, k, v), call(q, k, v)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[1][1], results[2][1])
    assert not torch.equal(*results[1])


def test_autocast_in_the_graph():
    def function(q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            return flash_attn_func(q, k, v)

    q, k, v = arrays(1, 9, 2, 8, grad=False)
    out = torch.compile(function, backend="aot_eager", fullgraph=True)(q, k, v)
    assert out.dtype == torch.bfloat16 and torch.equal(out, function(q, k, v))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_caches_are_written_in_place(backend):
    def step(q, k, v, k_cache, v_cache, lengths):
        return flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=lengths, causal=True)

    q, k, v = arrays(2, 2, 2, 8, grad=False)
    lengths = torch.tensor([3, 0], dtype=torch.int32)
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    caches = [[x.clone() for x in arrays(2, 12, 2, 8, count=2, grad=False)] for _ in range(2)]
    outs = [call(q, k, v, *pair, lengths) for call, pair in zip((step, compiled), caches)]
    for a, b in zip((outs[0], *caches[0]), (outs[1], *caches[1]), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(caches[1][0][0, 3:5], k[0])


def test_private_functions():
    def function(q, k, v, dout):
        mask = (0.0, 8**-0.5, True, -1, -1, 0.0, None)
        out, lse, _, state = flash_attn_interface._flash_attn_forward(q, k, v, *mask, False)
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        flash_attn_interface._flash_attn_backward(dout, q, k, v, out, lse, *gradients, *mask, False, state)
        return out, *gradients

    given = arrays(2, 9, 2, 8, count=4, grad=False)
    for a, b in zip(torch.compile(function, backend="aot_eager", fullgraph=True)(*given), function(*given), strict=True):
        torch.testing.assert_close(a, b)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).unbind(2)
        return flash_attn_func(q, k, v, causal=True).flatten(2)


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    block, x = Block(), torch.randn(2, 9, 16)
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(block, (x,), dynamic_shapes={"x": {1: rows}}, strict=strict)
    assert any("flash_attn.forward" in str(node.target) for node in program.graph.nodes)
    for length in (9, 23):
        x = torch.randn(2, length, 16)
        torch.testing.assert_close(program.module()(x), block(x))


CALLS = {
    "grad": lambda q, k, v: torch.func.grad(lambda q: flash_attn_func(q, k, v, causal=True).sin().sum())(q),
    "jvp": lambda q, k, v: torch.func.jvp(lambda q: flash_attn_func(q, k, v, causal=True), (q,), (k,))[1],
    "vmap": lambda q, k, v: torch.vmap(lambda q, k: flash_attn_func(q, k, v, causal=True))(q[:, None], k[:, None]),
    "vmap of grad": lambda q, k, v: torch.vmap(torch.func.grad(lambda q: flash_attn_func(q[None], k, v).sin().sum()))(q),
}


@pytest.mark.parametrize("function", CALLS.values(), ids=CALLS)
def test_torch_func_inside(function):
    q, k, v = arrays(1, 9, 2, 8, grad=False)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    expected = function(q, k, v)
    torch.testing.assert_close(compiled(q, k, v), expected)
    assert expected.abs().max() > 0.1
    with pytest.raises(Exception, match=r"\[flash_attn_func\] v: expected"):
        compiled(q, k, v[:, :5])


REFUSED = {
    "a cache": (lambda q, k, v: with_cache(q[:, :1], k, v), "writes into its caches: expected a call outside"),
    "private": (
        lambda q, k, v: flash_attn_interface._flash_attn_forward(q, k, v, 0.0, 0.5, True, -1, -1, 0.0, None, False)[0],
        "has no derivatives: expected a call outside",
    ),
}


@pytest.mark.parametrize("function, message", REFUSED.values(), ids=REFUSED)
def test_torch_func_inside_is_refused(function, message):
    q, k, v = arrays(1, 9, 2, 8, grad=False)
    for call in (
        lambda q: torch.func.jvp(lambda q: function(q, k, v), (q,), (q,))[1],
        lambda q: torch.func.grad(lambda q: function(q, k, v).sum())(q),
    ):
        with pytest.raises(Exception, match=message):
            torch.compile(call, backend="aot_eager", fullgraph=True)(q)


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_a_compiled_function_outlives_torch_func(transform):
    q, k, v = (x[None] for x in arrays(1, 9, 2, 8))
    compiled = torch.compile(lambda q, k, v: flash_attn_func(q, k, v, causal=True), backend="aot_eager")
    if transform == "vmap":
        torch.testing.assert_close(torch.vmap(compiled)(q, k, v)[0], flash_attn_func(q[0], k[0], v[0], causal=True))
    else:
        torch.func.grad(lambda q: compiled(q, k[0], v[0]).sum())(q[0].detach())
    same(compiled, lambda q, k, v: flash_attn_func(q, k, v, causal=True), q[0], k[0], v[0])


def test_the_longest_sequence_is_found_while_it_runs():
    def packed(q, cu):
        longest = int((cu[1:] - cu[:-1]).max())
        return flash_attn_varlen_func(q, q, q, cu, cu, longest, longest, causal=True)

    (q,) = arrays(9, 2, 8, count=1)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
        for lengths in ([0, 4, 9], [0, 1, 9]):
            cu = torch.tensor(lengths, dtype=torch.int32)
            same(lambda q, cu=cu: compiled(q, cu), lambda q, cu=cu: packed(q, cu), q)


def test_upstreams_autograd_classes():
    def function(q, k, v):
        return flash_attn_interface.FlashAttnFunc.apply(q, k, v, 0.0, None, True, (-1, -1), 0.0, None, False, False)

    same(torch.compile(function, backend="aot_eager", fullgraph=True), function, *arrays(2, 9, 2, 8))


def test_make_fx_sees_an_operator():
    q, k, v = arrays(1, 9, 2, 8, grad=False)
    graph = make_fx(lambda q, k, v: flash_attn_func(q, k, v))(q, k, v)
    assert torch.equal(graph(k, v, q), flash_attn_func(k, v, q))


def test_checks_happen_while_tracing():
    ran = []

    def backend(graph, inputs):
        ran.append(graph)
        return graph

    q, k, v = arrays(2, 9, 2, 8, grad=False)
    with pytest.raises(Exception, match=r"\[flash_attn_func\] k: expected a head count"):
        torch.compile(lambda q, k, v: flash_attn_func(q, k, v), backend=backend, fullgraph=True)(q, k[:, :, :1].expand(2, 9, 3, 8), v)
    assert not ran


def with_cache(q, k_cache, v_cache):
    return flash_attn_with_kvcache(q, k_cache, v_cache, q, q, cache_seqlens=3)


@pytest.mark.parametrize(
    "function, change, message",
    [
        (flash_attn_func, {1: lambda k: k.half()}, r"\[flash_attn_func\] k: expected dtype float32 as q, found float16"),
        (flash_attn_func, {2: lambda v: v.to("meta")}, r"\[flash_attn_func\] v: expected an array on the device of q, cpu, found meta"),
        (
            flash_attn_func,
            {1: lambda k: k.numpy()},
            r"\[flash_attn_func\] k: expected a PyTorch array like the others, found numpy.ndarray",
        ),
        (flash_attn_func, {3: lambda _: 1.5}, r"\[flash_attn_func\] dropout_p: expected .* found 1.5"),
        (with_cache, {1: lambda k: k.clone().requires_grad_()}, r"k_cache: expected a cache that does not require grad"),
        (with_cache, {2: lambda v: v[:, :2]}, r"\[flash_attn_with_kvcache\] v_cache: expected"),
    ],
    ids=["dtype", "device", "numpy", "dropout", "requires grad", "shape"],
)
def test_one_clear_message_while_tracing(function, change, message):
    given = [*arrays(2, 9, 2, 8, grad=False), 0.0] if function is flash_attn_func else arrays(2, 9, 2, 8, grad=False)
    given = [change.get(i, lambda x: x)(x) for i, x in enumerate(given)]
    with pytest.raises(Exception, match=message):
        torch.compile(lambda *given: function(*given), backend="aot_eager", fullgraph=True)(*given)


def test_slopes_that_require_grad():
    q, k, v = arrays(2, 9, 2, 8)
    slopes = torch.tensor([0.3, 0.1], requires_grad=True)
    compiled = torch.compile(lambda q: flash_attn_func(q, k, v, alibi_slopes=slopes), backend="aot_eager", fullgraph=True)
    same(compiled, lambda q: flash_attn_func(q, k, v, alibi_slopes=slopes), q)
    assert slopes.grad is None


def test_private_functions_under_autocast():
    q, k, v = arrays(1, 9, 2, 8, grad=False)

    def function(q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            return flash_attn_interface._flash_attn_forward(q, k, v, 0.0, 8**-0.5, True, -1, -1, 0.0, None, False)[0]

    assert torch.equal(torch.compile(function, backend="aot_eager", fullgraph=True)(q, k, v), function(q, k, v))


def test_values_are_checked_when_it_runs():
    q, k, v = arrays(9, 2, 8, grad=False)
    compiled = torch.compile(lambda q, cu: flash_attn_varlen_func(q, k, v, cu, cu, 9, 9), backend="aot_eager", fullgraph=True)
    compiled(q, torch.tensor([0, 4, 9], dtype=torch.int32))
    with pytest.raises(ValueError, match="cu_seqlens"):
        compiled(q, torch.tensor([0, 4, 90], dtype=torch.int32))
