"""PyTorch in eager mode: autograd, torch.func, autocast, checkpoint, seeds, caches, devices, modules; and what is refused."""

from __future__ import annotations

import copy
import io
import itertools
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import flash_attn  # noqa: E402
from flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache, torch_ops  # noqa: E402
from flash_attn.call import Options, Role  # noqa: E402
from flash_attn.engine import FORWARD_ROLES  # noqa: E402


def arrays(*shape, count=3, dtype=torch.float64, grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_(grad) for _ in range(count)]


def plain(q, k, v, causal=True):
    scores = torch.einsum("...ihd,...jhd->...hij", q, k) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + scores.shape[-1] - scores.shape[-2])
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.einsum("...hij,...jhd->...ihd", scores.softmax(-1), v)


def close(found, expected, tolerance=1e-11):
    for a, b in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# ---- autograd ----------------------------------------------------------------------------------------------------------

FEATURES = {
    "plain": {},
    "causal, softcap": {"causal": True, "softcap": 2.0},
    "window, alibi": {"window_size": (2, 1), "alibi_slopes": torch.tensor([0.3, 0.1])},
    "dropout": {"dropout_p": 0.3, "rng_state": torch.tensor([7, 1])},
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_gradients_of_both_orders(features):
    leaves = arrays(1, 4, 2, 3, grad=True)

    def function(q, k, v):
        out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True, **features)
        return out, lse

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_second_order_of_a_call_that_returns_no_lse():
    leaves = arrays(1, 4, 2, 3, grad=True)
    assert torch.autograd.gradgradcheck(lambda q, k, v: flash_attn_func(q, k, v, causal=True, softcap=2.0), leaves)


def test_gradients_of_bias_and_sink_of_both_orders():
    leaves = [*arrays(1, 3, 2, 3, grad=True), torch.randn(1, 2, 3, 3, dtype=torch.float64).requires_grad_()]
    leaves.append(torch.randn(2, dtype=torch.float64).requires_grad_())

    def function(q, k, v, bias, sink):
        return flash_attn_func(q, k, v, attn_bias=bias, learnable_sink=sink, return_attn_probs=True)[:2]

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_third_order():
    q, k, v = arrays(1, 4, 1, 3, grad=True)
    for function in (flash_attn_func, lambda q, k, v, causal: plain(q, k, v, causal)):
        first = torch.autograd.grad(function(q, k, v, causal=True).sin().sum(), q, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), k, create_graph=True)[0]
        third = torch.autograd.grad(second.square().sum(), v)[0]
        if function is flash_attn_func:
            found = third
    close(found, third, 1e-9)


def test_only_what_asks_gets_a_gradient():
    q, k, v = arrays(1, 5, 2, 4)
    k.requires_grad_()
    out = flash_attn_func(q, k, v)
    out.sum().backward()
    assert k.grad is not None and q.grad is None and v.grad is None
    assert not flash_attn_func(q, k.detach(), v).requires_grad
    with torch.no_grad():
        assert not flash_attn_func(q, k, v).requires_grad


