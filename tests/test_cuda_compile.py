"""Every CUDA kernel compiles, for every architecture we name, within its registers and shared memory. NVRTC needs no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cuda_variants
from building import ROOT
from cuda_variants import SHARED, Variant
from flash_attn import _core
from flash_attn.call import Pass

# Bytes that a kernel may store and load besides its registers: without features, and with them. All others: none.
SPILLS = {
    # scores of 128 keys and out fill the registers; what features add lies outside of the products
    "forward_sm80.cuh": (64, 832),
    # dk, dv and P fill them; addresses and masks of edge tiles go to memory
    "backward_sm80.cuh": (104, 704),
    # Q, dO and dq of head dim 256
    "backward_rows_sm80.cuh": (0, 48),
}

compiler = _core.cuda_state()["compiler"]
pytestmark = [
    pytest.mark.skipif(not compiler.startswith("NVRTC"), reason=f"pip install nvidia-cuda-nvrtc ({compiler})"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def pool():
    """They see what is on the path where wheels are tested, in a folder elsewhere; and not the cache that NVRTC (12.9 and newer) has with a
    driver: what comes from that has no report."""
    with pytest.MonkeyPatch.context() as patch, cuda_variants.compilers() as made:
        patch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).resolve() != ROOT])
        patch.setenv("CUDA_CACHE_DISABLE", "1")
        yield made


def check(pool, arch: int, calls=None) -> None:
    """Compiles what calls need (all of the table's) and looks at the resources of every kernel that they launch."""
    texts = cuda_variants.texts(arch, calls)
    wrong = []
    for (text, launches), (log, resources) in zip(texts.items(), pool.map(cuda_variants.compile_text, texts), strict=True):
        for launch in launches.values():
            where = f"{text.source} {launch.kernel} sm_{arch} ({launch.first})"
            found = resources.get(launch.kernel)
            if found is None:
                wrong.append(f"{where}: {log[:1500]}")
                continue
            allowed = SPILLS.get(text.source, (0, 0))[dict(text.constants)["FA_F"] != 0]
            if found.spilled > allowed:
                wrong.append(f"{where}: {found.spilled} bytes spilled, {allowed} allowed")
            if found.registers * launch.threads > 65536:
                wrong.append(f"{where}: {found.registers} registers of {launch.threads} threads do not fit a multiprocessor")
            if found.shared + launch.shared_bytes > SHARED[arch]:
                wrong.append(f"{where}: {found.shared} + {launch.shared_bytes} bytes of shared memory, {SHARED[arch]} there")
            if "wgmma" in log and "serialized" in log:
                wrong.append(f"{where}: {log[:300]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("arch", [80, 90])
def test_all_variants(pool, arch):
    check(pool, arch)


SAMPLE = [
    (Pass.FORWARD, Variant(), 512),
    (Pass.FORWARD, Variant("float16", (64, 64), layout="varlen", softcap=True), 512),
    (Pass.FORWARD, Variant(dims=(256, 256), layout="paged", alibi=True), 512),
    (Pass.FORWARD, Variant(dims=(40, 80), bias="float32", dropout=True, probabilities=True), 512),
    (Pass.FORWARD, Variant(dims=(512, 512), sink="float32", out="float32"), 512),
    (Pass.FORWARD, Variant("float32", (64, 64)), 512),
    (Pass.FORWARD, Variant(layout="cached", keys=65536), 1),
    (Pass.BACKWARD, Variant(), 512),
    (Pass.BACKWARD, Variant("float16", (64, 64), layout="varlen", dropout=True, sink="float32"), 512),
    (Pass.BACKWARD, Variant(dims=(256, 256), deterministic=True, bias="float32"), 512),
]


@pytest.mark.parametrize("arch", [86, 89, 100, 120])
def test_a_sample_for_other_architectures(pool, arch):
    check(pool, arch, SAMPLE)


def test_every_two_values_meet():
    for axes in cuda_variants.AXES.values():
        rows = cuda_variants.pairwise(axes)
        for a, b in ((a, b) for a in axes for b in axes if a < b):
            assert {(getattr(r, a), getattr(r, b)) for r in rows} == {(x, y) for x in axes[a] for y in axes[b]}
        assert len(rows) < 40
