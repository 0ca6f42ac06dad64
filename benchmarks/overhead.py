"""What a call costs besides its arithmetic: the time of a tiny one, and where it goes.

Prepare is describe, check, choose and plan; run is the kernel on one task, on the calling thread. A whole call of NumPy's or PyTorch's
arrays is one call of C++ behind a little Python.
"""

from __future__ import annotations

import functools
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
    rows["backward, NumPy"] = microseconds(lambda: flash_attn.numpy.backward(out, q, q, q, out, lse))
    rows["with_kvcache, append one, NumPy"] = microseconds(
        lambda: flash_attn.flash_attn_with_kvcache(q[:, :1], cache, cache.copy(), q[:, :1], q[:, :1], cache_seqlens=3)
    )
    rows.update(with_mlx(q))
    rows.update(with_torch())
    print("overhead of a tiny call, microseconds (median, one thread's CPU time)")
    for name, value in rows.items():
        print(f"  {name:46s} {value:8.2f}")
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


class Clocked:
    """torch_ops.EXCHANGE, with the time spent in it."""

    def __init__(self, exchange: Any):
        self.exchange, self.spent = exchange, 0.0
        self.eager = exchange.eager

    def quick(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = self.exchange.quick(*arguments)
        self.spent += time.perf_counter() - start
        return result

    def run(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = self.exchange.run(*arguments)
        self.spent += time.perf_counter() - start
        return result


def kernels(*tensors: Any) -> dict[str, Callable[[], Any]]:
    """The two passes on the memory of q, k, v and dout, planned and allocated beforehand."""
    q, k, v, dout = (x.numpy() for x in tensors)
    out, lse, _ = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True)
    inputs = [(role, FRAMEWORK.view(x)) for role, x in ((Role.Q, q), (Role.K, k), (Role.V, v))]
    more = [(role, FRAMEWORK.view(x)) for role, x in ((Role.DOUT, dout), (Role.OUT, out), (Role.LSE, lse))]
    made = {}
    for name, which, views in (("kernel forward", Pass.FORWARD, inputs), ("kernel backward", Pass.BACKWARD, inputs + more)):
        prepared = _core.prepare("overhead", which, views, Options())
        outputs = [(role, FRAMEWORK.view(np.empty(shape, np.float32), True)) for role, _, shape in prepared.outputs]
        made[name] = functools.partial(_core.run, prepared, outputs, True)
    return made


def with_torch() -> dict[str, float]:
    """At (1, 16, 2, 64): whole calls, PyTorch's own, and the Python of ours: all that is not inside the call of C++, nor in an autograd
    function that does nothing but save and return as many tensors. Beside: what is neither our kernel nor PyTorch's operators, which
    include its dispatcher. The least of many batches, in turn: a busy machine only adds, and a batch is shorter than its time slice."""
    try:
        import torch
    except ImportError:
        return {}
    from flash_attn import torch_ops

    torch.set_num_threads(1)
    q, k, v, dout = (torch.randn(1, 16, 2, 64) for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v, dout)]
    their_leaves = [x.clone().requires_grad_() for x in heads_first[:3]]
    theirs, ours = torch.nn.functional.scaled_dot_product_attention, flash_attn.flash_attn_func
    their_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    their_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    their_results = their_forward(*heads_first[:3])

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, call, q, k, v):
            ctx.save_for_backward(q, k, v, q.new_empty(q.shape), q.new_empty(q.shape))
            return torch.empty_like(q)

        @staticmethod
        def backward(ctx, dout):
            return None, *ctx.saved_tensors[:3]

    def gradients(function, inputs, dout):
        return torch.autograd.grad(function(*inputs), inputs, dout)

    nothing = super(torch.autograd.Function, Nothing).apply
    calls = kernels(q, k, v, dout) | {
        "forward": lambda: ours(q, k, v),
        "both": lambda: gradients(ours, leaves, dout),
        "sdpa forward": lambda: theirs(*heads_first[:3]),
        "sdpa both": lambda: gradients(theirs, their_leaves, heads_first[3]),
        "operator forward": lambda: their_forward(*heads_first[:3]),
        "operator backward": lambda: their_backward(heads_first[3], *heads_first[:3], *their_results, 0.0, False),
        "nothing": lambda: gradients(lambda *x: nothing(None, *x), leaves, dout),
    }
    exchange, batch = torch_ops.EXCHANGE, 10
    clocked = Clocked(exchange)
    times: dict[str, list[float]] = {}

    def clock(name: str, call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        for _ in range(batch):
            call()
        times.setdefault(name, []).append((time.perf_counter() - start) / batch)

    for _ in range(500):
        for name, call in calls.items():
            clock(name, call)
        torch_ops.EXCHANGE = clocked
        for name in ("forward", "both"):
            clocked.spent = 0.0
            clock(f"clocked {name}", calls[name])
            times.setdefault(f"C++ {name}", []).append(clocked.spent / batch)
        torch_ops.EXCHANGE = exchange
    least = {name: 1e6 * min(seconds) for name, seconds in times.items()}
    kernel = {"forward": least["kernel forward"], "both": least["kernel forward"] + least["kernel backward"]}
    operators = {"forward": least["operator forward"], "both": least["operator forward"] + least["operator backward"]}
    rows = {}
    for name, label, autograd in (("forward", "forward", 0.0), ("both", "forward + backward", least["nothing"])):
        rows |= {
            f"{label}, PyTorch": least[name],
            f"  C++, {label}": least[f"C++ {name}"],
            f"  Python, {label}": least[name] - least[f"C++ {name}"] - autograd,
            f"  beside the kernel, {label}": least[name] - kernel[name],
            f"PyTorch's own {label}": least[f"sdpa {name}"],
            f"  beside its operators, {label}": least[f"sdpa {name}"] - operators[name],
        }
    return rows | {"autograd that does nothing": least["nothing"]}