def test_lse_alone_has_a_gradient():
    q, k, v = arrays(1, 5, 2, 4, grad=True)
    lse = flash_attn_func(q, k, v, return_attn_probs=True)[1]
    found = torch.autograd.grad(lse.sum(), (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2
    expected = torch.autograd.grad(scores.logsumexp(-1).sum(), (q, k))
    close(found[:2], expected)
    assert not found[2].any()


@pytest.mark.parametrize("packing", ["qkv", "kv"])
def test_gradient_of_packed_arrays(packing):
    q, k, v = arrays(2, 6, 2, 4)
    packed = torch.stack((q, k, v) if packing == "qkv" else (k, v), 2).requires_grad_()
    q = q.requires_grad_()
    if packing == "qkv":
        out = flash_attn.flash_attn_qkvpacked_func(packed, causal=True)
    else:
        out = flash_attn.flash_attn_kvpacked_func(q, packed, causal=True)
    parts = packed.detach().clone().requires_grad_()
    expected = plain(parts[:, :, 0] if packing == "qkv" else q, parts[:, :, -2], parts[:, :, -1])
    close(torch.autograd.grad(out.sin().sum(), packed), torch.autograd.grad(expected.sin().sum(), parts))


def test_an_input_changed_before_the_backward_is_noticed():
    q, k, v = arrays(1, 5, 2, 4, grad=True)
    twice = k * 2
    out = flash_attn_func(q, twice, v)
    twice.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ---- torch.func --------------------------------------------------------------------------------------------------------


def of_both(transform):
    def ours(q, k, v):
        return flash_attn_func(q, k, v, causal=True).sin().sum()

    def theirs(q, k, v):
        return plain(q, k, v).sin().sum()

    return transform(ours), transform(theirs)


Q, K, V = (x[0] for x in arrays(3, 2, 5, 2, 4))
TANGENTS = arrays(2, 5, 2, 4, seed=1)
MANY = arrays(3, 2, 5, 2, 4)
TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f, (0, 1, 2))(Q, K, V),
    "vjp": lambda f: torch.func.vjp(f, Q, K, V)[1](torch.tensor(0.7, dtype=torch.float64)),
    "jvp": lambda f: torch.func.jvp(f, (Q, K, V), tuple(TANGENTS)),
    "vmap": lambda f: torch.vmap(f)(*MANY),
    "vmap, another axis": lambda f: torch.vmap(f, in_dims=(1, 1, None))(MANY[0], MANY[1], MANY[2].transpose(0, 1)[0]),
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(f, (0, 1, 2)))(*MANY),
    "vmap of grad, shared k and v": lambda f: torch.vmap(torch.func.grad(f, (0, 1, 2)), (0, None, None))(MANY[0], K, V),
    "grad of vmap": lambda f: torch.func.grad(lambda q: torch.vmap(f, (0, None, None))(q, K, V).sum())(MANY[0]),
    "hessian": lambda f: torch.func.hessian(f)(Q[:1], K[:1], V[:1]),
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f))(Q[:1], K[:1], V[:1]),
    "grad of grad": lambda f: torch.func.grad(lambda q: torch.func.grad(f)(q, K, V).square().sum())(Q),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_torch_func(transform):
    close(*of_both(transform), 1e-10)


def test_forward_mode_outside_of_torch_func():
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(x, t) for x, t in zip((Q, K, V), TANGENTS)]
        found, expected = of_both(lambda f: torch.autograd.forward_ad.unpack_dual(f(*duals)).tangent)
    close(found, expected)


def test_many_gradients_at_once():
    q, k, v = arrays(1, 5, 2, 4, grad=True)
    out = flash_attn_func(q, k, v)
    douts = torch.stack(arrays(*out.shape, count=4, seed=2))
    found = torch.autograd.grad(out, (q, k, v), douts, is_grads_batched=True, retain_graph=True)
    close(found, [torch.stack(x) for x in zip(*(torch.autograd.grad(out, (q, k, v), d, retain_graph=True) for d in douts))])


def test_per_sample_gradients_of_bias_and_sink():
    bias, sink = torch.randn(2, 5, 5, dtype=torch.float64), torch.randn(2, dtype=torch.float64)

    def loss(q, bias, sink):
        return flash_attn_func(q, K, V, attn_bias=bias, learnable_sink=sink).sin().sum()

    found = torch.vmap(torch.func.grad(loss, (0, 1, 2)), (0, None, None))(MANY[0], bias, sink)
    expected = [torch.stack(x) for x in zip(*(torch.func.grad(loss, (0, 1, 2))(q, bias, sink) for q in MANY[0]))]
    close(found, expected)


