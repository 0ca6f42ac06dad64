"""Kernels on a device that has not seen them: compared once with the plain one, and given up for it if they are wrong there."""

from __future__ import annotations

import warnings
from unittest import mock

import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")

import cases  # noqa: E402
from fake_gpu import fresh_process, gpu, on_gpu, zeros  # noqa: E402
from flash_attn import _core, explain, first_use, flash_attn_func, small_calls  # noqa: E402
from flash_attn.call import METAL, Options, Pass, Role  # noqa: E402
from flash_attn.engine import shape_of  # noqa: E402
from flash_attn.frameworks import mlx as framework  # noqa: E402
from flash_attn.frameworks.mlx import FRAMEWORK  # noqa: E402
from flash_attn.runners import metal_mlx  # noqa: E402
from target_metal import why_not  # noqa: E402
from target_mlx import MLXTarget  # noqa: E402

if why_not():
    pytest.skip(why_not(), allow_module_level=True)

Q, K, V = (mx.random.normal((1, 12, 2, 16), key=mx.random.key(i)) for i in range(3))
NAN, INF = float("nan"), float("inf")
FORWARD = {"forward.metal": ("= log_sum_exp(a);", "= log_sum_exp(a) + 0.01f;")}
NOT_METAL = {"forward.metal": ("namespace fa {", "namespace fa { this is no Metal;")}


@pytest.fixture
def expected():
    out = flash_attn_func(Q, K, V, causal=True)
    mx.eval(out)
    return out


def close(a, b):
    return mx.abs(a - b).max().item() < 1e-5


