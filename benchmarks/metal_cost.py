"""What the Metal kernels cost, as far as a machine without an Apple GPU can tell: counts per 8x8x8 matrix product, by the emulator.

    python benchmarks/metal_cost.py [--rows 256] [--dims 64 96 128 256] [--dtype float16] [--no-mlx]

Beside ours stands MLX's own tiled attention (its "steel" kernel, from the headers of the installed mlx package or of a checkout named by
MLX_SOURCE), measured in the same way. Bytes are those that lanes ask of device and threadgroup memory; what caches answer is not known.
"useful" is the share of the products that the mask leaves any sense in.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

from flash_attn import _core  # noqa: E402
from flash_attn.call import DTYPES, Options, Pass, Role  # noqa: E402
from flash_attn.runners import metal  # noqa: E402
from metal_emulator import Buffer, Emulator  # noqa: E402

METAL = 2  # DeviceKind::metal
TENSORS = 17  # a generation with tensor operations
TYPES = {"float16": "half", "bfloat16": "bfloat", "float32": "float"}
FRAGMENT = 8
HEAD = ("kernel", "products", "useful", "device B", "threadgroup B", "shuffles", "simdgroup barriers", "barriers / 1000", "threadgroup KB")
MATRIX = ("forward", "backward_dq", "backward_dkv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 96, 128, 256])
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--no-mlx", action="store_true")
    arguments = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n|" + " --- |" + " ---: |" * (len(HEAD) - 1))
    for dim in arguments.dims:
        for causal in (False, True):
            for kernel, products, report in ours(arguments.rows, dim, arguments.dtype, causal):
                show(f"{kernel} {dim}{' causal' * causal}", products * needed(arguments.rows, causal), report)
            if not arguments.no_mlx:
                report = steel(arguments.rows, dim, arguments.dtype, causal)
                show(f"MLX steel {dim}{' causal' * causal}", 2 * (dim / FRAGMENT) * needed(arguments.rows, causal), report)


def needed(rows: int, causal: bool) -> float:
    """Matrices of 8 x 8 scores that the mask leaves, whole ones."""
    side = rows / FRAGMENT
    return side * (side + 1) / 2 if causal else side * side


def show(kernel: str, useful: float, report) -> None:
    n = report.multiplications
    values = (
        f"{n}",
        f"{useful / n:.2f}",
        f"{(report.device_read + report.device_written) / n:.1f}",
        f"{(report.threadgroup_read + report.threadgroup_written) / n:.1f}",
        f"{report.shuffles / n:.3f}",
        f"{report.simdgroup_barriers / n:.3f}",
        f"{1000 * report.barriers / n:.2f}",
        f"{report.threadgroup_memory / 1024:.1f}",
    )
    print("| " + " | ".join((kernel, *values)) + " |", flush=True)


def ours(rows: int, dim: int, dtype: str, causal: bool):
    """(kernel, products of one 8 x 8 matrix of scores that it makes at least, report) of each launch with matrix products."""
    rng = np.random.default_rng(0)
    shape, lse = (1, rows, 1, dim), (1, 1, rows)
    arrays = {role: rng.standard_normal(shape).astype(dtype) for role in (Role.Q, Role.K, Role.V, Role.DOUT)}
    options = Options(causal=causal)
    inputs = {role: arrays[role] for role in (Role.Q, Role.K, Role.V)}
    columns = dim / FRAGMENT
    for launch, report, _ in launch_all(Pass.FORWARD, inputs, dtype, options, TENSORS):
        if launch.kernel == "forward_tensor":
            yield launch.kernel, 2 * columns, report
    forward = launch_all(Pass.FORWARD, inputs, dtype, options)
    yield "forward", 2 * columns, next(report for launch, report, _ in forward if launch.kernel == "forward")
    results = {role: array for _, _, written in forward for role, array in written.items()}
    assert results[Role.LSE].shape == lse
    for launch, report, written in launch_all(Pass.BACKWARD, arrays | results, dtype, options):
        if launch.kernel in MATRIX:
            made = {Role.DQ: "dQ", Role.DK: "dK", Role.DV: "dV"}
            name = ", ".join(made[role] for role in written)
            products = {"dQ": 3, "dK, dV": 4, "dK": 3, "dV": 2}[name]
            yield name, products * columns, report


def launch_all(which: int, arrays: dict, dtype: str, options: Options, generation: int = 0):
    """(launch, report, what was written by role) of each launch of a call on a GPU of a generation."""
    done = []

    def launch(one, inputs, outputs):
        variant = one.variant(which, strided=False)
        written = []
        for role, temporary in outputs:
            if temporary >= 0:
                written.append(np.zeros(prepared.temporaries[temporary][1], np.float32))
            else:
                code, shape = next((code, shape) for number, code, shape in prepared.outputs if number == role)
                written.append(np.zeros(shape, np.float32 if code == DTYPES["float32"] else dtype))
        params = np.frombuffer(one.params, np.int32)
        codes = dict(zip((*variant.inputs, *variant.outputs), (DTYPES[array.dtype.name] for array in (*inputs, params, *written))))
        buffers = [Buffer(array, alignment=16) for array in (*inputs, params, *written)]
        grid = [blocks * threads for blocks, threads in zip(one.blocks, one.threads)]
        report = emulator().launch(metal.complete_text(variant, codes), variant.name, buffers, grid, one.threads).check()
        done.append((one, report, {role: array for (role, _), array in zip(outputs, written) if role >= 0}))
        return written

    prepared = _core.prepare("cost", which, [(role, described(array, generation)) for role, array in arrays.items()], tuple(options))
    metal.run(prepared, arrays, {}, launch)
    return done


def described(array: np.ndarray, generation: int):
    strides = [stride // array.itemsize for stride in array.strides]
    return _core.view_of_address(0, DTYPES[array.dtype.name], list(array.shape), strides, METAL, generation)


@functools.cache
def emulator() -> Emulator:
    return Emulator("counted")


def steel(rows: int, dim: int, dtype: str, causal: bool):
    """The report of MLX's kernel, per head: it runs two, which is all the same per product."""
    import test_metal_emulator_mlx as mlx

    block = (32, 32 if dim < 128 else 16)
    header = "steel/attn/kernels/steel_attention.h"
    report, _ = mlx.run_tiled("attention", header, block, "counted", TYPES[dtype], dim, rows, rows, causal)
    for count in ("multiplications", "device_read", "device_written", "threadgroup_read", "threadgroup_written", "shuffles"):
        setattr(report, count, getattr(report, count) / 2)
    report.simdgroup_barriers /= 2
    report.barriers /= 2
    report.multiplications = int(report.multiplications)
    return report


if __name__ == "__main__":
    main()
