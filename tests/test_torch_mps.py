"""Tensors of PyTorch's device mps, as far as a machine without one can tell: the texts and launches that compile_shader would get, in the
emulator, on CPU tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("ml_dtypes")

import cases  # noqa: E402
from fake_gpu import planted  # noqa: E402
from fake_mps import mps  # noqa: E402
from flash_attn import explain, flash_attn_func, flash_attn_with_kvcache, torch_ops  # noqa: E402
from flash_attn.call import Role  # noqa: E402
from flash_attn.frameworks.torch import FRAMEWORK  # noqa: E402
from judge import try_backward, try_forward, try_kvcache  # noqa: E402
from metal_emulator import EmulatorError  # noqa: E402
from metal_emulator.compiler import compiler  # noqa: E402
from target_torch import TorchTarget  # noqa: E402

try:
    compiler()
except EmulatorError as error:
    pytest.skip(str(error), allow_module_level=True)
Case, Cache = cases.Case, cases.CacheCase
FORWARD = [
    Case(causal=True, heads=4, kv_heads=2),
    Case(dtype="bfloat16", dim=64, window=(30, 2)),
    Case(dtype="float16", dim=33, value_dim=7, layout="heads_first"),
    Case(layout="sliced"),
    Case(layout="strided"),
    Case(softcap=2.0, alibi="bh", sink=True),
    Case(bias="bhqk", dropout=0.17),
    Case(bias="bool:bhqk"),
    Case(keys=0),
    Case(lengths=((1, 1), (1, 97), (97, 1), (0, 0), (16, 96)), causal=True),
    Case(lengths=((1, 50), (20, 9), (33, 130)), page=16, causal=True, heads=4, kv_heads=2),
]
BACKWARD = [
    Case(causal=True, heads=4, kv_heads=2),
    Case(dtype="float16", dim=64),
    Case(layout="strided", bias="1h1k", sink=True),
    Case(lengths=((20, 50), (0, 9), (33, 33), (1, 120)), dropout=0.17, tail=5),
]
DECODE = [
    Cache(),
    Cache(new=5, rows=5, causal=True),
    Cache(new=3, rows=3, rotary="interleaved", rotary_dim=16, causal=True),
    Cache(page=16, new=1, rotary="interleaved", cached=(15, 16)),
    Cache(batch_index=True, leftpad=(4, 2), new=1, rotary="halves", dtype="bfloat16"),
    Cache(layout="sliced", page=16, new=1),
    Cache(num_splits=3, capacity=300, cached=(280, 3), heads=8, kv_heads=2),
]


@pytest.fixture
def target():
    made = TorchTarget()
    made.name = "torch, emulated mps"
    return made


@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_forward(tmp_path, target, case):
    with mps(tmp_path) as launched:
        try_forward(target, case)
    assert launched


@pytest.mark.parametrize("case", BACKWARD, ids=str)
def test_backward(tmp_path, target, case):
    with mps(tmp_path) as launched:
        try_backward(target, case)
    assert "backward_dkv" in launched


@pytest.mark.parametrize("case", DECODE, ids=str)
def test_decode(tmp_path, target, case):
    with mps(tmp_path) as launched:
        try_kvcache(target, case)
    assert ("append" in launched) == bool(case.new) and ("merge" in launched) == (case.num_splits > 1)


def test_every_access_is_right(tmp_path):
    """Words are read only where views begin at multiples of 16 bytes."""
    memory = torch.randn(1, 40, 2, 72, dtype=torch.float16)
    for first in (0, 3, 8):
        q = memory[..., first : first + 64]
        with mps(tmp_path, "instrumented"):
            out = flash_attn_func(q, memory[..., :64], q, causal=True)
        assert (out - flash_attn_func(q, memory[..., :64], q, causal=True)).abs().max() < 4e-3


def test_every_access_of_an_append_is_right(tmp_path, target):
    with mps(tmp_path, "instrumented") as launched:
        try_kvcache(target, Cache(page=16, new=3, rows=3, rotary="halves", causal=True, cached=(15, 30), dtype="float16"))
    assert {"append", "rotate_queries", "decode"} <= set(launched)


def test_a_bad_kernel_gives_way_to_the_plain_one(tmp_path):
    q = torch.randn(1, 12, 2, 16)
    expected = flash_attn_func(q, q, q)
    with mps(tmp_path, compare=True) as launched:
        flash_attn_func(q, q, q)
        flash_attn_func(q, q, q)
        assert launched == ["forward_plain", "forward", "forward", "forward"]
        wide = q.new_zeros(1, 12, 2, 17)
        flash_attn_func(wide[..., :16], q, q)  # rows at odd places: another text
        assert launched[4:] == ["forward_plain", "forward", "forward"]
        flash_attn_func(torch.zeros(q.numel() + 1)[1:].reshape(q.shape), q, q)
        assert launched[7:] == ["forward"]
    plants = {"forward.metal": ("= log_sum_exp(a);", "= log_sum_exp(a) + 0.01f;")}
    with planted(plants), mps(tmp_path, compare=True), pytest.warns(RuntimeWarning, match="kernel forward: expected") as caught:
        assert (flash_attn_func(q, q, q) - expected).abs().max() < 1e-5
        assert "but not forward" in explain(flash_attn_func, q, q, q)
    assert len(caught) == 1


def test_tensors_on_mps_do_not_pass_through_dlpack(monkeypatch):
    """Not every PyTorch has DLPack views of them, and what asks for one may raise."""
    monkeypatch.setattr(torch_ops, "EXCHANGE", None)
    there = {Role.Q: SimpleNamespace(is_mps=True)}
    assert torch_ops._exchange(there) is torch_ops.ADDRESSES and torch_ops._exchange({Role.Q: torch.empty(1)}) is None
    assert FRAMEWORK.quick("flash_attn_func", there, (), False) is None


def test_without_a_compiler(tmp_path, monkeypatch):
    q = torch.randn(1, 1, 2, 16)
    with mps(tmp_path):
        monkeypatch.delattr(torch.mps, "compile_shader")
        with pytest.raises(RuntimeError, match=r"expected torch.mps.compile_shader \(PyTorch 2.7 or newer\), found none"):
            flash_attn_with_kvcache(q, q, q)