def test_a_kernel_is_compared_once(tmp_path, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gpu(tmp_path) as launched:
            assert close(flash_attn_func(Q, K, V, causal=True), expected)
            assert launched == ["forward_plain", "forward", "forward"]  # small twice, then the call itself
            flash_attn_func(Q[:, :5], K[:, :7], V[:, :7])  # the same kernel
            assert launched[3:] == ["forward"]
            with fresh_process():
                flash_attn_func(Q, K, V)
            assert launched[4:] == ["forward"]  # remembered on disk
        with gpu(tmp_path, device="another GPU") as launched:
            flash_attn_func(Q, K, V)
            assert launched == ["forward_plain", "forward", "forward"]


def test_what_computes_nothing_passes_nothing(tmp_path):
    with gpu(tmp_path) as launched:
        flash_attn_func(Q, K[:, :0], V[:, :0])
        flash_attn_func(Q, K, V)
    assert launched == ["forward", "forward_plain", "forward", "forward"]


@pytest.mark.parametrize("found, expected, fault", [
    ([1.0, 2.0], [1.0, 2.1], ""),
    ([1.0, 2.0], [1.0, 2.3], "x off by 0.3, more than 0.23"),
    ([NAN, 2.0], [1.0, 2.0], "x off by inf, more than 0.2"),
    ([1.0, 2.0], [NAN, 2.0], "x off by inf, more than 0.2"),
    ([1.0, -INF], [1.0, -INF], ""),
    ([1.0, INF], [1.0, -INF], "x off by inf, more than 0.1"),
    ([0.0, 1e-30], [0.0, 0.0], "x off by 1e-30, more than 0"),
])  # fmt: skip
def test_comparison(found, expected, fault):
    comparison = first_use.Comparison("kernel")
    comparison.add("x", found, expected, 0.1)
    assert comparison.fault == fault and (comparison.error > 1) == bool(fault)


@pytest.mark.parametrize("lazy", [False, True], ids=["at once", "when evaluated"])
@pytest.mark.parametrize(
    "plants, why", [(FORWARD, r"lse off by 0\.01"), (NOT_METAL, "an error")], ids=["wrong numbers", "does not compile"]
)
def test_a_bad_kernel_gives_way_to_the_plain_one(tmp_path, expected, plants, why, lazy):
    with gpu(tmp_path, plants=plants, lazy_errors=lazy) as launched:
        with pytest.warns(RuntimeWarning, match=rf"kernel forward: expected what the plain kernel gives, found .*{why}") as caught:
            assert close(flash_attn_func(Q, K, V, causal=True), expected)
            assert launched[-1] == "forward_plain"
            count = len(launched)
            flash_attn_func(Q[:, :5], K, V, softcap=3.0)  # another variant of the same kernel: compared, without a second warning
            flash_attn_func(Q[:, :5], K, V)
        assert launched[count:].count("forward_plain") == 3 and launched[-1] == "forward_plain" and len(caught) == 1
        assert "runs forward (metal)" in (text := explain(flash_attn_func, Q, K, V)) and "but not forward: its first use" in text
        with fresh_process(), pytest.warns(RuntimeWarning):  # only what passed is remembered
            flash_attn_func(Q, K, V)
    assert "but not" not in explain(flash_attn_func, Q, K, V)


def test_passes_are_judged_each_by_itself(tmp_path):
    gradient = mx.grad(lambda q: (flash_attn_func(q, K, V) ** 2).sum())
    right = gradient(Q)
    plants = {"backward_dq.metal": ("namespace fa {", "namespace fa { this is no Metal;")}
    with gpu(tmp_path, plants=plants) as launched, pytest.warns(RuntimeWarning, match="kernel backward: expected") as caught:
        assert close(gradient(Q), right)
    assert len(caught) == 1 and "forward" in launched and "row_gradient_plain" in launched


def test_inside_transforms(tmp_path):
    """The comparison evaluates arrays of its own, which MLX allows everywhere; those of the call stay as they are."""
    views = [(role, shape_of(3, Q.shape, METAL)) for role in (Role.Q, Role.K, Role.V)]

    def traced(q):
        prepared = FRAMEWORK.prepare("flash_attn_func", Pass.FORWARD, views, Options())
        assert prepared.kernel == "forward"
        return q + 1

    for transform in (mx.compile, mx.grad, mx.checkpoint, mx.vmap):
        with gpu(tmp_path / transform.__name__) as launched:
            mx.eval(transform(lambda q: traced(q).sum())(Q))
            assert launched == ["forward_plain", "forward"], transform


def variants_of_small_calls(case, run):
    """For each call of a case: the kernels that it needs, and those that its small call would compare."""
    found = []

    def trusted(framework, device, variants, prepared, function, views, options, **_):
        call = first_use.small_call(prepared, function, views, options)
        if call is not None:
            arrays = dict(call.arrays)
            if call.which == Pass.BACKWARD:
                arrays |= {role: small_calls.Shape(view.dtype, small_calls.results(call)[role]) for role, view in views if role in RESULTS}
            small = [(role, shape_of(x.code, x.sizes, METAL)) for role, x in arrays.items()]
            made = _core.prepare(call.function, call.which, small, call.options)
            found.append((set(variants), set(metal_mlx.variants(made))))
        return prepared

    with on_gpu(), zeros(), mock.patch.object(first_use, "trusted", trusted), mock.patch.object(framework, "_gpu", lambda: "a GPU"):
        run()
    return found


RESULTS = (Role.OUT, Role.LSE)
TABLES = ("single", "pairs", "mixed", "edges", "dims", "dtypes", "varlen", "strides")


@pytest.mark.parametrize("table", [*TABLES, "paged_varlen", "decode"])
def test_a_small_call_runs_the_kernels_of_the_call(table):
    """What passes on small arrays is what the user's call runs, for every case that there is."""
    target, count = MLXTarget(), 0
    for case in getattr(cases, table):
        if case.dtype == "float64":
            continue
        arrays = cases.inputs(case)
        runs = [lambda c=case, a=arrays: target.with_kvcache(c, a) if table == "decode" else target.forward(c, a)]
        if table in TABLES:
            runs.append(lambda c=case, a=arrays: target.backward(c, a, a.dout, a.dlse))
        for run in runs:
            for wanted, compared in variants_of_small_calls(case, run):
                assert wanted <= compared, (str(case), [v.name for v in wanted - compared], [v.name for v in compared - wanted])
                count += 1
    assert count >= len(getattr(cases, table)) // 2