def test_slopes_are_constants_with_tangents():
    q, k, v = arrays(1, 5, 2, 4, grad=True)
    slopes = torch.tensor([0.3, 0.1], dtype=torch.float64, requires_grad=True)

    def ours(slopes):
        return flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes.float())

    def theirs(slopes):
        distance = torch.arange(5).sub(torch.arange(5)[:, None]).abs()
        bias = torch.full((5, 5), -torch.inf).triu(1) - slopes.float()[:, None, None] * distance
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2 + bias
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)

    close(*(torch.func.jvp(f, (slopes.detach(),), (slopes.detach() * 2,)) for f in (ours, theirs)), 1e-7)
    mixed = []
    for f in (ours, theirs):
        (dq,) = torch.autograd.grad(f(slopes).sin().sum(), q, create_graph=True)
        mixed.append(torch.autograd.grad(dq.square().sum(), k, retain_graph=True)[0])
        if f is ours:
            assert torch.autograd.grad(dq.square().sum(), slopes, allow_unused=True) == (None,)
    close(*mixed, 1e-7)
    assert torch.autograd.grad(ours(slopes).sum(), slopes, allow_unused=True) == (None,)
    with pytest.raises(NotImplementedError, match=r"\[flash_attn_func\] alibi_slopes: expected a constant, for it has no gradient"):
        torch.func.grad(lambda slopes: ours(slopes).sum())(slopes.detach())


# ---- autocast, checkpoint, seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_its_dtype(dtype):
    q, k, v = arrays(1, 9, 2, 8, dtype=torch.float32, grad=True)
    slopes = torch.tensor([0.3, 0.1])
    with torch.autocast("cpu", dtype):
        out = flash_attn_func(q, k.to(dtype), v, alibi_slopes=slopes)
    assert out.dtype == dtype
    assert torch.equal(out, flash_attn_func(q.to(dtype), k.to(dtype), v.to(dtype), alibi_slopes=slopes))
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32
    doubles = [x.double() for x in (q, k, v)]
    with torch.autocast("cpu", dtype):
        assert flash_attn_func(*doubles).dtype == torch.float64


def test_autocast_leaves_caches_as_they_are():
    q, k, v = arrays(1, 2, 2, 8, dtype=torch.bfloat16)
    k_cache, v_cache = arrays(1, 9, 2, 8, count=2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=3)
    assert out.dtype == torch.float32
    assert torch.equal(k_cache[:, 3:5], k.float())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_repeats_the_dropout(reentrant):
    q, k, v = arrays(1, 40, 2, 8, dtype=torch.float32, grad=True)
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(5)

        def block(q, k, v):
            return flash_attn_func(q, k, v, dropout_p=0.4).sin()

        out = torch.utils.checkpoint.checkpoint(block, q, k, v, use_reentrant=reentrant) if checkpointed else block(q, k, v)
        results.append((out.detach(), *_backward(out, q, k, v)))
    close(results[0], results[1], 0)


def _backward(out, *leaves):
    for x in leaves:
        x.grad = None
    out.sum().backward()
    return [x.grad.clone() for x in leaves]


def test_seeds_come_from_torch():
    q, k, v = arrays(1, 40, 2, 8, dtype=torch.float32)

    def mask():
        return flash_attn_func(q, k, v, dropout_p=0.5, return_attn_probs=True)[2].signbit()

    torch.manual_seed(1)
    first, second = mask(), mask()
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    with torch.random.fork_rng():
        assert torch.equal(mask(), first)
    assert torch.equal(mask(), first)
    assert 0.4 < first.float().mean() < 0.6


def test_rng_state_round_trips():
    from flash_attn.flash_attn_interface import _flash_attn_backward, _flash_attn_forward

    q, k, v = arrays(1, 40, 2, 8, dtype=torch.float32)
    out, lse, mask, state = _flash_attn_forward(q, k, v, 0.3, 0.4, True, -1, -1, 0.0, None, True)
    assert state.dtype == torch.int64 and state.shape == (2,)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    again, _, same = flash_attn_func(*leaves, 0.3, 0.4, True, rng_state=state, return_attn_probs=True)
    assert torch.equal(out, again) and torch.equal(mask.signbit(), same.signbit())
    dout = torch.randn_like(out)
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    _flash_attn_backward(dout, q, k, v, out, lse, *gradients, 0.3, 0.4, True, -1, -1, 0.0, None, False, rng_state=state)
    close(gradients, torch.autograd.grad(again, leaves, dout), 0)


