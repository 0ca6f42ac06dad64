"""Peak memory of forward + backward against what the call must hold, in a process of its own.

python benchmarks/run.py --memory [--lens 16384] [--dims 64] [--dtypes float32] [--threads 2]

The process makes its arrays, runs a small call once, so that threads and their scratch exist, and then the large one. What is
measured is the growth of the largest resident size (ru_maxrss); what is expected: inputs, outputs, gradients, the temporaries of the two
plans, and the scratch of the workers.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

# Packed keys and values (at most 16 MiB) and blocks of a worker: src/cpu/tiles.h. Kept between calls, so a worker is counted once.
SCRATCH_OF_A_WORKER = 17 << 20


def peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(rows: int, heads: int, dim: int, dtype: str, threads: int) -> dict:
    """In this process: the numbers of one forward and backward at (1, rows, heads, dim)."""
    os.environ["FLASH_ATTENTION_NUM_THREADS"] = str(threads)
    import numpy as np

    import flash_attn
    import flash_attn.numpy
    from flash_attn import _core
    from flash_attn.call import Options, Pass, Role
    from flash_attn.frameworks.numpy import FRAMEWORK
    from tolerance import DTYPES

    def arrays(length: int):
        random = np.random.default_rng(0)
        made = []
        for _ in range(4):
            array = np.empty((1, length, heads, dim), DTYPES[dtype])
            for row in range(length):  # row by row: no float64 copy of the whole
                array[0, row] = random.standard_normal((heads, dim), np.float32)
            made.append(array)
        return made

    def both(q, k, v, dout):
        out, lse, _ = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True)
        return [out, lse, *flash_attn.numpy.backward(dout, q, k, v, out, lse)[:3]]

    both(*arrays(64))
    before = peak_bytes()
    inputs = arrays(rows)
    results = both(*inputs)
    grown = peak_bytes() - before
    q, k, v, dout = inputs
    out, lse = results[:2]
    temporaries = 0
    for which, roles in (
        (Pass.FORWARD, {Role.Q: q, Role.K: k, Role.V: v}),
        (Pass.BACKWARD, {Role.Q: q, Role.K: k, Role.V: v, Role.DOUT: dout, Role.OUT: out, Role.LSE: lse}),
    ):
        views = [(role, FRAMEWORK.view(array)) for role, array in roles.items()]
        temporaries = max(temporaries, _core.prepare("memory", which, views, Options()).temporary_bytes)
    expected = {
        "inputs": sum(a.nbytes for a in inputs),
        "outputs and gradients": sum(a.nbytes for a in results),
        "temporaries": temporaries,
        "scratch": SCRATCH_OF_A_WORKER * threads,
    }
    return {"measured": grown, "expected": expected, "scores": rows * rows * heads * 4}


def report(rows: int, heads: int, dim: int, dtype: str, threads: int) -> dict:
    """Measures in a child and prints; the result."""
    words = [str(x) for x in (rows, heads, dim, dtype, threads)]
    child = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if child.returncode != 0:
        raise RuntimeError(child.stderr)
    result = json.loads(child.stdout)
    mib = 1 << 20
    total = sum(result["expected"].values())
    print(f"memory of forward + backward, (1, {rows}, {heads}, {dim}) {dtype}, {threads} threads")
    for name, size in result["expected"].items():
        print(f"  {name:24s} {size / mib:9.1f} MiB")
    print(f"  {'expected':24s} {total / mib:9.1f} MiB")
    print(f"  {'measured':24s} {result['measured'] / mib:9.1f} MiB  ({100 * result['measured'] / total - 100:+.1f} %)")
    print(f"  {'(all scores would be':24s} {result['scores'] / mib:9.1f} MiB)")
    return result


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    rows, heads, dim, threads = (int(sys.argv[i]) for i in (1, 2, 3, 5))
    print(json.dumps(measure(rows, heads, dim, sys.argv[4], threads)))
