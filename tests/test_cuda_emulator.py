"""The CUDA kernels compute what they should: their own text, run on the CPU through driver, compiler and machine of software (fake_cuda/,
cuda_emulator/), from the NumPy front end down. A case takes seconds, so these are few; those of test_cuda.py need a GPU and are many."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from building import cpp_library, run
from cases import CacheCase, Case
from flash_attn import _core

HERE = Path(__file__).resolve().parent
pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="CUDA is found through Linux's loader"), pytest.mark.timeout(600)]

ONE_STAGE = Case(dtype="float16", dim=160, batch=1, heads=1, rows=70, keys=150, causal=True)
FORWARD = [
    Case(heads=4, kv_heads=2, dtype="bfloat16", dim=64, causal=True),
    Case(dtype="float16", dim=36, value_dim=72, alibi="bh", dropout=0.17, window=(31, 5)),
    Case(dtype="bfloat16", bias="bool:b1qk", softcap=2.0, sink=True),
    Case(lengths=((5, 9), (0, 3), (37, 70)), tail=3, causal=True, dtype="bfloat16"),
    Case(used_rows=(9, 0), used_keys=(50, 70), chunk=16, dim=18),  # rows aligned to 8 bytes
    Case(dtype="float64", bias="1h1k", dropout=0.3, offsets=(40, 3), sink=True, dim=24),
    ONE_STAGE,
]
BACKWARD = [
    Case(heads=4, kv_heads=2, dtype="bfloat16", causal=True),
    Case(dtype="float16", alibi="h", dropout=0.17, softcap=2.0, sink=True, bias="1h1k"),
    Case(lengths=((5, 9), (0, 3), (37, 40)), tail=3, window=(9, 4)),
    Case(bias="bhqk", trend=0.5, rows=37, keys=109),
    Case(dtype="float64", bias="bhqk", dropout=0.3, sink=True, dim=24, rows=9, keys=20),
    Case(batch=1, heads=1, dim=18, scale=1.0, dropout=0.5, lengths=((2, 1), (93, 2)), spread=3.0),  # lse far below that of a zero
    Case(dtype="float16", dim=160, value_dim=192, batch=1, heads=1, rows=70, keys=70, causal=True, dropout=0.17),  # 16 keys a warp
    Case(dtype="bfloat16", dim=256, batch=1, heads=1, rows=70, keys=70, causal=True),  # a warp's own P is not its dv's
]
CACHE = [
    CacheCase(dtype="bfloat16", dim=128, heads=8, num_splits=3, capacity=300, cached=(280, 3), rows=3, causal=True, new=3),
    CacheCase(dtype="float16", dim=40, page=3, new=2, rows=2, rotary="halves", causal=True, window=(9, 0)),
    CacheCase(dtype="bfloat16", batch_index=True, leftpad=(4, 2), new=1, rotary="interleaved", sink=True, alibi="bh"),
    CacheCase(dtype="bfloat16", dim=192, value_dim=256, page=16, softcap=3.0, chunk=16, rows=5),
    CacheCase(dtype="bfloat16", dim=320, value_dim=512, layout="sliced"),
    CacheCase(dtype="bfloat16", sink=True, num_splits=3, capacity=300, cached=(282, 150), rows=5, causal=True, chunk=140),
    CacheCase(num_splits=2, page=16, leftpad=(5, 8), new=1, capacity=160, cached=(150, 20)),
    CacheCase(dtype="float64", rows=5, causal=True, cached=(3, 60), new=2, rotary="interleaved"),
]
RUNS = (
    [("try_forward", case) for case in FORWARD] + [("try_backward", case) for case in BACKWARD] + [("try_kvcache", case) for case in CACHE]
)
SMALL_CARDS = [
    ("try_forward", Case(dtype="bfloat16", dim=512, batch=1, heads=1, rows=40, keys=100, dropout=0.17, sink=True)),
    ("try_forward", Case(dtype="float16", dim=96, batch=1, heads=1, rows=70, keys=150, causal=True)),
    ("try_backward", Case(dtype="float16", dim=256, batch=1, heads=2, kv_heads=1, rows=40, keys=70, dropout=0.17, causal=True)),
    ("try_backward", Case(dtype="bfloat16", dim=96, batch=1, heads=1, rows=70, keys=150, window=(40, 5))),
    ("try_forward", Case(dim=256, batch=1, heads=1, rows=20, keys=70, causal=True)),
    ("try_backward", Case(dim=96, value_dim=128, batch=1, heads=1, rows=40, keys=70, softcap=2.0)),
]
# Lengths, starts and page numbers that no check has seen: results mean nothing, memory beyond the arrays stays as it was.
HOSTILE = """
import numpy as np
rng = np.random.default_rng(1)
def wild(*shape):
    values = rng.integers(-2**31, 2**31, shape).astype(np.int32)
    values.flat[::3] = rng.integers(-3, 90, values.flat[::3].shape)
    return guarded(values)
