"""The emulator against text that was not written for it: launches captured from MLX's metal_kernel, and MLX's own attention kernels.

The kernels' sources come from the checkout that the variable MLX_SOURCE names, or from the headers of the installed mlx package.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from metal_emulator import Buffer, Emulator, EmulatorError, capture
from metal_emulator.capture import flatten
from metal_emulator.compiler import compiler

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
try:
    compiler()
except EmulatorError as error:
    pytest.skip(str(error), allow_module_level=True)
if tuple(map(int, mx.__version__.split(".")[:2])) < (0, 32):
    pytest.skip("before 0.32 MLX cannot build a metal_kernel without Metal", allow_module_level=True)

BUILDS = ("plain", "instrumented")
SOURCE = Path(os.environ.get("MLX_SOURCE") or Path(mx.__file__).parent / "include")
KERNELS = "mlx/backend/metal/kernels"
DTYPES = {"float": np.float32, "half": np.float16, "bfloat16_t": ml_dtypes.bfloat16}
TOLERANCE = {"float": 3e-6, "half": 2e-3, "bfloat16_t": 1.6e-2}


# ---- captured launches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_capture(name, build):
    kernel = mx.fast.metal_kernel(
        name="scaled",
        input_names=["x", "small", "number"],
        output_names=["out", "size"],
        source="""
            uint i = thread_position_in_grid.x;
            out[i] = T(float(x[i * x_strides[0]]) * small[N] + number) + (ODD ? T(1) : T(0));
            if (i == 0) size[0] = x_shape[0] * 10 + x_ndim;""",
        ensure_row_contiguous=False,
    )
    dtype = getattr(mx, name)
    whole = np.arange(80).astype(DTYPES[{"float32": "float", "float16": "half", "bfloat16": "bfloat16_t"}[name]])
    x = whole[::2]
    launch = capture(
        kernel,
        [x, mx.array([1.0, 2.0, 3.0]), 0.5],
        grid=(40, 1, 1),
        threadgroup=(256, 1, 1),
        output_shapes=[(40,), (1,)],
        output_dtypes=[dtype, mx.int32],
        template=[("T", dtype), ("N", 2), ("ODD", True)],
    )
    assert launch.name.startswith("custom_kernel_scaled") and "const constant float* small" in launch.text
    assert (launch.grid, launch.threadgroup) == ((40, 1, 1), (256, 1, 1))
    report = launch.run(Emulator(build)).check()
    assert report.threads == 40 and report.groups == 1  # the group is cut to the grid
    want = ((x.astype(np.float32) * 3 + np.float32(0.5)).astype(x.dtype) + np.ones((), x.dtype)).astype(x.dtype)
    np.testing.assert_array_equal(launch.outputs[0].astype(np.float32), want.astype(np.float32))
    assert launch.outputs[1].tolist() == [401]


def test_capture_copies_where_mlx_does_and_fills_outputs():
    source = "uint i = thread_position_in_grid.x; if (i < 8) out[i] += x[i];"
    kernel = mx.fast.metal_kernel(name="copied", input_names=["x"], output_names=["out"], source=source)
    x = np.arange(32, dtype=np.float32).reshape(4, 8)[:, ::4]
    geometry = {"grid": (9, 1, 1), "threadgroup": (9, 1, 1), "output_shapes": [(9,)], "output_dtypes": [mx.float32]}
    launch = capture(kernel, [x], **geometry, init_value=100.0)
    launch.run(Emulator("instrumented")).check()
    assert launch.outputs[0].tolist() == [*(100 + x.ravel()), 100]
    assert capture(kernel, [x], **geometry).run(Emulator("instrumented")).kinds() == {"uninitialised read"}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_capture_hands_over_strides_of_mlx_arrays(dtype):
    source = "uint i = thread_position_in_grid.x; out[i] = x[i * x_strides[0] + x_strides[1]];"
    names = {"input_names": ["x"], "output_names": ["out"]}
    kernel = mx.fast.metal_kernel(name="strided", **names, source=source, ensure_row_contiguous=False)
    x = mx.arange(32).astype(dtype).reshape(4, 8).T
    mx.eval(x)
    launch = capture(kernel, [x], grid=(8, 1, 1), threadgroup=(8, 1, 1), output_shapes=[(8,)], output_dtypes=[dtype])
    launch.run(Emulator("instrumented")).check()
    assert launch.outputs[0].astype(np.float32).tolist() == x[:, 1].tolist()
    assert [buffer.array.tolist() for buffer in launch.buffers[1:2]] == [[1, 8]]


def test_capture_gives_mlx_own_errors():
    kernel = mx.fast.metal_kernel(name="two", input_names=["x", "y"], output_names=["out"], source="out[0] = x[0] + y[0];")
    geometry = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)], "output_dtypes": [mx.float32]}
    with pytest.raises(ValueError, match="Expected `inputs` to have size 2 but got size 1"):
        capture(kernel, [np.zeros(8, np.float32)], **geometry)


# ---- MLX's kernels -----------------------------------------------------------------------------------------------------------------


def source(header: str) -> str:
    """MLX's utils.h and one of its kernel headers."""
    seen: set[Path] = set()
    return "".join(flatten(Path(KERNELS) / name, SOURCE, seen) for name in ("utils.h", header))


def instance(name: str, function: str, *arguments) -> str:
    """The line by which MLX makes a kernel of a template."""
    return f'instantiate_kernel("{name}", {function}, {", ".join(map(str, arguments))})\n'


