"""The CUDA benchmark: our kernels against PyTorch's FlashAttention-2, which uses the same instructions, on the same tensors.

Times are those of CUDA events around bursts of calls, one contender after the other in each round, so a card that slows down while it is
warm slows down both; a cell is the median over rounds, and only ratios inside one line mean something. 16384 tokens a call in all, 2048
elements of heads x head dim.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flash_attn import flash_attn_func, flash_attn_with_kvcache

TOKENS, WIDTH = 16384, 2048
BURST_MS = 4.0  # of one contender in a round
JOBS = ("forward", "backward", "decode")


def tensors(batch: int, rows: int, keys: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = ((rows, heads), (keys, kv_heads), (keys, kv_heads))
    return [torch.randn(batch, n, h, dim, device="cuda", dtype=dtype, requires_grad=True) for n, h in shapes]


def fa2(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, grouped: bool = False) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


def contenders(job: str, length: int, dim: int, causal: bool, dtype: torch.dtype) -> tuple[dict[str, Callable[[], Any]], float, str]:
    """(functions that do the job once, amount of work, unit)."""
    if job == "decode":
        batch, heads, kv_heads = max(1, min(64, (1 << 19) // length)), 32, 8
        q, k, v = (x.detach() for x in tensors(batch, 1, length, heads, kv_heads, dim, dtype))
        lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
        functions = {
            "ours": lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths),
            "fa2": lambda: fa2(q, k, v, False, grouped=True),
        }
        return functions, 2.0 * batch * length * kv_heads * dim * 2, "GB/s"
    batch, heads = max(1, TOKENS // length), WIDTH // dim
    inputs = tensors(batch, length, length, heads, heads, dim, dtype)
    work = 4.0 * batch * heads * length * length * dim * (0.5 if causal else 1.0)
    if job == "forward":
        q, k, v = (x.detach() for x in inputs)
        return {"ours": lambda: flash_attn_func(q, k, v, causal=causal), "fa2": lambda: fa2(q, k, v, causal)}, work, "TFLOP/s"
    gradient = torch.randn_like(inputs[0])
    outs = {"ours": flash_attn_func(*inputs, causal=causal), "fa2": fa2(*inputs, causal)}
    functions = {name: lambda out=out: torch.autograd.grad(out, inputs, gradient, retain_graph=True) for name, out in outs.items()}
    return functions, 2.5 * work, "TFLOP/s"


def burst(function: Callable[[], Any], count: int) -> float:
    """Seconds of one call, over `count` queued together."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / count


def measure(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    counts, times = {}, {name: [] for name in functions}
    for name, function in functions.items():
        burst(function, 2)  # compiled, allocated
        counts[name] = max(2, min(200, math.ceil(BURST_MS / 1e3 / burst(function, 3))))
    for turn in range(rounds):
        for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(burst(functions[name], counts[name]))
    return times


def run(args: Any) -> list[dict]:
    """All lines, printed as they are made, and the geometric means of our lead."""
    results = []
    for job in (job for job in args.job if job in JOBS):
        ratios = []
        for dtype in args.dtypes:
            for dim in args.dims:
                for mask in ("full",) if job == "decode" else args.masks:
                    default = (8192, 32768, 131072) if job == "decode" else (512, 1024, 2048, 4096, 8192, 16384)
                    for length in args.lens or default:
                        functions, amount, unit = contenders(job, length, dim, mask == "causal", getattr(torch, dtype))
                        times = measure(functions, args.rounds)
                        del functions
                        torch.cuda.empty_cache()
                        rates = {
                            name: amount / statistics.median(row) / (1e12 if unit == "TFLOP/s" else 1e9) for name, row in times.items()
                        }
                        ratios.append(rates["ours"] / rates["fa2"])
                        label = f"{job} {dtype} D{dim} {'KV' if job == 'decode' else 'S'}{length} {mask}"
                        print(f"{label:42s} ours {rates['ours']:7.1f} {unit} | fa2 {rates['fa2']:7.1f} | x{ratios[-1]:.3f}", flush=True)
                        line = {"label": label, "job": job, "threads": 0, "unit": unit, "amount": amount, "times": times}
                        results.append(line)
        if ratios:
            mean = math.exp(statistics.fmean(math.log(r) for r in ratios))
            print(f"{job}: geometric mean x{mean:.3f}, least x{min(ratios):.3f} of {len(ratios)} cells")
    return results


def describe() -> dict:
    """The card and its software."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"card": device.name, "multiprocessors": device.multi_processor_count, "cuda": torch.version.cuda}
