"""The way of a call to Metal: lazy on a GPU, emulated here; transforms, gradients that nobody asks for, dropout, strides, the programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
from mlx.utils import tree_flatten  # noqa: E402

import flash_attn.mlx  # noqa: E402
from fake_gpu import on_trusted_gpu as on_gpu  # noqa: E402
from flash_attn import _core, flash_attn_func, flash_attn_varlen_func  # noqa: E402
from flash_attn.call import METAL, Options, Pass, Role  # noqa: E402
from flash_attn.engine import shape_of  # noqa: E402
from flash_attn.runners import metal, metal_mlx  # noqa: E402
from target_metal import emulated, why_not  # noqa: E402

if why_not():
    pytest.skip(why_not(), allow_module_level=True)
ROOT = Path(__file__).parent.parent
B, S, H, HK, D = 2, 20, 4, 2, 32


def normal(*shape):
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


Q, K, V = normal(B, S, H, D), normal(B, S, HK, D), normal(B, S, HK, D) + 1
BIAS, SINK = normal(1, H, S, S), normal(H)


def attend(q, k=K, v=V, bias=BIAS, sink=SINK):
    return flash_attn_func(q, k, v, causal=True, attn_bias=bias, learnable_sink=sink)


def close(a, b, tolerance=2e-5):
    return all(
        (mx.abs(x - y).max() <= tolerance * mx.maximum(1.0, mx.abs(y).max())).item()
        for (_, x), (_, y) in zip(tree_flatten(a), tree_flatten(b), strict=True)
    )


def kernels(function, *arrays) -> list[str]:
    """The names of the kernels in a function's graph, up to the first part that MLX cannot export."""
    names = []

    def note(entry):
        if entry.get("type") == "primitive" and entry["name"] == "CustomKernel":
            names.append(re.match(r"custom_kernel_fa_([a-z_]+?)_[a-z]+\d", entry["arguments"][0]).group(1))

    try:
        mx.export_function(note, function, *arrays)
    except ValueError as error:
        assert "Unable to get state for primitive" in str(error)
    return names


# ---- lazy -------------------------------------------------------------------------------------------------------------------


def test_nothing_is_evaluated():
    """While a function is exported, evaluating anything raises."""
    with on_gpu():
        assert kernels(lambda q, k, v: flash_attn.mlx.inference(q, k, v, causal=True), Q, K, V) == ["forward"]
        assert kernels(lambda q, k, v: flash_attn_func(q, k, v), Q, K, V) == ["forward"]
        cache = lambda q, k, v: flash_attn.flash_attn_with_kvcache(q, k, v, cache_seqlens=mx.array([3, 9], dtype=mx.int32))  # noqa: E731
        kernels(cache, Q[:, :1], K, V)  # MLX cannot export all of it, but evaluating would have raised another error


def test_one_kernel_object_a_variant():
    metal_mlx.kernel_of.cache_clear()
    with on_gpu():
        made = []
        for length in (5, 9, 13):
            kernels(lambda q, k, v: flash_attn.mlx.inference(q, k, v), *(x[:, :length] for x in (Q, K, V)))
            made.append(metal_mlx.kernel_of.cache_info().currsize)
        kernels(lambda q, k, v: flash_attn.mlx.inference(q, k, v, softcap=2.0), Q, K, V)
    assert made == [1, 1, 1] and metal_mlx.kernel_of.cache_info().currsize == 2


def spoiled(names):
    """kernel_of() whose kernels give zeros, but results called `names` raise when they are evaluated."""

    def kernel_of(variant):
        def launch(output_shapes, output_dtypes, **others):
            assert others.keys() == {"inputs", "grid", "threadgroup"}
            results = []
            for name, shape, dtype in zip(variant.outputs, output_shapes, output_dtypes, strict=True):
                results.append(mx.zeros(shape, dtype))
                if name in names:
                    failure = mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)
                    results[-1] = results[-1] + failure[0, 0].astype(dtype)
            return results

        return launch

    return mock.patch.object(metal_mlx, "kernel_of", kernel_of)


@pytest.mark.parametrize("asked", range(5), ids=["dq", "dk", "dv", "dbias", "dsink"])
def test_gradients_that_nobody_asks_for_are_not_computed(asked):
    launches = [["dq"], ["dk", "dv"], ["dk", "dv"], ["dbias"], ["dsink"]]
    others = {name for group in launches if group != launches[asked] for name in group}
    loss = lambda *x: attend(*x).sum()  # noqa: E731
    arrays = (Q, K, V, BIAS, SINK)
    with on_gpu(), spoiled(others):
        mx.eval(mx.grad(loss, argnums=asked)(*arrays))
    with on_gpu(), spoiled(launches[asked]), pytest.raises((RuntimeError, ValueError)):
        mx.eval(mx.grad(loss, argnums=asked)(*arrays))


# ---- emulated ---------------------------------------------------------------------------------------------------------------