def attention(q, k, v, scale, causal=False, mask=None, sinks=None):
    """float64 attention of (heads, rows, dim) arrays; heads of k and v are shared by groups of q's."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, len(q) // len(x), 0) for x in (k, v))
    scores = q @ k.swapaxes(1, 2) * scale
    rows, keys = scores.shape[1:]
    if causal:
        scores[:, np.arange(keys) > np.arange(rows)[:, None] + keys - rows] = -np.inf
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    if sinks is not None:
        scores = np.concatenate([np.broadcast_to(sinks.astype(np.float64)[:, None, None], (len(q), rows, 1)), scores], 2)
        v = np.concatenate([np.zeros_like(v[:, :1]), v], 1)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    return weights / weights.sum(2, keepdims=True) @ v


def tensors(name, heads, kv_heads, rows, keys, dim):
    rng = np.random.default_rng(rows + keys + dim)
    return [rng.standard_normal((h, n, dim)).astype(DTYPES[name]) for h, n in ((heads, rows), (kv_heads, keys), (kv_heads, keys))]


def run_tiled(
    function, header, block, build, name, dim, rows, keys, causal=False, mask=None, sinks=None, order="ascending", rows_a_group=4
):
    """MLX's tiled attention: (report, error against float64)."""
    heads, kv_heads = 2, 1
    q, k, v = tensors(name, heads, kv_heads, rows, keys, dim)
    bq, bk = block
    out = np.zeros_like(q)
    strides = [(x.size, x.shape[1] * dim, dim) for x in (q, k, v, out)]
    numbers = (-(-rows // bq), -(-keys // bk), rows // bq, keys // bk, rows % bq, keys % bk, keys - rows)
    params = struct.pack("6if7i12q", 1, heads, dim, rows, keys, heads // kv_heads, dim**-0.5, *numbers, *np.ravel(strides))
    masks = None if mask is None else Buffer(np.array([0, 0, keys], np.int64).view(np.uint8), alignment=8)
    constants = {200: rows % bq == 0, 201: keys % bk == 0, 300: mask is not None, 301: causal, 302: sinks is not None}
    mask_type = "bool" if mask is not None else name
    text = source(header)
    # Newer MLX has a value dimension and an output for the log-sum-exp, older has neither.
    dims = (dim, dim) if "int BV," in text else (dim,)
    text += instance("attention", function, name, bq, bk, *dims, rows_a_group, 1, mask_type, "float")
    buffers = [q, k, v, out, Buffer(np.frombuffer(params, np.uint8), alignment=8), masks, mask, sinks]
    buffers += [None] * ("save_lse" in text)
    grid = (32 * numbers[0], rows_a_group * heads, 1)
    report = Emulator(build, order).launch(text, "attention", buffers, grid, (32, rows_a_group, 1), constants)
    return report, np.abs(out.astype(np.float64) - attention(q, k, v, dim**-0.5, causal, mask, sinks)).max()


def test_mlx_tiled_attention():
    mask = np.random.default_rng(0).random((70, 100)) < 0.7
    mask[:, 0] = True
    cases = (
        {"name": "half", "dim": 64, "rows": 70, "keys": 100, "causal": True},
        {"name": "float", "dim": 64, "rows": 64, "keys": 32, "order": "descending"},
        {"name": "bfloat16_t", "dim": 64, "rows": 70, "keys": 100, "mask": mask},
        {"name": "half", "dim": 128, "rows": 33, "keys": 50, "sinks": np.array([0.5, -1], np.float16)},
    )
    for case in cases:
        for build in BUILDS:
            block = (32, 16 if case["dim"] == 128 else 32)
            report, error = run_tiled("attention", "steel/attn/kernels/steel_attention.h", block, build, **case)
            assert not report.faults, (case, report.faults[:3])
            assert error < TOLERANCE[case["name"]], (case, error)


def test_mlx_tiled_attention_over_the_threadgroup_limit():
    # An M4 Pro refuses this kernel with the same number of bytes (github.com/jundot/omlx, issue 3795).
    report, _ = run_tiled("attention", "steel/attn/kernels/steel_attention.h", (32, 16), "plain", "float", 256, 33, 40)
    assert [fault.kind for fault in report.faults] == ["limit"] and report.threadgroup_memory == 53760


def test_mlx_tensor_operations():
    for build, causal in zip(BUILDS, (True, False)):
        header = "steel/attn/kernels/steel_attention_nax.h"
        report, error = run_tiled("attention_nax", header, (64, 32), build, "half", 64, 70, 100, causal)
        assert not report.faults, report.faults[:3]
        assert error < TOLERANCE["half"] and report.multiplications > 0 and report.threadgroup_memory == 0


def test_mlx_decode():
    keys, dim, heads, kv_heads = 77, 64, 4, 2
    text = source("sdpa_vector.h") + instance("decode", "sdpa_vector", "half", dim)
    q, k, v = tensors("half", heads, kv_heads, 3, keys, dim)
    numbers = [
        np.array(n, t) for n, t in ((heads // kv_heads, np.int32), (keys, np.int32), *[(n, np.uint64) for n in (keys * dim, dim) * 2])
    ]
    for build, order in zip(BUILDS, ("descending", "ascending")):
        out = np.zeros_like(q)
        buffers = [q, k, v, out, *numbers, np.array(0.125, np.float32), *[None] * 7]
        report = Emulator(build, order).launch(text, "decode", buffers, (1024 * heads, 3, 1), (1024, 1, 1), {22: True})
        report.check()
        assert np.abs(out.astype(np.float64) - attention(q, k, v, 0.125, causal=True)).max() < TOLERANCE["half"]
