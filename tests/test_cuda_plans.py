"""Plans for NVIDIA GPUs that need not exist: which kernels run, within every limit of the hardware."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

import cuda_variants
from cuda_variants import CUDA, SHARED, Variant, call_of, plan_of
from flash_attn import _core
from flash_attn.call import Options, Pass, Role

KNOWN = {"FA_F", "FA_NEEDS", "FA_DTYPE", "FA_OUT", "FA_PART", "FA_BIAS", "FA_SINK"}


def calls():
    small = [(which, dataclasses.replace(variant, keys=65), 130) for which, variant, _ in cuda_variants.calls()]
    return cuda_variants.calls() + small


def kernels(plan) -> list[str]:
    return [launch["kernel"] for launch in plan["launches"]]


@pytest.mark.parametrize("arch", SHARED)
def test_limits_of_the_hardware(arch):
    for which, variant, rows in calls():
        plan = plan_of(variant, which, arch, rows)
        assert plan["launches"], variant
        for launch in plan["launches"]:
            where = f"{launch['kernel']} sm_{arch} {variant}"
            x, y, z = launch["blocks"]
            assert 0 < x < 2**31 and 0 < y <= 65535 and 0 < z <= 65535, where
            assert launch["threads"] % 32 == 0 and launch["threads"] <= 1024, where
            assert launch["shared_bytes"] <= SHARED[arch], where


def test_every_launch_finds_its_text_its_values_and_its_arrays():
    texts = {}
    for which, variant, rows in calls():
        plan = plan_of(variant, which, 90, rows)
        arrays, options = call_of(variant, which, rows)
        given = {role for role, _ in arrays}
        written = {Role.OUT, Role.LSE} if which == Pass.FORWARD else {Role.DQ, Role.DK, Role.DV}
        written |= {role for role in range(len(_core.ROLES)) if options.wants >> role & 1}
        bound = set()
        for launch in plan["launches"]:
            source = launch["source"]
            if source not in texts:
                texts[source] = re.sub(r"//.*", "", _core.kernel_text("cuda", source))
            text = texts[source]
            assert re.search(rf"\b{launch['kernel']}\(const __grid_constant__", text), f"{source} has no kernel {launch['kernel']}"
            values = dict(launch["constants"])
            assert set(values) >= KNOWN and len(values) == len(launch["constants"])
            used = set(re.findall(r"\bFA_[A-Z_]+\b", text)) - set(re.findall(r"#\s*define\s+(\w+)", text))
            assert used <= set(values), f"{source} uses {used - set(values)}, which its plan does not set"
            for role, temporary in launch["arguments"]:
                assert temporary < len(plan["temporaries"])
                assert temporary >= 0 or role in given | written, f"{launch['kernel']}: role {_core.ROLES[role]} comes from nowhere"
                bound |= {role} if temporary < 0 else set()
        assert written <= bound, f"{variant}: nobody writes {[_core.ROLES[r] for r in written - bound]}"
        used_temporaries = {t for launch in plan["launches"] for _, t in launch["arguments"] if t >= 0}
        assert used_temporaries == set(range(len(plan["temporaries"])))


def test_which_kernels_run():
    assert kernels(plan_of(Variant(), Pass.FORWARD, 80)) == ["forward"]
    assert plan_of(Variant(), Pass.FORWARD, 80)["kernel"] == "forward_sm80"
    assert plan_of(Variant("float64"), Pass.FORWARD, 80)["kernel"] == "forward_plain"
    assert plan_of(Variant("float64"), Pass.BACKWARD, 90)["kernel"] == "backward_plain"
    assert kernels(plan_of(Variant(layout="varlen"), Pass.FORWARD, 80)) == ["forward", "clear"]
    assert kernels(plan_of(Variant(dropout=True, probabilities=True), Pass.FORWARD, 80)) == ["forward", "probabilities"]
    found = kernels(plan_of(Variant(layout="used", bias="float32", sink="float32"), Pass.BACKWARD, 80))
    assert found[0] == "delta" and found[-1] == "clear" and {"backward", "sink_gradient"} <= set(found)
    repeatable = plan_of(Variant(deterministic=True), Pass.BACKWARD, 80)["launches"]
    assert all(dict(launch["constants"]).get("FA_DQ", 0) == 0 for launch in repeatable)


@pytest.mark.parametrize("arch", SHARED)
def test_usual_head_dims_have_tiles(arch):
    """On every card: forward in 16 bits up to 512, backward up to 256; float32 up to 256 and 128."""
    sizes = {"bfloat16": {Pass.FORWARD: 512, Pass.BACKWARD: 256}, "float32": {Pass.FORWARD: 256, Pass.BACKWARD: 128}}
    for dtype, limits in sizes.items():
        for which, limit in limits.items():
            for dims in itertools.product(range(32, limit + 1, 32), repeat=2):
                kernel = plan_of(Variant(dtype, dims), which, arch)["kernel"]
                assert kernel.endswith("_sm80"), f"pass {which}, {dtype}, {dims}: {kernel}"


def test_many_heads_and_sequences():
    """Grids end at 65535 blocks along y and z: the fast kernels say so, the plain ones take turns."""
    view = cuda_variants._view
    arrays = [(Role.Q, view([70000, 1, 1, 64], "bfloat16")), *((r, view([70000, 5, 1, 64], "bfloat16")) for r in (Role.K, Role.V))]
    plan = _core.plan("flash_attn_func", Pass.FORWARD, arrays, Options(), (CUDA, 90, 132, SHARED[90]))
    assert plan["kernel"] == "forward_plain" and plan["launches"][0]["blocks"] == (1, 1, 65535)


def test_without_rows_or_keys():
    view = cuda_variants._view

    def plan(which, rows, keys):
        arrays = [(Role.Q, view([2, rows, 4, 64], "float16")), *((r, view([2, keys, 2, 64], "float16")) for r in (Role.K, Role.V))]
        if which == Pass.BACKWARD:
            arrays += [(r, view([2, rows, 4, 64], "float16")) for r in (Role.DOUT, Role.OUT)] + [(Role.LSE, view([2, 4, rows], "float32"))]
        return kernels(_core.plan("flash_attn_func", which, arrays, Options(), (CUDA, 90, 132, SHARED[90])))

    assert plan(Pass.FORWARD, 0, 5) == [] and plan(Pass.FORWARD, 5, 0) == ["forward"]
    assert plan(Pass.BACKWARD, 0, 5) == ["backward"]  # dk and dv are zeros
    assert "delta" in plan(Pass.BACKWARD, 5, 0) and "backward" not in plan(Pass.BACKWARD, 5, 0)


def test_plans_are_quick():
    """Planning is part of every call."""
    import timeit

    arrays, options = call_of(Variant(), Pass.FORWARD)
    device = (CUDA, 90, 132, SHARED[90])
    seconds = min(timeit.repeat(lambda: _core.plan("flash_attn_func", Pass.FORWARD, arrays, options, device), number=100, repeat=10)) / 100
    assert seconds < 100e-6  # most of it is the dictionary that Python gets


def test_refusals_name_each_row():
    view = cuda_variants._view
    arrays = [(role, view([1, 8, 1, 64], "float64")) for role in (Role.Q, Role.K, Role.V)]
    with pytest.raises(NotImplementedError) as error:
        _core.plan("flash_attn_func", Pass.FORWARD, arrays, Options(), (CUDA, 70, 80, 96 * 1024))
    said = str(error.value)
    assert said.startswith("[flash_attn_func] no CUDA kernel takes this call: ")
    assert "forward_sm80: is for other chips than architecture 70" in said and "forward_plain: is for other chips" in said