# ---- private functions with the caller's own (out, lse) ----------------------------------------------------------------


def test_backward_writes_in_place_and_takes_a_foreign_lse():
    from flash_attn.flash_attn_interface import _flash_attn_backward

    q, k, v = arrays(2, 24, 2, 8, dtype=torch.float32, grad=True)
    out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
    dout = torch.randn_like(out)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout)
    shares = torch.zeros_like(q)
    for half in (slice(0, 12), slice(12, 24)):
        dqkv = torch.full((2, 24, 3, 2, 8), torch.nan)  # written through views of one packed array
        views = dqkv[:, :, 0], dqkv[:, half, 1], dqkv[:, half, 2]
        versions = [x._version for x in views]
        softmax_d = _flash_attn_backward(dout, q, k[:, half], v[:, half], out, lse, *views, 0.0, 8**-0.5, False, -1, -1, 0.0, None, False)
        assert all(x._version > before for x, before in zip(views, versions))
        close(views[1:], (dk[:, half], dv[:, half]), 2e-6)
        close(softmax_d, (dout * out).sum(-1).transpose(1, 2).detach(), 1e-5)
        shares += views[0]
    close(shares, dq, 2e-6)


def test_private_functions_are_blind_to_derivatives_and_tracing():
    from flash_attn.flash_attn_interface import _flash_attn_backward, _flash_attn_forward

    q, k, v = arrays(1, 5, 2, 4, dtype=torch.float32, grad=True)
    mask = (0.0, 0.5, True, -1, -1, 0.0, None)
    out, *_ = _flash_attn_forward(q, k, v, *mask, False)
    assert not out.requires_grad

    def both(q):
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        again, lse, _, _ = _flash_attn_forward(q, k, v, *mask, False)
        _flash_attn_backward(torch.ones_like(again), q, k, v, again, lse, *gradients, *mask, False)
        return again, *gradients

    q, k, v = (x.detach() for x in (q, k, v))
    expected = both(q)
    close(torch.jit.trace(both, (q,), check_trace=False)(q), expected, 0)
    with torch.autograd.forward_ad.dual_level():  # of which nobody here has a tangent
        close(both(q), expected, 0)
    with torch.autocast("cpu", torch.bfloat16):  # whoever calls these has cast already
        close(both(q), expected, 0)
    for call in (torch.func.grad(lambda q: both(q)[0].sum()), lambda q: torch.func.jvp(lambda q: both(q)[0], (q,), (q,))):
        with pytest.raises(NotImplementedError, match=r"\[_flash_attn_forward\] has no derivatives: expected a call outside"):
            call(q)


# ---- caches ------------------------------------------------------------------------------------------------------------


def test_cache_has_no_backward_and_says_so():
    q, k, v = arrays(1, 1, 2, 8, dtype=torch.float32, grad=True)
    k_cache, v_cache = arrays(1, 9, 2, 8, count=2, dtype=torch.float32)
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=3)
    with pytest.raises(NotImplementedError, match=r"\[flash_attn_with_kvcache\] has no backward"):
        out.sum().backward()
    with pytest.raises(ValueError, match=r"k_cache: expected a cache that does not require grad"):
        flash_attn_with_kvcache(q, k_cache.requires_grad_(), v_cache, k, v, cache_seqlens=3)


