"""The plain formula in array code, over NumPy and MLX, against the reference; in blocks much smaller than it would choose."""

from unittest import mock

import numpy as np
import pytest

import cases
import reference
from flash_attn import formula, philox
from flash_attn.frameworks.numpy import NumPy
from judge import try_backward, try_forward, try_kvcache
from targets import NumPyTarget
from tolerance import DTYPES

mx = pytest.importorskip("mlx.core")
from target_mlx import TracedMLXTarget, to_mlx, to_numpy  # noqa: E402


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(formula, "BLOCK_SCORES", 4000)
    monkeypatch.setattr(formula, "MIN_BLOCK_ROWS", 8)


def traced():
    """Inside, NumPy arrays are as if their values could not be had."""
    return mock.patch.multiple(NumPy, traced=lambda self, arrays: True, quick=lambda self, *call: None)


class TracedNumPyTarget(NumPyTarget):
    def forward(self, case, arrays):
        with traced():
            return super().forward(case, arrays)


def check(target, case):
    try_forward(target, case)
    if not case.page:  # caches have no backward
        with traced():
            try_backward(target, case)


@pytest.mark.parametrize("case", dict.fromkeys([*cases.single, *cases.mixed, *cases.paged_varlen]), ids=str)
def test_numpy(case):
    check(TracedNumPyTarget(), case)


@pytest.mark.parametrize("case", dict.fromkeys([*cases.pairs, *cases.varlen, *cases.dtypes]), ids=str)
def test_mlx(case):
    check(TracedMLXTarget(), case)


@pytest.mark.parametrize("case", dict.fromkeys(cases.edges[::3]), ids=str)
def test_edges(case):
    check(TracedMLXTarget(), case)


@pytest.mark.parametrize("case", dict.fromkeys(cases.decode), ids=str)
def test_caches(case):
    try_kvcache(TracedMLXTarget(), case)


@pytest.mark.parametrize("rows, keys", [((13, 75), (21, 130)), ((0, 16), (0, 32)), ((5, 6), (31, 33)), ((2**28, 2**28 + 3), (7, 9))])
@pytest.mark.parametrize("seed", [[0x123456789ABCDEF0, 7], [-5, -3], [0xFFFFFFFF, 0x9ABCDEF0, 0xFFFFFFF0, 0]], ids=str)
@pytest.mark.parametrize("framework", ["numpy", "mlx"])
def test_random_bits(framework, seed, rows, keys):
    seed = np.array(seed, np.int64 if len(seed) == 2 else np.uint32)
    if framework == "numpy":
        from flash_attn.frameworks.numpy import FRAMEWORK

        found = philox.bits(FRAMEWORK.namespace(), seed, 6, rows, keys, (2, 3))
    else:
        from flash_attn.frameworks.mlx import FRAMEWORK

        found = to_numpy(philox.bits(FRAMEWORK.namespace(), to_mlx(seed), 6, rows, keys, (2, 3)))
    assert found.shape == (2, 3, rows[1] - rows[0], keys[1] - keys[0])
    for threshold in (1, 1000, 60000):
        kept = [reference.kept(np.arange(*rows), np.arange(*keys), stream, 1 - threshold / 65536, seed) for stream in range(6)]
        assert ((found < threshold) == np.stack(kept).reshape(found.shape)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_of_mlx_arrays(dtype):
    import flash_attn

    random = np.random.default_rng(0)
    outs = random.standard_normal((2, 1, 6, 2, 4)).astype(DTYPES[dtype])
    lses = random.standard_normal((2, 1, 2, 6)).astype(np.float32)
    lses[0, :, :, 1] = lses[:, :, :, 2] = -np.inf  # a part without keys, and a row without any
    outs[0, :, 1] = outs[:, :, 2] = 0
    expected = reference.merge(outs[0], lses[0], outs[1], lses[1])
    out, lse = flash_attn.merge(*(to_mlx(x) for x in (outs[0], lses[0], outs[1], lses[1])))
    rounding = 1e-6 if dtype == "float32" else 2.0**-8
    np.testing.assert_allclose(to_numpy(out).astype(np.float64), expected[0], atol=rounding * 4, rtol=rounding)
    np.testing.assert_allclose(to_numpy(lse), expected[1], atol=1e-6, rtol=1e-6)
    out, lse = flash_attn.flash_attn_combine(to_mlx(outs), to_mlx(np.ascontiguousarray(lses.swapaxes(2, 3))))
    np.testing.assert_allclose(to_numpy(out).astype(np.float64), expected[0], atol=rounding * 4, rtol=rounding)
    np.testing.assert_allclose(to_numpy(lse), expected[1].swapaxes(1, 2), atol=1e-6, rtol=1e-6)


def test_merge_has_gradients_also_without_keys():
    from flash_attn import merge

    random = np.random.default_rng(1)
    outs = [mx.array(random.standard_normal((1, 3, 1, 2)).astype(np.float32)) for _ in range(2)]
    lses = [mx.array([[[0.3, -np.inf, -np.inf]]]), mx.array([[[0.7, 0.2, -np.inf]]])]
    gradients = mx.grad(lambda a, b, c, d: merge(a, b, c, d)[0].sum(), argnums=(0, 1, 2, 3))(outs[0], lses[0], outs[1], lses[1])
    share = 1 / (1 + np.exp(0.4))  # of the first part in row 0
    difference = float((outs[0][0, 0] - outs[1][0, 0]).sum())
    np.testing.assert_allclose(to_numpy(gradients[0])[0, :, 0], [[share] * 2, [0, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(to_numpy(gradients[1])[0, 0], [share * (1 - share) * difference, 0, 0], atol=1e-6)
    np.testing.assert_allclose(to_numpy(gradients[2])[0, :, 0], [[1 - share] * 2, [1, 1], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(to_numpy(gradients[3])[0, 0], [-share * (1 - share) * difference, 0, 0], atol=1e-6)
