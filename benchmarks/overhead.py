"""What a call costs besides its arithmetic: the time of a tiny one, and where it goes.

Python is what remains of a whole call after views, prepare and run; prepare is describe, check, choose and plan; run is the kernel on
one task, on the calling thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import flash_attn
import flash_attn.numpy
from flash_attn import _core
from flash_attn.call import Options, Pass, Role
from flash_attn.frameworks.numpy import FRAMEWORK


def microseconds(function: Callable[[], Any], seconds: float = 0.4, batch: int = 50) -> float:
    """Of one call: the median over batches, in CPU time of this process."""
    function()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.process_time()
        for _ in range(batch):
            function()
        times.append((time.process_time() - start) / batch)
    return 1e6 * statistics.median(times)


def report() -> dict:
    q = np.random.default_rng(0).standard_normal((1, 2, 1, 16)).astype(np.float32)
    out, lse, _ = flash_attn.flash_attn_func(q, q, q, return_attn_probs=True)
    cache = np.zeros((1, 16, 1, 16), np.float32)

    def views():
        return [(role, FRAMEWORK.view(q)) for role in (Role.Q, Role.K, Role.V)]

    made = views()
    prepared = _core.prepare("overhead", Pass.FORWARD, made, Options())
    outputs = [(Role.OUT, FRAMEWORK.view(out, True)), (Role.LSE, FRAMEWORK.view(lse, True))]
    rows = {
        "forward, NumPy": microseconds(lambda: flash_attn.flash_attn_func(q, q, q)),
        "  views of q, k, v": microseconds(views),
        "  prepare": microseconds(lambda: _core.prepare("overhead", Pass.FORWARD, made, Options())),
        "  run": microseconds(lambda: _core.run(prepared, outputs, True)),
    }
    whole, *parts = rows.values()
    rows["  Python, memory of results"] = whole - sum(parts)
    rows["backward, NumPy"] = microseconds(lambda: flash_attn.numpy.backward(out, q, q, q, out, lse))
    rows["with_kvcache, append one, NumPy"] = microseconds(
        lambda: flash_attn.flash_attn_with_kvcache(q[:, :1], cache, cache.copy(), q[:, :1], q[:, :1], cache_seqlens=3)
    )
    rows.update(with_mlx(q))
    print("overhead of a tiny call, microseconds (median, one thread's CPU time)")
    for name, value in rows.items():
        print(f"  {name:32s} {value:8.2f}")
    return rows


def with_mlx(q: np.ndarray) -> dict[str, float]:
    try:
        import mlx.core as mx
    except ImportError:
        return {}
    mx.set_default_device(mx.cpu)
    x = mx.array(q)
    mx.eval(x)
    gradient = mx.grad(lambda y: flash_attn.flash_attn_func(y, y, y).sum())
    return {
        "forward, MLX": microseconds(lambda: mx.eval(flash_attn.flash_attn_func(x, x, x))),
        "mx.grad, MLX": microseconds(lambda: mx.eval(gradient(x))),
        "MLX's own attention": microseconds(lambda: mx.eval(mx.fast.scaled_dot_product_attention(x, x, x, scale=0.25))),
    }