def test_a_cache_that_is_written_has_no_transforms_and_says_so():
    q, k, v = arrays(2, 1, 2, 8, dtype=torch.float32)
    k_cache, v_cache = arrays(2, 9, 2, 8, count=2, dtype=torch.float32)

    def step(q):
        return flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=3)

    def of_a_dual(q):
        with torch.autograd.forward_ad.dual_level():
            return step(torch.autograd.forward_ad.make_dual(q, q))

    before = k_cache.clone()
    for call in (
        of_a_dual,
        lambda q: torch.func.jvp(step, (q,), (q,)),
        torch.func.grad(lambda q: step(q).sum()),
        torch.vmap(lambda q: step(q[None].expand(2, -1, -1, -1))),
    ):
        with pytest.raises(NotImplementedError, match=r"\[flash_attn_with_kvcache\] writes into its caches: expected a call outside"):
            call(q)
    assert torch.equal(k_cache, before)
    with torch.autograd.forward_ad.dual_level():
        assert step(q).shape == q.shape  # no tangent, no derivative that could be missed


def test_a_cache_that_is_read_has_tangents():
    q, (k_cache, v_cache) = arrays(2, 1, 2, 8, count=1)[0], arrays(2, 9, 2, 8, count=2)
    found = torch.func.jvp(lambda q: flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=3), (q,), (q * 2,))
    close(found, torch.func.jvp(lambda q: plain(q, k_cache[:, :3], v_cache[:, :3], False), (q,), (q * 2,)))


def test_cache_update_is_seen_by_autograd():
    q, k, v = arrays(1, 1, 2, 8, dtype=torch.float32)
    k_cache, v_cache = arrays(1, 9, 2, 8, count=2, dtype=torch.float32)
    before = k_cache._version
    flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=3)
    assert k_cache._version > before
    with torch.inference_mode():
        caches = [x.clone() for x in (k_cache, v_cache)]
        flash_attn_with_kvcache(q, *caches, k, v, cache_seqlens=4)
    assert torch.equal(caches[0][:, 4:5], k)


# ---- what callers pass -------------------------------------------------------------------------------------------------


def test_arguments_as_callers_pass_them():
    q, k, v = arrays(10, 2, 8, dtype=torch.float32)
    cu = torch.tensor([0, 4, 10], dtype=torch.int32)
    expected = flash_attn_varlen_func(q, k, v, cu, cu, 6, 6, causal=True, window_size=(3, 3))
    for longest, window in itertools.product((6, torch.tensor(6), np.int64(6)), ([3, 3], torch.tensor([3, 3]))):
        assert torch.equal(flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, causal=True, window_size=window), expected)


def test_views_that_hide_a_sign_are_read_right():
    q, k, v = arrays(1, 5, 2, 4, dtype=torch.float32)
    negated = torch._neg_view(q)
    assert negated.is_neg() and torch.equal(flash_attn_func(negated, k, v), flash_attn_func(-q, k, v))


def test_results_are_ordinary_tensors():
    q, k, v = arrays(1, 5, 2, 4, dtype=torch.float32)
    out, lse, empty = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), return_attn_probs=True)
    assert out.is_contiguous() and lse.is_contiguous() and empty.shape == (0,)
    assert torch.equal(copy.deepcopy(out), out)
    saved = io.BytesIO()
    torch.save(out, saved)
    saved.seek(0)
    assert torch.equal(torch.load(saved), out)


def test_subclasses_and_fake_tensors():
    class Named(torch.Tensor):
        pass

    q, k, v = arrays(1, 5, 2, 4, dtype=torch.float32)
    named = q.as_subclass(Named)
    assert torch.equal(flash_attn_func(named, k, v).as_subclass(torch.Tensor), flash_attn_func(q, k, v))
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (q, k, v)]
        out, lse, _ = flash_attn_func(*fakes, return_attn_probs=True)
    assert out.shape == q.shape and out.stride() == q.stride() and lse.shape == (1, 2, 5)
    meta = flash_attn_func(q.to("meta"), k.to("meta"), v.to("meta"))
    assert meta.device.type == "meta" and meta.shape == q.shape


