"""torch tensors on an NVIDIA GPU, besides the tables of cases.py: upstream's sizes, graphs, streams, threads, processes, latency."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU here", allow_module_level=True)

import cases  # noqa: E402
import flash_attn  # noqa: E402
from flash_attn import _core, flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache, torch_ops  # noqa: E402
from flash_attn.call import Options, Pass, Role  # noqa: E402
from judge import try_backward, try_forward, try_kvcache  # noqa: E402
from target_torch import TorchTarget  # noqa: E402

DEVICE = torch.device("cuda", torch.cuda.current_device())


def arrays(rows, keys, heads=(6, 2), dim=64, dtype=torch.bfloat16, batch=2, seed=0, value_dim=None):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shapes = (rows, heads[0], dim), (keys, heads[1], dim), (keys, heads[1], value_dim or dim)
    return [torch.randn(batch, *shape, device=DEVICE, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def plain(q, k, v, causal=False, window=(-1, -1), softcap=0.0, slopes=None, kept=None, keep=1.0):
    """Unfused attention in the dtype of its arguments, as upstream's tests have it."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q * q.shape[-1] ** -0.5, k)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    rows, keys = scores.shape[-2:]
    distance = torch.arange(rows, device=q.device)[:, None] + keys - rows - torch.arange(keys, device=q.device)
    if slopes is not None:
        scores = scores - (slopes[:, None, None] * distance.abs()).to(scores.dtype)
    left, right = window[0], 0 if causal else window[1]
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance > left
    if right >= 0:
        hidden |= distance < -right
    scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.softmax(-1).masked_fill(hidden.all(-1, keepdim=True), 0.0)
    if kept is not None:
        weights = weights * kept / keep
    return torch.einsum("bhij,bjhd->bihd", weights.to(v.dtype), v)


# ---- the tables of cases.py in 16 bits ---------------------------------------------------------------------------------------

TABLES = [*cases.single, *cases.pairs, *cases.mixed, *cases.edges, *cases.dims, *cases.varlen, *cases.paged_varlen, *cases.strides]
HALVES = ("bfloat16", "float16")
TARGET = TorchTarget("cuda")


def in_halves(table):
    """Each case in one of the two dtypes that the fast kernels take (most tables are float32)."""
    made = [replace(case, dtype=HALVES[i % 2]) for i, case in enumerate(table) if case.dtype != "float64"]
    return list(dict.fromkeys(made))


@pytest.mark.parametrize("case", in_halves(TABLES), ids=str)
def test_forward_in_16_bits(case):
    try_forward(TARGET, case)


@pytest.mark.parametrize("case", in_halves(case for case in TABLES if not case.page), ids=str)
def test_backward_in_16_bits(case):
    try_backward(TARGET, case)


@pytest.mark.parametrize("case", in_halves(cases.decode), ids=str)
def test_caches_in_16_bits(case):
    try_kvcache(TARGET, case)


# ---- upstream's sizes ----------------------------------------------------------------------------------------------------

