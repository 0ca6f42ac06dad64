"""forward_tensor, the forward kernel by Metal 4's tensor operations: emulated, with products laid out as MLX relies on. When it is chosen,
that its numbers are right, that wrong ones would be seen, and what runs on a GPU where it fails."""

from __future__ import annotations

import platform
import re
from unittest import mock

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")

import metal_lint  # noqa: E402
from cases import CacheCase, Case  # noqa: E402
from fake_gpu import fresh_process, gpu, planted  # noqa: E402
from flash_attn import _core, engine, explain, first_use, flash_attn_func, selftest  # noqa: E402
from flash_attn.call import METAL, Options, Pass, Role  # noqa: E402
from flash_attn.frameworks import mlx as framework  # noqa: E402
from flash_attn.runners import metal, metal_mlx  # noqa: E402
from judge import try_backward, try_forward, try_kvcache  # noqa: E402
from target_metal import MetalTarget, emulated, why_not  # noqa: E402

if why_not():
    pytest.skip(why_not(), allow_module_level=True)
M5 = "plain:g17"
F16, BF16 = Case(dtype="float16"), Case(dtype="bfloat16")
NAME = "forward_tensor"


class TensorTarget(MetalTarget):
    """Emulates a GPU with tensor operations, and notes the kernels of forward passes."""

    def __init__(self, build=M5):
        self.build, self.kernels = build, []

    def _run(self, function, values):
        def variants(prepared):
            self.kernels += [prepared.kernel] if prepared.pass_ == Pass.FORWARD else []
            return of_metal(prepared)

        of_metal = metal_mlx.variants
        with emulated(self.build), mock.patch.object(metal_mlx, "variants", variants):
            results = function(*values)
            mx.eval(results)
        return results


def runs_right(case, build=M5, judge=try_forward):
    target = TensorTarget(build)
    judge(target, case)
    assert set(target.kernels) == {NAME}


# ---- numbers ----------------------------------------------------------------------------------------------------------------

