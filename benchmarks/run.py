#!/usr/bin/env python3
"""Benchmarks: ours against the plain NumPy formula, MLX and PyTorch, interleaved in one process, as rates, ratios and shares of the peak.

    python benchmarks/run.py --backend cpu                                    the usual grid, on one thread and on all
    python benchmarks/run.py --job forward --dims 64,128 --lens 512,2048 --peers torch --threads 2
    python benchmarks/run.py --base ours-torch --peers torch,torch-padded,torch-nested       PyTorch's tensors against PyTorch
    python benchmarks/run.py --job overhead        what a tiny call costs
    python benchmarks/run.py --memory              peak memory of forward + backward
    python benchmarks/run.py --backend cuda        on an NVIDIA GPU, against PyTorch's FlashAttention-2 (cuda_bench.py)

In each round every contender runs once, in a rotating order, the peak of fused multiply-adds among them; the table shows medians, and
the median over rounds of the ratio peer / ours (above 1: ours is faster). One thread is measured in CPU time, on one core; more in wall
time, and the peak always in CPU time: on a busy machine the share of it drops, and only ratios mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "tests"))

JOBS = ("forward", "backward", "decode", "varlen", "short", "overhead")
SLOW = 3.0  # seconds: a contender that takes longer than this runs only once
# seconds: idle workers of OpenMP and OpenBLAS keep their processors that long after a call, and the next contender lacks them
SETTLE = 0.03
TOO_SLOW = 8.0  # seconds: one that would take longer, by its rate in an earlier case, does not run


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--job", type=words, default=list(JOBS), help=f"some of {','.join(JOBS)}")
    parser.add_argument("--base", default="ours", choices=["ours", "ours-mlx", "ours-torch"], help="whose time the ratios are of")
    parser.add_argument("--peers", type=words, default=["ours-mlx", "ours-torch", "numpy", "mlx", "torch", "torch-padded", "torch-nested"])
    parser.add_argument("--dtypes", type=words, help="default: float32,bfloat16,float16; cuda: bfloat16")
    parser.add_argument("--dims", type=numbers, help="default: 64,128; cuda: 64,128,256")
    parser.add_argument("--lens", type=numbers, default=None, help="sequence lengths, or cache lengths of decode")
    parser.add_argument("--masks", type=words, default=["full", "causal"])
    parser.add_argument("--heads", type=int, default=None)
    parser.add_argument("--threads", type=numbers, default=None, help="default: 1 and all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0, help="budget of one line of the table")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--plot", type=Path, help="a picture of all lines")
    parser.add_argument("--json", type=Path, help="all times")
    parser.add_argument("--save", action="store_true", help="table and times into benchmarks/results/, with machine and commit")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def cases(args: argparse.Namespace):
    """(job, case, amount of work, unit): operations for GFLOP/s, bytes for GB/s."""
    from cases import CacheCase, Case
    from tolerance import DTYPES

    for job in args.job:
        if job == "overhead":
            continue
        for dtype in args.dtypes:
            for dim in args.dims:
                heads = args.heads or (32 if job in ("decode", "short") else 8)
                if job == "decode":
                    for length in args.lens or [8192]:
                        case = CacheCase(
                            batch=1, heads=heads, kv_heads=max(1, heads // 4), dim=dim, dtype=dtype, capacity=length, cached=(length,)
                        )
                        yield job, case, 2.0 * length * case.kv_heads * dim * DTYPES[dtype].itemsize, "GB/s"
                    continue
                for mask in args.masks:
                    common = Case(batch=1, heads=heads, dim=dim, dtype=dtype, causal=mask == "causal", dlse=False)
                    if job == "varlen":
                        lengths = tuple((n, n) for n in (37, 512, 130, 1024, 64, 301, 257, 750))
                        sizes = [(common | Case(lengths=lengths), 1, sum(n * n for n, _ in lengths))]
                    elif job == "short":
                        sizes = [(common | Case(batch=8, rows=n, keys=n), 8, n * n) for n in args.lens or [64, 128, 256]]
                    else:
                        sizes = [(common | Case(rows=n, keys=n), 1, n * n) for n in args.lens or [512, 2048, 4096]]
                    for case, batch, scores in sizes:
                        operations = 4.0 * batch * heads * scores * dim * (0.5 if case.causal else 1)
                        yield job, case, operations * (2.5 if job == "backward" else 1), "GFLOP/s"


def label(job: str, case) -> str:
    shape = f"{job} {case.dtype} D{case.dim}"
    if job == "decode":
        return f"{shape} KV{case.capacity} H{case.heads}/{case.kv_heads}"
    size = "mixed" if case.lengths else f"S{case.rows}"
    return f"{shape} {size} {'causal' if case.causal else 'full'} B{case.batch} H{case.heads}"


def interleave(functions: dict, rounds: int, budget: float, clock, settle: float) -> dict[str, list[float]]:
    """Seconds of each function in each round; one that is slow is timed once.

    settle: seconds for which a function runs untimed before it is timed, once at least; 0: not at all.
    """
    times: dict[str, list[float]] = {}
    for name, function in functions.items():
        start = clock()
        function()
        first = clock() - start
        times[name] = [first] if first > SLOW else []
    names = [name for name in functions if not times[name]]
    end = time.perf_counter() + budget
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            settled = time.perf_counter() + settle
            while settle:
                functions[name]()
                if time.perf_counter() > settled:
                    break
            start = clock()
            functions[name]()
            times[name].append(clock() - start)
        if time.perf_counter() > end and turn >= 2:
            break
    return times


def line(job: str, case, amount: float, unit: str, args: argparse.Namespace, peak, rates: dict) -> dict:
    """Measures and prints one line of the table."""
    import contenders

    from cases import inputs

    threads = args.threads[0]
    arrays = inputs(case)
    functions = {}
    for name in [args.base, *args.peers]:
        known = rates.get((name, job, case.dtype))
        if not contenders.installed(name) or (known and amount / known > TOO_SLOW):
            continue
        function = contenders.make(name, job, case, arrays, threads)
        if function is not None:
            functions[name] = function
    ceilings = []
    functions["peak"] = lambda: ceilings.append(peak())
    clock = time.process_time if threads == 1 else time.perf_counter
    times = interleave(functions, args.rounds, args.seconds, clock, 0 if threads == 1 else SETTLE)
    del times["peak"]
    times = {name: [seconds * contenders.share(name, job) for seconds in row] for name, row in times.items()}
    ceiling = statistics.median(ceilings) / 1e9
    result = {
        "label": label(job, case),
        "job": job,
        "case": str(case),
        "unit": unit,
        "threads": threads,
        "amount": amount,
        "peak": ceiling,
        "times": times,
    }
    cells = []
    for name, seconds in times.items():
        rate = amount / statistics.median(seconds)
        rates[name, job, case.dtype] = rate
        cell = f"{name} {rate / 1e9:.1f}"
        if name == args.base:
            cell += f" {unit}" + (f" ({100 * rate / 1e9 / ceiling:.0f} % of {ceiling:.0f})" if unit == "GFLOP/s" else "")
        else:
            cell += f" x{ratio(seconds, times[args.base]):.2f}"
        cells.append(cell)
    print(f"{result['label']:46s} {threads}T  " + " | ".join(cells), flush=True)
    return result


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over rounds where both ran in each, else of the medians."""
    if len(theirs) == len(ours):
        return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    return statistics.median(theirs) / statistics.median(ours)