SIZES = [(113, 203), (128, 217), (108, 256), (256, 512), (512, 256), (1024, 1024), (1023, 1024), (2048, 2048)]
SETTINGS = [
    {},
    {"causal": True},
    {"window_size": (37, 5)},
    {"causal": True, "dropout_p": 0.17},
    {"causal": True, "alibi": True},
    {"softcap": 15.0},
    {"causal": True, "deterministic": True},
]
DIMS = [32, 64, 96, 111, 128, 192, 256]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("dim", DIMS)
def test_upstream_sizes(dim, dtype):
    """Errors of out and of every gradient at most twice those of unfused torch code in the same dtype."""
    for number, ((rows, keys), settings) in enumerate(itertools.product(SIZES, SETTINGS)):
        if (number + DIMS.index(dim)) % 3:  # each pair of a size and a setting meets two or three of the seven head dims
            continue
        options = dict(settings)
        heads = ((6, 6), (6, 2), (6, 1))[number % 3]
        q, k, v = inputs = arrays(rows, keys, heads, dim, dtype, seed=number)
        slopes = torch.rand(6, device=DEVICE) * 0.3 if options.pop("alibi", False) else None
        dropout = options.get("dropout_p", 0.0)
        out, _, mask = flash_attn_func(q, k, v, alibi_slopes=slopes, return_attn_probs=True, **options)
        kept = ~mask.signbit() if dropout else None
        common = {
            "causal": options.get("causal", False),
            "window": options.get("window_size", (-1, -1)),
            "softcap": options.get("softcap", 0.0),
            "slopes": slopes,
            "kept": kept,
            "keep": 1 - dropout,
        }
        wide = [x.detach().float().requires_grad_() for x in inputs]
        exact, usual = plain(*wide, **common), plain(*inputs, **common)
        gradient = torch.randn_like(out)
        found = [out, *torch.autograd.grad(out, inputs, gradient)]
        expected = [exact, *torch.autograd.grad(exact, wide, gradient.float())]
        usual = [usual, *torch.autograd.grad(usual, inputs, gradient)]
        for name, ours, right, theirs in zip(("out", "dq", "dk", "dv"), found, expected, usual, strict=True):
            error, allowed = ((x.float() - right).abs().max().item() for x in (ours, theirs))
            floor = right.abs().max().item() * torch.finfo(dtype).eps
            assert error <= 2 * allowed + floor, f"{name}: {error} against {allowed} of plain code; {rows} x {keys}, {heads}, {settings}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_dtypes(dtype):
    inputs = arrays(200, 173, dim=80, dtype=dtype)
    out = flash_attn_func(*inputs, causal=True)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = plain(*wide, causal=True)
    gradient = torch.randn_like(out)
    found, expected = (torch.autograd.grad(o, i, gradient.to(o.dtype)) for o, i in ((out, inputs), (exact, wide)))
    for ours, right in zip((out, *found), (exact, *expected), strict=True):
        torch.testing.assert_close(ours.double(), right, atol=200 * torch.finfo(dtype).eps, rtol=100 * torch.finfo(dtype).eps)


# ---- repeatability and randomness ------------------------------------------------------------------------------------------


def test_results_repeat():
    inputs = arrays(1024, 1024, dim=128)
    gradient = torch.randn_like(inputs[0])
    results = []
    for _ in range(5):
        out = flash_attn_func(*inputs, causal=True, deterministic=True)
        results.append((out, *torch.autograd.grad(out, inputs, gradient)))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