ROWS, KEYS = (2, 9, 15, 16, 17, 63, 64, 65, 130), (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
EDGES = [
    Case(batch=1, heads=1, rows=rows, keys=KEYS[(3 * n + causal) % len(KEYS)], dim=16, dtype="float16", causal=causal)
    for causal in (False, True)
    for n, rows in enumerate((*ROWS, *ROWS))
]
DIMS = [Case(batch=1, rows=19, keys=33, dim=dim, dtype="float16", causal=True) for dim in (1, 7, 8, 33, 40, 72, 96, 112, 128)]
DIMS += [Case(batch=1, rows=19, keys=33, dim=a, value_dim=b, dtype="bfloat16") for a, b in ((128, 8), (5, 128), (80, 48), (24, 31))]
FEATURES = [
    BF16 | Case(causal=True, heads=4, kv_heads=2, dim=64, rows=130, keys=210),
    F16 | Case(window=(17, 3), softcap=2.0, heads=6, kv_heads=2),
    F16 | Case(alibi="bh", sink=True, causal=True, trend=0.5),
    BF16 | Case(bias="bhqk", dropout=0.3, offsets=(50, 3)),
    F16 | Case(bias="bool:b1qk", used_rows=(20, 37), used_keys=(50, 109)),
    F16 | Case(bias="1h1k", alibi="h", softcap=3.0, dropout=0.17, window=(40, 0)),
    F16 | Case(chunk=24, dropout=0.5, offsets=(70, 90)),
    BF16 | Case(chunk=32, scale=-0.5, bias="b11k", causal=True),
    F16 | Case(trend=-0.5, dropout=0.9, sink=True, rows=97, keys=30, causal=True),
    F16 | Case(spread=10.0, causal=True),
    F16 | Case(layout="heads_first", dim=64, causal=True),
    BF16 | Case(layout="strided", bias="bhqk"),
    F16 | Case(layout="reversed", dim=33, value_dim=7),
    F16 | Case(packed="qkv", rows=40, keys=40, alibi="h"),
    BF16 | Case(lengths=((20, 50), (0, 9), (33, 33), (1, 120)), tail=5, causal=True, heads=4, kv_heads=2),
    F16 | Case(lengths=((0, 4), (4, 0), (16, 96)), dropout=0.17, sink=True),
    BF16 | Case(lengths=((20, 50), (0, 9)), alibi="bh"),
    F16 | Case(lengths=((1, 50), (20, 9), (33, 130)), page=3, softcap=3.0),
    BF16 | Case(lengths=((1, 50), (20, 9), (33, 130)), page=16, window=(20, 0)),
]
WATCHED = [DIMS[4], DIMS[-1], *FEATURES[3:5], FEATURES[10], *FEATURES[14:18]]


@pytest.mark.parametrize("case", dict.fromkeys([*EDGES, *DIMS, *FEATURES]), ids=str)
def test_forward(case):
    runs_right(case)


@pytest.mark.parametrize("case", WATCHED, ids=str)
def test_every_access_is_watched(case):
    runs_right(case, "instrumented:g17")


@pytest.mark.parametrize("case", [F16 | Case(causal=True, dim=64), BF16 | Case(spread=10.0, bias="bhqk", sink=True, dropout=0.17)], ids=str)
def test_gradients_fit_what_it_saves(case):
    runs_right(case, judge=try_backward)


@pytest.mark.parametrize("page", [0, 16])
def test_queries_that_are_too_many_for_decode(page):
    runs_right(CacheCase(rows=33, causal=True, heads=4, kv_heads=1, dtype="float16", page=page), judge=try_kvcache)


# (a piece of the text, a fault in its place, a case that must see it)
PLANTS = [
    ("right[i] = b0", "right[i] = b1", F16),
    ("sum.at[i / 8][i / 4 % 2][i % 4] = total[i]", "sum.at[i / 8][i / 4 % 2][i % 4] += total[i]", F16),
    ("16 * fragment + 4 * int(l.pair) + i", "16 * fragment + 4 * int(l.pair)", F16 | Case(causal=True)),
    ("chunk.at[1] = as_type<ElementQuad>(words.zw)", "chunk.at[1] = as_type<ElementQuad>(words.xy)", F16),
    ("v = metal::max(v, shuffled(v, 1))", "v = metal::max(v, shuffled(v, 2))", F16 | Case(trend=2.0)),
    ("return v + shuffled(v, 8)", "return v + shuffled(v, 4)", F16),
    ("state.sum *= factor", "state.sum *= 1.0f", F16 | Case(trend=0.5)),
    ("state.out[g].at[t][1] *= factor.y", "state.out[g].at[t][1] *= factor.x", F16 | Case(trend=0.5)),
    ("8u) == 0u ? kept.x", "8u) != 9u ? kept.x", F16 | Case(dropout=0.3, offsets=(5, 0))),
    ("((some.first + e.k_offset) & (KEYS - 1))", "0", F16 | Case(dropout=0.3, offsets=(0, 5))),
    ("j0 < all.first || j0 + KEYS > all.end", "false", F16),
    ("i = max(first, s.mask.rows)", "i = s.row_slots", F16 | Case(used_rows=(20, 37))),
]  # fmt: skip


@pytest.mark.parametrize("old, new, case", PLANTS, ids=lambda value: str(value)[:40])
def test_planted_faults_are_seen(old, new, case):
    with planted({"forward_tensor.metal": (old, new)}), pytest.raises(AssertionError):
        try_forward(TensorTarget(), case)


@pytest.mark.parametrize("plants", [{}, {"forward_tensor.metal": ("return metal::simd_or(seen)", "return ~0u")}], ids=["", "planted"])
def test_keys_that_a_bias_hides_from_every_row_may_hold_anything(plants):
    q, k, v = (mx.random.normal((1, 40, 2, 32), key=mx.random.key(i)).astype(mx.float16) for i in range(3))
    seen = mx.arange(40) % 5 != 2
    broken = mx.where(seen[:, None, None], v, mx.nan)
    with emulated(M5), planted(plants):
        expected, found = (flash_attn_func(q, k, x, attn_bias=seen[None, None, None]) for x in (v, broken))
        assert mx.array_equal(found, expected).item() == (not plants)


# ---- when it is chosen, and its text ----------------------------------------------------------------------------------------


def kernel_of(dtype, dim, emulate=M5):
    x = mx.zeros((1, 40, 2, dim), dtype=dtype)
    with emulated(emulate):
        return re.search(r"runs (\w+)", explain(flash_attn_func, x, x, x)).group(1)


def test_it_is_for_new_gpus_and_16_bits():
    assert [kernel_of(dtype, 64) for dtype in (mx.float16, mx.bfloat16, mx.float32)] == [NAME, NAME, "forward"]
    assert [kernel_of(mx.float16, dim) for dim in (1, 128, 129)] == [NAME, NAME, "forward"]
    assert [kernel_of(mx.float16, 64, words) for words in ("plain", "plain:", "plain:g16", ":g18")] == [
        "forward",
        "forward",
        "forward",
        NAME,
    ]
    x = mx.zeros((1, 40, 2, 64), dtype=mx.float16)
    with emulated("plain:g16"):
        assert "not forward_tensor: is for other chips than architecture 16" in explain(flash_attn_func, x, x, x)
    with emulated("plain:m5"), pytest.raises(RuntimeError, match=r"expected emulate:<build>:g<number>, found emulate:plain:m5"):
        flash_attn_func(x, x, x)


@pytest.mark.parametrize(
    "architecture, system, version, generation",
    [
        ("applegpu_g17s", "25.2.0", "0.32.0", 17),
        ("applegpu_g17g", "26.0.1", "0.30.1.dev2", 17),
        ("applegpu_g16s", "25.2.0", "0.32.0", 16),
        ("applegpu_g17p", "25.2.0", "0.32.0", 16),  # a phone's
        ("applegpu_g18p", "25.2.0", "0.32.0", 17),
        ("applegpu_g17s", "25.1.0", "0.32.0", 0),  # no Metal 4 that is known to work
        ("applegpu_g17s", "25.2.0", "0.29.3", 0),
        ("unknown", "25.2.0", "0.32.0", 0),
        ("x86_64", "6.1.0-13-amd64", "0.32.0", 0),
    ],
)
def test_the_generation_of_a_gpu(architecture, system, version, generation):
    with (
        mock.patch.object(framework, "_architecture", lambda: architecture),
        mock.patch.object(platform, "release", lambda: system),
        mock.patch.object(mx, "__version__", version),
    ):
        assert framework._generation.__wrapped__() == generation


def test_only_this_text_needs_metal_4():
    sources = {row["name"] for row in _core.kernel_table() if row["backend"] == "metal"}
    assert NAME in sources
    files = ("forward", "decode", "backward_dq", "backward_dkv", "backward_bias", "small", "plain", NAME)
    assert [name for name in files if "MetalPerformancePrimitives" in metal.kernel_text(f"{name}.metal")] == [NAME]


def text_of(code):
    """A complete text with every feature."""
    shapes = {Role.Q: (code, (2, 40, 2, 64)), Role.BIAS: (code, (2, 2, 40, 40)), Role.SINK: (code, (2,))}
    shapes |= {Role.K: shapes[Role.Q], Role.V: shapes[Role.Q], Role.SEED: (7, (4,)), Role.SLOPES: (3, (2,))}
    views = [(role, engine.shape_of(*shape, METAL, 17)) for role, shape in shapes.items()]
    (launch,) = metal.launches_of(_core.prepare("flash_attn_func", Pass.FORWARD, views, Options(dropout=0.1, softcap=2.0)))
    assert launch.kernel == NAME
    codes = {_core.ROLES[role]: shape[0] for role, shape in shapes.items()} | {"out": code, "lse": 3}
    return metal.complete_text(launch.variant(Pass.FORWARD, False), codes)


@pytest.mark.parametrize("code", [1, 2], ids=["half", "bfloat"])
def test_lint(code):
    text = text_of(code)
    assert metal_lint.lint(text) == []
    assert metal_lint.lint(text.replace("quad[i] = Element(v[i]);", "quad[i] = Element(v[i]); float* p;")) != []


# ---- first use, selftest ----------------------------------------------------------------------------------------------------

Q, K, V = (mx.random.normal((1, 40, 2, 16), key=mx.random.key(i)).astype(mx.float16) for i in range(3))
WRONG = ("= log_sum_exp(a);", "= log_sum_exp(a) + 0.1f;")
NO_METAL = ("namespace fa {", "namespace fa { this is no Metal;")


@pytest.fixture
def expected():
    out = flash_attn_func(Q, K, V, causal=True)
    mx.eval(out)
    return np.array(out)


@pytest.fixture
def m5():
    with mock.patch.object(framework, "_generation", lambda: 17):
        yield


def attend():
    return np.array(flash_attn_func(Q, K, V, causal=True))


def test_first_use(m5, tmp_path, expected):
    with gpu(tmp_path) as launched:
        assert np.abs(attend() - expected).max() < 2e-3
        assert launched == ["forward_plain", NAME, NAME]
        with fresh_process():
            attend()
        assert launched[3:] == [NAME]


@pytest.mark.parametrize("fault", [WRONG, NO_METAL], ids=["wrong numbers", "does not compile"])
def test_where_it_fails_forward_runs(m5, tmp_path, expected, fault):
    with gpu(tmp_path, plants={"forward_tensor.metal": fault}) as launched:
        with pytest.warns(RuntimeWarning, match=r"kernel forward_tensor: expected .* Kernel forward computes such calls") as caught:
            assert np.abs(attend() - expected).max() < 2e-3
        assert launched[-3:] == ["forward_plain", "forward", "forward"]
        attend()
        assert launched[-1] == "forward" and launched.count("forward_plain") == 2 and len(caught) == 1
        text = explain(flash_attn_func, Q, K, V, causal=True)
        assert "but not forward_tensor: its first use on this device failed" in text and text.endswith("; forward runs")


def test_where_both_fail_the_plain_kernel_runs(m5, tmp_path, expected):
    with gpu(tmp_path, plants={"forward_tensor.metal": WRONG, "forward.metal": NO_METAL}) as launched:
        with pytest.warns(RuntimeWarning) as caught:
            assert np.abs(attend() - expected).max() < 2e-3
        said = {re.search(r"kernel (\w+): .* (The plain kernel)", str(warning.message)).groups() for warning in caught}
        assert said == {("forward", "The plain kernel"), (NAME, "The plain kernel")} and len(caught) == 2
        assert launched[-1] == "forward_plain" and explain(flash_attn_func, Q, K, V).endswith("; the plain kernel runs")


def test_selftest(capsys):
    with emulated(M5):
        only = ["--device", "Metal", "--only", "forward, packed, float16, 64"]
        assert selftest.main(only) == 0
        with planted({"forward_tensor.metal": WRONG}):
            assert selftest.main(only) == 1
    assert capsys.readouterr().out.count(NAME) == 2


def test_small_calls_run_its_variants():
    """What is compared before the first use is what the call runs."""
    for case in selftest.cases():
        if case.call.which == Pass.FORWARD and case.name.split(", ")[-2:] == ["float16", "64"]:
            views = [(role, engine.shape_of(x.code, x.sizes, METAL, 17)) for role, x in case.call.arrays.items()]
            prepared = selftest.plan(case.call, index=17)
            made = selftest.plan(first_use.small_call(prepared, case.call.function, views, case.call.options), index=17)
            assert set(metal_mlx.variants(prepared)) <= set(metal_mlx.variants(made)), case.name