def normal(*shape): return guarded(rng.standard_normal(shape).astype(np.float16))
for turn in range(3):
    q, new = normal(2, 3, 4, 64), normal(2, 3, 2, 64)
    table = normal(9, 16)
    for pages in (None, wild(2, 5)):
        k, v = (normal(7, 16, 2, 64) for _ in "kv") if pages is not None else (normal(4, 80, 2, 64) for _ in "kv")
        rows = dict(block_table=pages) if pages is not None else dict(cache_batch_idx=wild(2))
        lengths = dict(cache_seqlens=wild(2), cache_leftpad=wild(2))
        flash_attn.flash_attn_with_kvcache(q, k, v, new, new, table, table, causal=True, **lengths, **rows)
    q, k = normal(40, 2, 64), normal(90, 2, 64)
    flash_attn.flash_attn_varlen_func(q, k, k, wild(4), wild(4), 40, 90, seqused_k=wild(3))
    flash_attn.numpy.varlen_backward(q, q, k, k, q, guarded(np.zeros((2, 40), np.float32)), wild(4), wild(4), 40, 90)
"""
# A part with lse -inf counts for nothing, whatever it holds.
MERGE = """
import numpy as np
from flash_attn import engine
from flash_attn.call import Options, Pass, Role
from flash_attn.frameworks.numpy import FRAMEWORK
rng = np.random.default_rng(2)
out, lse = rng.standard_normal((3, 2, 5, 2, 40)).astype(np.float16), rng.standard_normal((3, 2, 5, 2)).astype(np.float32)
lse[0], lse[:, 1, 3], lse[1, 0, 0] = -np.inf, -np.inf, -np.inf
out[np.isneginf(lse)] = np.nan
weight = np.exp(lse.astype(np.float64))
total = weight.sum(0)
expected = (np.where(weight[..., None] > 0, out, 0) * weight[..., None]).sum(0) / np.where(total > 0, total, 1)[..., None]
parts = {Role.PART_OUT: guarded(out), Role.PART_LSE: guarded(lse.swapaxes(-2, -1))}
merged = engine.run(FRAMEWORK, "merge", Pass.MERGE, parts, Options())
np.testing.assert_allclose(merged[Role.OUT].astype(float), expected, rtol=1e-3, atol=1e-6)
with np.errstate(divide="ignore"):
    np.testing.assert_allclose(merged[Role.LSE].swapaxes(-2, -1), np.log(total), rtol=1e-5, atol=1e-6)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables of processes that see the software GPU."""
    folder = tmp_path_factory.mktemp("machine")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    for source, library in (("libcuda.cpp", "libcuda.so.1"), ("libnvrtc.cpp", "libnvrtc.so")):
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", HERE / "fake_cuda" / source, "-o", folder / library, "-ldl"]
        subprocess.run(command, check=True)
    return os.environ | {
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(map(str, (HERE / "cuda_emulator", HERE, HERE.parent / "tools", Path(_core.__file__).parent.parent))),
        "FLASH_ATTENTION_NVRTC": str(folder / "libnvrtc.so"),
        "FLASH_ATTENTION_CACHE": str(folder / "cache"),
        "FAKE_CUDA_ARCH": "90",
        "FAKE_NVRTC_COMPILER": f"{sys.executable} {HERE / 'cuda_emulator' / 'compile.py'}",
        "FAKE_NVRTC_FOLDER": str(folder),
    }


@pytest.fixture(scope="module")
def machine(environment):
    """Runs Python on the software GPU; variants are compiled once."""

    def run_script(script: str, **changes: str) -> None:
        command = [sys.executable, "-c", f"import flash_attn, flash_attn.numpy\nfrom target import Emulated, guarded\n{script}"]
        done = subprocess.run(command, env=environment | changes, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr[-6000:]}"

    return run_script


@pytest.mark.parametrize("job, case", [pytest.param(job, case, id=f"{job[4:]}:{case}") for job, case in RUNS])
def test_kernels_compute(machine, job, case):
    machine(f"from judge import {job}\nfrom cases import CacheCase, Case\n{job}(Emulated(), {case!r})")


def test_copies_may_come_early(machine):
    """A ring's next tile does not overwrite one that is still read."""
    for job, case in (RUNS[0], RUNS[len(FORWARD)], RUNS[-len(CACHE)], ("try_forward", ONE_STAGE)):
        machine(f"from judge import {job}\nfrom cases import CacheCase, Case\n{job}(Emulated(), {case!r})", EMULATOR_EAGER="1")


@pytest.mark.parametrize("job, case", [pytest.param(job, case, id=f"{job[4:]}:{case}") for job, case in SMALL_CARDS])
def test_tiles_of_small_cards(machine, job, case):
    """99 KB of shared memory a block: other tiles."""
    machine(f"from judge import {job}\nfrom cases import CacheCase, Case\n{job}(Emulated(), {case!r})", FAKE_CUDA_ARCH="80")


def test_wild_values_stay_inside(machine):
    machine(HOSTILE)


def test_parts_merge(machine):
    machine(MERGE)


def test_cpp_calls_take_device_arrays(environment, tmp_path):
    program, source = tmp_path / "program", HERE / "cuda_emulator" / "device_call.cpp"
    library = cpp_library(tmp_path) / "libflash_attn.a"
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    run(compiler, "-std=c++17", "-O1", f"-I{HERE.parent / 'include'}", source, library, "-ldl", "-lpthread", "-o", program)
    assert "largest difference" in run(program, env=environment)