def test_threads_at_once():
    q, k, v = arrays(2, 33, 2, 8, dtype=torch.float32, grad=True)
    expected = torch.autograd.grad(flash_attn_func(q, k, v, causal=True).sin().sum(), (q, k, v))
    found = [None] * 6

    def work(i):
        found[i] = torch.autograd.grad(flash_attn_func(q, k, v, causal=True).sin().sum(), (q, k, v))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for gradients in found:
        close(gradients, expected, 0)


def test_merge_and_combine_are_differentiable():
    q, k, v = arrays(1, 6, 2, 4, grad=True)
    parts = [flash_attn_func(q, k[:, s], v[:, s], return_attn_probs=True)[:2] for s in (slice(0, 2), slice(2, 6))]
    merged, lse = flash_attn.merge(*parts[0], *parts[1])
    whole, whole_lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
    close((merged, lse), (whole, whole_lse))
    close(torch.autograd.grad(merged.sin().sum(), (q, k, v)), torch.autograd.grad(whole.sin().sum(), (q, k, v)))
    out, _ = flash_attn.flash_attn_combine(torch.stack([p[0] for p in parts]), torch.stack([p[1].transpose(1, 2) for p in parts]))
    close(out, whole)


def test_old_torch_without_an_exchange_table(monkeypatch):
    q, k, v = arrays(1, 6, 2, 4, dtype=torch.bfloat16, grad=True)
    expected = torch.autograd.grad(flash_attn_func(q, k, v).float().sum(), (q, k, v))
    monkeypatch.setattr(torch_ops, "EXCHANGE", torch_ops._Addresses())
    close(torch.autograd.grad(flash_attn_func(q, k, v).float().sum(), (q, k, v)), expected, 0)
    strided = torch.randn(1, 6, 2, 8)[..., ::2]
    close(flash_attn_func(strided, strided, strided), plain(*[strided] * 3, causal=False), 1e-6)
    with pytest.raises(TypeError, match=r"k: expected a PyTorch array like the others, found numpy.ndarray"):
        torch_ops.run("f", 0, {Role.Q: q, Role.K: q.detach().float().numpy()}, Options())


# ---- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"k": lambda k: k.numpy()}, TypeError, r"\[flash_attn_func\] k: expected a PyTorch array like the others, found numpy.ndarray"),
        ({"k": lambda k: k.double()}, ValueError, r"\[flash_attn_func\] k: expected dtype float32 as q, found float64"),
        ({"k": lambda k: k.to(torch.complex64)}, TypeError, r"\[flash_attn_func\] k: expected one of float16.*found torch.complex64"),
        ({"k": lambda k: k.to_sparse()}, TypeError, r"\[flash_attn_func\] k: expected a strided array with memory"),
        ({"k": lambda k: k[:, :, :1].expand(1, 5, 3, 4)}, ValueError, r"k: expected a head count .*found 3"),
        ({"v": lambda v: v[0]}, ValueError, r"\[flash_attn_func\] v: .*must be 4D"),
        ({"k": lambda k: k.to("meta")}, ValueError, r"\[flash_attn_func\] k: expected an array on the device of q, cpu, found meta"),
    ],
    ids=["numpy", "dtype", "complex", "sparse", "heads", "rank", "device"],
)
def test_bad_arrays(change, error, message):
    given = dict(zip("qkv", arrays(1, 5, 2, 4, dtype=torch.float32)))
    ((name, function),) = change.items()
    given[name] = function(given[name])
    with pytest.raises(error, match=message):
        flash_attn_func(**given)


