"""python -m flash_attn bench: our attention beside MLX's own on this machine: time and peak memory in a table and, with matplotlib, a plot.

Both run where MLX computes: on the GPU of a Mac, else on the CPU. "train" is the output and all three gradients. Each time is the median of
alternating runs; memory is MLX's peak while one call runs, arguments and results included.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    job: str  # "forward" or "train"
    causal: bool
    length: int
    seconds: tuple[float, float]  # ours, MLX's
    bytes: tuple[int, int]


HEAD = ("call", "length", "ours ms", "MLX ms", "MLX / ours", "ours MB", "MLX MB")


def measure(job: str, causal: bool, length: int, heads: int, dim: int, dtype: str, seconds: float) -> Row:
    """One call by both."""
    import mlx.core as mx

    from flash_attn import flash_attn_func

    q, k, v, dout = (mx.random.normal((1, length, heads, dim), key=mx.random.key(i)).astype(getattr(mx, dtype)) for i in range(4))
    mx.eval(q, k, v, dout)
    theirs_of = mx.fast.scaled_dot_product_attention

    def theirs(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        return theirs_of(q, k, v, scale=dim**-0.5, mask="causal" if causal else None).swapaxes(1, 2)

    def ours(q: Any, k: Any, v: Any) -> Any:
        return flash_attn_func(q, k, v, causal=causal)

    if job == "forward":
        calls = [lambda f=f: mx.eval(f(q, k, v)) for f in (ours, theirs)]
    else:
        calls = [lambda f=f: mx.eval(mx.vjp(f, [q, k, v], [dout])) for f in (ours, theirs)]
    return Row(job, causal, length, _times(calls, seconds), tuple(_peak(call) for call in calls))


def _times(calls: list[Callable[[], None]], seconds: float) -> tuple[float, ...]:
    found: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()  # compiles
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[0]) < 3:
        for call, times in zip(calls, found, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return tuple(statistics.median(times) for times in found)


def _peak(call: Callable[[], None]) -> int:
    import mlx.core as mx

    mx.clear_cache()
    mx.reset_peak_memory()
    call()
    return mx.get_peak_memory()


def line(row: Row) -> str:
    """A row of the table."""
    ours, theirs = row.seconds
    call = row.job + (" causal" if row.causal else "")
    numbers = (f"{1e3 * ours:.2f}", f"{1e3 * theirs:.2f}", f"{theirs / ours:.2f}", *(f"{n / 1e6:.1f}" for n in row.bytes))
    return "| " + " | ".join((call, str(row.length), *numbers)) + " |"


def plot(rows: list[Row], path: str) -> None:
    """Time and memory over the length, ours and MLX's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5))
    for axis, what, values in zip(
        axes, ("ms", "MB"), (lambda r: [1e3 * s for s in r.seconds], lambda r: [n / 1e6 for n in r.bytes]), strict=True
    ):
        for number, (job, causal) in enumerate(dict.fromkeys((r.job, r.causal) for r in rows)):
            some = [r for r in rows if (r.job, r.causal) == (job, causal)]
            for i, (who, style) in enumerate((("ours", "-o"), ("MLX", "--x"))):
                words = f"{job}{' causal' if causal else ''}, {who}"
                axis.plot([r.length for r in some], [values(r)[i] for r in some], style, color=f"C{number}", label=words)
        axis.set(xscale="log", yscale="log", xlabel="rows and keys", ylabel=what)
        axis.legend()
    figure.savefig(path, bbox_inches="tight")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m flash_attn bench", description="Our attention beside MLX's own.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--job", choices=("forward", "train"), nargs="+", default=["forward", "train"])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each call")
    parser.add_argument("--plot", default="flash_attn_bench.png", metavar="FILE", help="'' for none")
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("mlx") is None:
        print("needs MLX, to which it compares: pip install 'flash-attn[mlx]'", file=sys.stderr)
        return 2
    import mlx.core as mx

    print(f"MLX {mx.__version__} on {mx.default_device()}, {given.heads} heads of {given.dim}, {given.dtype}")
    print("| " + " | ".join(HEAD) + " |\n|" + " --- |" + " ---: |" * (len(HEAD) - 1), flush=True)
    rows = []
    for job in given.job:
        for causal in (False, True):
            for length in given.lengths:
                rows.append(measure(job, causal, length, given.heads, given.dim, given.dtype, given.seconds))
                print(line(rows[-1]), flush=True)
    if given.plot and importlib.util.find_spec("matplotlib"):
        plot(rows, given.plot)
        print(f"plot: {given.plot}")
    return 0