def test_dropout_follows_torchs_generator_and_the_cpus_bits():
    q, k, v = (x.detach() for x in arrays(70, 90, dtype=torch.float32))
    runs = []
    for _ in range(2):
        torch.cuda.manual_seed(5)
        runs.append([flash_attn_func(q, k, v, dropout_p=0.5) for _ in range(2)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(*runs[0])
    state = torch.tensor([-123456789123, 77], device=DEVICE)
    masks = [
        flash_attn_func(*(x.to(place) for x in (q, k, v)), dropout_p=0.3, rng_state=state.to(place), return_attn_probs=True)[2].signbit()
        for place in (DEVICE, "cpu")
    ]
    assert torch.equal(masks[0].cpu(), masks[1])


# ---- streams, graphs, threads, processes -----------------------------------------------------------------------------------


def test_a_captured_graph_replays_new_values():
    """Forward and backward, captured at first use of these kernels: nothing may wait or allocate."""
    q, k, v = inputs = arrays(160, 160, dim=72, batch=3)  # a head dim that no other test uses
    gradient = torch.randn_like(q)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch's own first uses; ours are another variant
        other = arrays(16, 16, dim=64)
        torch.autograd.grad(flash_attn_func(*other), other, torch.zeros_like(other[0]))
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        out = flash_attn_func(q, k, v, causal=True, softcap=9.0)
        gradients = torch.autograd.grad(out, inputs, gradient)
    for seed in (1, 2):
        fresh = arrays(160, 160, dim=72, batch=3, seed=seed)
        with torch.no_grad():
            for x, new in zip(inputs, fresh, strict=True):
                x.copy_(new)
        graph.replay()
        expected = flash_attn_func(*fresh, causal=True, softcap=9.0)
        torch.testing.assert_close(out, expected, atol=0, rtol=0)
        for x, y in zip(gradients, torch.autograd.grad(expected, fresh, gradient), strict=True):
            torch.testing.assert_close(x, y, atol=2e-2, rtol=2e-2)  # dq is added up in any order


def test_a_decode_step_in_a_graph_reads_lengths_from_the_device():
    generator = torch.Generator(DEVICE).manual_seed(0)
    cache_k, cache_v = (torch.randn(2, 512, 2, 64, device=DEVICE, generator=generator).bfloat16() for _ in range(2))
    q, new_k, new_v = (torch.randn(2, 1, h, 64, device=DEVICE, generator=generator).bfloat16() for h in (8, 2, 2))
    lengths = torch.tensor([5, 300], dtype=torch.int32, device=DEVICE)
    mine = [cache_k.clone(), cache_v.clone()]
    step = lambda k, v: flash_attn_with_kvcache(q, k, v, new_k, new_v, cache_seqlens=lengths, causal=True)  # noqa: E731
    step(*(x.clone() for x in mine))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(*mine)
    for start in ([5, 300], [510, 0]):
        lengths.copy_(torch.tensor(start, dtype=torch.int32))
        caches = [x.clone() for x in mine]
        graph.replay()
        assert torch.equal(out, step(*caches))
        assert all(torch.equal(a, b) for a, b in zip(mine, caches, strict=True))


def test_streams_are_the_callers():
    """Work on two streams at once, each long enough to overlap."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    inputs = [[x.detach() for x in arrays(2048, 2048, dim=64, seed=s)] for s in range(2)]
    expected = [flash_attn_func(*x, causal=True) for x in inputs]
    torch.cuda.synchronize()
    found = [[], []]
    for _ in range(20):
        for stream, given, results in zip(streams, inputs, found, strict=True):
            with torch.cuda.stream(stream):
                results.append(flash_attn_func(*(x + 0 for x in given), causal=True))  # reads what the stream has just made
    torch.cuda.synchronize()
    assert all(torch.equal(x, right) for results, right in zip(found, expected, strict=True) for x in results)


def test_threads():
    inputs = [arrays(300, 300, dim=56, seed=s) for s in range(4)]  # a new variant: all compile it at once
    expected = [flash_attn_func(*(x.detach().float() for x in given)) for given in inputs]
    wrong = []

    def work(given, right):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    out = flash_attn_func(*given)
                    out.sum().backward()
                torch.cuda.current_stream().synchronize()
            torch.testing.assert_close(out.float(), right, atol=2e-2, rtol=2e-2)
        except Exception as error:
            wrong.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_arrays_of_another_device_than_the_current_one():
    inputs = [x.detach() for x in arrays(100, 100)]
    elsewhere = [x.to("cuda:1") for x in inputs]
    assert torch.equal(flash_attn_func(*elsewhere).to(DEVICE), flash_attn_func(*inputs))


def test_torch_compile_with_graphs():
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: flash_attn_func(q.sin(), k, v, causal=True) * 2, mode="reduce-overhead", fullgraph=True)
    inputs = arrays(128, 128)
    gradient = torch.randn_like(inputs[0])
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        out = compiled(*inputs)
        found = [out.clone(), *(x.clone() for x in torch.autograd.grad(out, inputs, gradient))]
    right = flash_attn_func(inputs[0].sin(), *inputs[1:], causal=True) * 2
    expected = [right, *torch.autograd.grad(right, inputs, gradient)]
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=3e-2, rtol=3e-2)


SCRIPT = """
import time, torch, flash_attn
q = torch.ones(1, 64, 2, 64, device="cuda", dtype=torch.bfloat16)
torch.cuda.synchronize()
start = time.perf_counter()
out = flash_attn.flash_attn_func(q, q, q, causal=True)
torch.cuda.synchronize()
print(time.perf_counter() - start, out.float().sum().item())
"""


def _process(cache) -> list[float]:
    environment = os.environ | {
        "FLASH_ATTENTION_CACHE": str(cache),
        "CUDA_CACHE_PATH": f"{cache}_of_nvidia",  # NVRTC 12.9 and newer remembers what it has compiled for anyone
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [float(x) for x in done.stdout.split()]


def test_first_call_and_later_processes(tmp_path, record_property):
    """First call of a variant at most 2.5 s, of a later process at most 60 ms (the best of three)."""
    first, total = _process(tmp_path / "cache")
    later = min(_process(tmp_path / "cache")[0] for _ in range(3))
    print(f"\nfirst call of a variant {first:.2f} s, in a later process {later * 1e3:.0f} ms")
    record_property("first_call_s", first)
    record_property("later_process_s", later)
    assert total == 64 * 2 * 64
    assert first < 2.5 and later < 0.06


def test_processes_share_the_cache(tmp_path):
    environment = os.environ | {"FLASH_ATTENTION_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert float(out.split()[1]) == 64 * 2 * 64
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_host_time_of_later_calls():
    """Describe, choose, plan and launch: at most 8 us of our own host time."""
    q, k, v = (x.detach() for x in arrays(16, 16, batch=1))
    out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
    views = [(role, torch_ops.view(x)) for role, x in ((Role.Q, q), (Role.K, k), (Role.V, v))]
    outputs = [(Role.OUT, torch_ops.view(out)), (Role.LSE, torch_ops.view(lse))]
    options, times, whole = Options(causal=True), [], []
    for _ in range(30):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(100):
            prepared = _core.prepare("flash_attn_func", Pass.FORWARD, views, options)
            _core.run(prepared, outputs, False, [], 0)
        times.append((time.perf_counter() - start) / 100)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(100):
            flash_attn_func(q, k, v, causal=True)
        whole.append((time.perf_counter() - start) / 100)
    print(f"\nours {min(times) * 1e6:.1f} us (median {statistics.median(times) * 1e6:.1f}), with torch's {min(whole) * 1e6:.1f} us")
    assert min(times) < 8e-6 + 4e-6  # these two calls from Python cost what one call from C++ does not


# ---- bad input -------------------------------------------------------------------------------------------------------------


def test_indices_out_of_range_reach_nothing():
    """Page ids and lengths that lie: no fault, and the sequences that do not lie are right."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    pages, cache_v = (torch.randn(6, 16, 2, 64, device=DEVICE, generator=generator).half() for _ in range(2))
    q, new = (torch.randn(3, 1, h, 64, device=DEVICE, generator=generator).half() for h in (4, 2))
    table = torch.tensor([[0, 1], [10**6, -7], [2, 3]], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([20, 25, 10**6], dtype=torch.int32, device=DEVICE)
    before = pages.clone(), cache_v.clone()
    out = flash_attn_with_kvcache(q, pages, cache_v, new, new, cache_seqlens=lengths, block_table=table, causal=True)
    torch.cuda.synchronize()
    right = flash_attn_with_kvcache(q[:1], *before, new[:1], new[:1], cache_seqlens=lengths[:1], block_table=table[:1], causal=True)
    assert torch.equal(out[:1], right)
    assert torch.equal(pages[2:], before[0][2:]), "a page outside of the table was written"


def test_values_are_checked_on_request(monkeypatch):
    q, k, v = (x.detach().flatten(0, 1) for x in arrays(10, 10))
    cu = torch.tensor([0, 12, 20], dtype=torch.int32, device=DEVICE)
    bad = torch.tensor([0, 12, 25], dtype=torch.int32, device=DEVICE)
    flash_attn_varlen_func(q, k, v, bad, cu, 13, 13)
    torch.cuda.synchronize()
    monkeypatch.setenv("FLASH_ATTENTION_CHECK", "1")
    with pytest.raises(ValueError, match="cu_seqlens_q: expected an end within the 20 packed rows, found 25"):
        flash_attn_varlen_func(q, k, v, bad, cu, 13, 13)
    flash_attn_varlen_func(q, k, v, cu, cu, 12, 12)


def test_errors():
    q, k, v = (x.detach() for x in arrays(10, 10))
    with pytest.raises(ValueError, match="k: expected an array on the device of q"):
        flash_attn_func(q, k.cpu(), v)
    with pytest.raises(ValueError, match="head dim of 1 to 512"):
        flash_attn_func(*(torch.zeros(1, 2, 1, 520, device=DEVICE) for _ in range(3)))
    assert "runs forward_sm80 (cuda): forward" in flash_attn.explain(flash_attn_func, q, k, v)


def test_a_cache_slot_that_nobody_sees_may_hold_nan():
    q, k, v = (x.detach() for x in arrays(1, 96, dtype=torch.float16))
    length = torch.tensor([50, 96], dtype=torch.int32, device=DEVICE)
    right = flash_attn_with_kvcache(q, k, v, cache_seqlens=length)
    k[0, 50:], v[0, 50:] = torch.nan, torch.inf
    assert torch.equal(flash_attn_with_kvcache(q, k, v, cache_seqlens=length), right)