def test_bad_seed():
    q, k, v = arrays(1, 5, 2, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"rng_state: expected an array on the device of q, cpu, found meta"):
        flash_attn_func(q, k, v, dropout_p=0.5, rng_state=torch.zeros(2, dtype=torch.int64, device="meta"))
    with pytest.raises(TypeError, match=r"rng_state: expected a PyTorch array like the others, found torch._C.Generator"):
        flash_attn_func(q, k, v, dropout_p=0.5, rng_state=torch.Generator())
    with pytest.raises(TypeError, match=r"rng_state: expected dtype int64 or uint32, found float32"):
        flash_attn_func(q, k, v, dropout_p=0.5, rng_state=torch.tensor([1.0, 2.0]))


# ---- operators ---------------------------------------------------------------------------------------------------------


def opcheck(operator, *arguments):
    outcomes = torch.library.opcheck(operator, arguments)
    assert len(outcomes) == 4 and set(outcomes.values()) == {"SUCCESS"}, outcomes


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_opcheck_forward_and_backward(packed):
    q, k, v = arrays(*((10,) if packed else (2, 5)), 2, 4, dtype=torch.float32, grad=True)
    given = {Role.Q: q, Role.K: k, Role.V: v, Role.SINK: torch.randn(2, requires_grad=True)}
    options = Options(causal=True, softcap=3.0)
    if packed:
        given |= dict.fromkeys((Role.CU_ROWS, Role.CU_KEYS), torch.tensor([0, 4, 10], dtype=torch.int32))
        options = options._replace(max_rows=6, max_keys=6)
    opcheck(torch.ops.flash_attn.forward.default, "test", *torch_ops.flatten(FORWARD_ROLES, given, options))
    out, lse, _ = torch.ops.flash_attn.forward("test", *torch_ops.flatten(FORWARD_ROLES, given, options))
    given |= {Role.OUT: out.detach(), Role.LSE: lse.detach(), Role.DOUT: torch.randn_like(out), Role.DLSE: torch.randn_like(lse)}
    options = options._replace(wants=1 << Role.DSINK)
    opcheck(torch.ops.flash_attn.backward.default, "test", *torch_ops.flatten(torch_ops.BACKWARD_ROLES, given, options))


def test_opcheck_with_kvcache():
    q, k, v = arrays(2, 3, 2, 8, dtype=torch.float32)
    given = dict(zip((Role.K, Role.V), arrays(2, 20, 2, 8, count=2, dtype=torch.float32)))
    given |= {Role.Q: q, Role.NEW_K: k, Role.NEW_V: v, Role.LENGTHS: torch.tensor([3, 9], dtype=torch.int32)}
    angle = torch.rand(30, 4)
    given |= {Role.COS: angle.cos(), Role.SIN: angle.sin()}
    opcheck(torch.ops.flash_attn.with_kvcache.default, "test", *torch_ops.flatten(torch_ops.CACHE_ROLES, given, Options(causal=True)))


def test_opcheck_of_upstreams_operators():
    from flash_attn import flash_attn_interface as upstream

    q, k, v = arrays(2, 5, 2, 4, dtype=torch.float32)
    mask = (0.0, 0.5, True, -1, -1, 0.0, None)
    opcheck(torch.ops.flash_attn._flash_attn_forward.default, q, k, v, *mask, False)
    out, lse, _, state = upstream._flash_attn_forward(q, k, v, *mask, False)
    results = [torch.empty_like(q) for _ in range(3)]
    opcheck(torch.ops.flash_attn._flash_attn_backward.default, torch.randn_like(out), q, k, v, out, lse, *results, *mask, False, state)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    lengths = (torch.tensor([0, 4, 10], dtype=torch.int32),) * 2 + (6, 6)
    opcheck(torch.ops.flash_attn._flash_attn_varlen_forward.default, q, k, v, *lengths, *mask)
    out, lse, _, state = upstream._flash_attn_varlen_forward(q, k, v, *lengths, *mask)
    results = [torch.empty_like(q) for _ in range(3)]
    opcheck(
        torch.ops.flash_attn._flash_attn_varlen_backward.default,
        torch.randn_like(out),
        q,
        k,
        v,
        out,
        lse,
        *results,
        *lengths,
        *mask,
        False,
        state,
    )