TRANSFORMS = {
    "grad": lambda: mx.grad(lambda *x: (attend(*x) ** 2).sum(), argnums=(0, 1, 2, 3, 4))(Q, K, V, BIAS, SINK),
    "value_and_grad": lambda: mx.value_and_grad(lambda k: attend(Q, k).sum())(K),
    "grad of grad": lambda: mx.grad(lambda q: (mx.grad(lambda q: (attend(q) ** 2).sum())(q) ** 2).sum())(Q),
    "vmap": lambda: flash_attn.mlx.vmap(lambda q: attend(q))(mx.stack([Q, Q + 1])),
    "vmap of grad": lambda: flash_attn.mlx.vmap(mx.grad(lambda q, s: (attend(q, sink=s) ** 2).sum(), argnums=(0, 1)))(
        mx.stack([Q, Q + 1]), mx.stack([SINK, SINK + 1])
    ),
    "compile": lambda: mx.compile(lambda q: attend(q))(Q),
    "jvp": lambda: mx.jvp(lambda q: attend(q), [Q], [K.sum() + Q])[1],
    "checkpoint": lambda: mx.grad(mx.checkpoint(lambda q: attend(q).sum()))(Q),
    "log-sum-exp": lambda: mx.grad(lambda q: flash_attn_func(q, K, V, return_attn_probs=True)[1].sum())(Q),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    expected = TRANSFORMS[name]()
    mx.eval(expected)
    with emulated():
        found = TRANSFORMS[name]()
        mx.eval(found)
    assert close(found, expected)


def test_vmap_on_a_gpu_reaches_kernels():
    """MLX's own vmap cannot map our kernels: ours traces the formula, and maps to kernels on the folded batch."""
    stacked = mx.stack([Q, Q + 1])
    with on_gpu(), pytest.raises(ValueError, match="vmap"):
        mx.export_function(lambda entry: None, mx.vmap(lambda q: attend(q)), stacked)
    with on_gpu(), spoiled(()):
        mx.eval(flash_attn.mlx.vmap(lambda q: attend(q))(stacked))


def test_dropout_is_the_cpus_bit_for_bit():
    def signs():
        state = mx.array([3, 7], dtype=mx.int64)
        return flash_attn_func(Q, K, V, dropout_p=0.3, rng_state=state, return_attn_probs=True)[2] > 0

    expected = signs()
    mx.eval(expected)
    with emulated():
        assert mx.array_equal(signs(), expected).item()


@pytest.mark.parametrize("build", ["plain", "instrumented"])
def test_views_are_read_where_they_are(build):
    """Transposed, reversed and sliced q, k, v and fewer than 8 sequences, whose arrays come in constant memory."""
    packed = normal(3, HK, 2 * S, D)
    q, k, v = (packed[i].swapaxes(0, 1)[::2] for i in range(3))
    ends = mx.array([0, 3, 3, S], dtype=mx.int32)
    calls = [
        lambda: flash_attn_func(q[None], k[None, ::-1], v[None, ::-1]),
        lambda: flash_attn_varlen_func(q, k, v, ends, ends, S, S, causal=True),
    ]
    for call in calls:
        expected = call()
        mx.eval(expected)
        with emulated(build):
            assert close(call(), expected)


def test_values_that_no_kernel_can_take_are_an_error():
    with emulated(), mx.stream(mx.cpu):
        x = mx.zeros((1, 2, 1, 8), dtype=mx.float64)
        with pytest.raises(NotImplementedError, match=r"\[flash_attn_func\] no Metal kernel takes this call: .*float64"):
            flash_attn_func(x, x, x)


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "mlx").glob("*.py")), ids=lambda path: path.stem)
def test_programs_give_the_cpus_numbers(path):
    """Each program checks its own results against the formula."""
    setting = {"FLASH_ATTENTION_METAL": "emulate", "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-B", path], capture_output=True, text=True, timeout=900, env=os.environ | setting)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "checked: " in result.stdout


# ---- texts ------------------------------------------------------------------------------------------------------------------


def test_a_complete_text_says_what_mlx_would_say():
    """The signature that torch needs: the same kernel by it gives what MLX's signature gives."""
    shape, names = (1, 8, 1, 8), dict.fromkeys(("q", "k", "v", "out", "lse"), 3)
    views = [(role, shape_of(3, shape, METAL)) for role in (Role.Q, Role.K, Role.V)]
    prepared = _core.prepare("flash_attn_func", Pass.FORWARD, views, Options())
    (launch,) = metal.launches_of(prepared)
    variant = launch.variant(Pass.FORWARD, False, metal.NONE)
    text = metal.complete_text(variant, names)
    arrays = [np.random.default_rng(i).standard_normal(shape, dtype=np.float32) for i in range(3)]
    out, lse = np.zeros(shape, np.float32), np.zeros((1, 1, 8), np.float32)
    grid = tuple(b * t for b, t in zip(launch.blocks, launch.threads, strict=True))
    buffers = [*arrays, np.frombuffer(launch.params, np.int32), out, lse]
    metal_mlx.emulator("plain").launch(text, variant.name, buffers, grid, launch.threads).check()
    expected = flash_attn_func(*arrays)
    assert np.abs(out - expected).max() < 1e-5


def test_every_constant_is_part_of_a_name():
    """MLX keeps compiled kernels by name: two variants must not share one."""
    one = metal.Launch("plain.metal", "forward_plain", (("FA_F", 0), ("FA_VECTOR", 1)), (1, 1, 1), (32, 1, 1), ((0, 0, -1, False),), b"")
    names = {one.variant(Pass.FORWARD, True, vector).name for vector in (metal.NONE, metal.ASKED)}
    names |= {one._replace(constants=(("FA_F", -1), ("FA_VECTOR", 1))).variant(Pass.FORWARD, True).name}
    assert len(names) == 3