def run_here(args: argparse.Namespace) -> list[dict]:
    """All lines for one number of threads, in this process."""
    threads = args.threads[0]
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # MLX has no switch for its threads
    import machine

    peak, rates = machine.Peak(threads), {}
    results = [line(*case, args, peak, rates) for case in cases(args)]
    if "overhead" in args.job and threads == 1:
        import overhead

        results.append({"job": "overhead", "threads": 1, "microseconds": overhead.report()})
    return results


def run_children(args: argparse.Namespace) -> list[dict]:
    """A process for each number of threads: libraries read it when they start."""
    results = []
    for threads in args.threads:
        variables = ("FLASH_ATTENTION_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        environment = os.environ | dict.fromkeys(variables, str(threads))
        command = [sys.executable, __file__, *sys.argv[1:], "--child", "--threads", str(threads)]
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for text in child.stdout:
            if text.startswith("{"):
                results += json.loads(text)["results"]
            else:
                print(text, end="", flush=True)
        if child.wait() != 0:
            sys.exit(child.returncode)
    return results


def plot(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [r for r in results if "times" in r]
    panels = sorted({(r["job"], r["threads"]) for r in lines}, key=lambda p: (JOBS.index(p[0]), p[1]))
    figure, axes = plt.subplots(len(panels), 1, figsize=(12, 1 + 3.2 * len(panels)), squeeze=False)
    names = list(dict.fromkeys(name for r in lines for name in r["times"]))
    for axis, (job, threads) in zip(axes[:, 0], panels, strict=True):
        chosen = [r for r in lines if (r["job"], r["threads"]) == (job, threads)]
        for place, name in enumerate(names):
            points = [(i, r["amount"] / statistics.median(r["times"][name]) / 1e9) for i, r in enumerate(chosen) if name in r["times"]]
            if points:
                x, y = zip(*points, strict=True)
                width = 0.8 / len(names)
                axis.bar([i + width * (place - len(names) / 2 + 0.5) for i in x], y, width, label=name, color=f"C{place}")
        if chosen[0]["unit"] == "GFLOP/s":
            axis.step(
                [i - 0.5 for i in range(len(chosen) + 1)],
                [r["peak"] for r in chosen] + [chosen[-1]["peak"]],
                where="post",
                color="black",
                linewidth=0.8,
                label="FMA peak",
            )
        axis.set_xticks(range(len(chosen)), [r["label"].partition(" ")[2].replace(" ", "\n") for r in chosen], fontsize=6)
        axis.set_ylabel(chosen[0]["unit"])
        axis.set_title(f"{job}, {threads} thread{'s' if threads > 1 else ''}", loc="left", fontsize=9)
        axis.legend(fontsize=7, ncols=len(names) + 1)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    print(f"plot: {path.name}")


def save(results: list[dict], description: dict) -> Path:
    """benchmarks/results/<date>-<commit>.json: all times, the machine, the commit."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.strftime('%Y-%m-%d')}-{description['commit'] or 'unknown'}.json"
    path.write_text(json.dumps({"machine": description, "results": results}, indent=1) + "\n")
    return path


def main() -> None:
    args = parse()
    args.dtypes = args.dtypes or (["bfloat16"] if args.backend == "cuda" else ["float32", "bfloat16", "float16"])
    args.dims = args.dims or ([64, 128, 256] if args.backend == "cuda" else [64, 128])
    unknown = [job for job in args.job if job not in JOBS]
    if unknown:
        sys.exit(f"--job: expected some of {', '.join(JOBS)}, found {', '.join(unknown)}")
    if args.child:
        print(json.dumps({"results": run_here(args)}))
        return
    import machine

    description = machine.describe()
    if args.backend == "cuda":
        import cuda_bench

        description |= cuda_bench.describe()
    args.threads = args.threads or sorted({1, machine.cores()})
    print(", ".join(f"{k} {v}" for k, v in description.items() if k not in ("versions", "load")), f"(load {description['load']})")
    print(", ".join(f"{k} {v}" for k, v in description["versions"].items()))
    if args.backend == "cuda":
        results = cuda_bench.run(args)
    elif args.memory:
        import memory

        results = [
            {"job": "memory", **memory.report(rows, args.heads or 8, dim, dtype, args.threads[-1])}
            for dtype in args.dtypes[:1]
            for dim in args.dims[:1]
            for rows in args.lens or [16384]
        ]
    else:
        results = run_children(args)
    if args.json:
        args.json.write_text(json.dumps({"machine": description, "results": results}, indent=1) + "\n")
    if args.save:
        print(f"saved: benchmarks/results/{save(results, description).name}")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
