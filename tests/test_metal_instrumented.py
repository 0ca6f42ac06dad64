"""Every access that our kernels make, watched: no race, nothing out of bounds, uninitialised or misaligned. Each case runs the plain
kernels, too; together they launch all, with the held tile in registers and in threadgroup memory. (Appending: test_torch_mps.py;
tensor operations: test_metal_tensor.py.)"""

from __future__ import annotations

import re

import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")

from building import ROOT  # noqa: E402
from flash_attn import first_use, selftest  # noqa: E402
from flash_attn.frameworks.mlx import FRAMEWORK  # noqa: E402
from flash_attn.runners import metal  # noqa: E402
from target_metal import emulated, why_not  # noqa: E402

if why_not():
    pytest.skip(why_not(), allow_module_level=True)

CASES = (
    "backward, bias, float16, 64",
    "backward, packed, bfloat16, 64",
    "backward, sink, float32, 64",
    "backward, causal, float16, 128",
    "backward, causal, float32, 5, 7",
    "forward, dropout, float32, 64",
    "forward, packed pages, float16, 64",
    "forward, decode split, bfloat16, 256",
    "forward, decode pages, float16, 64",
)


def test_these_launch_all_kernels():
    launched, in_registers = set(), {}
    for case in selftest.cases():
        if case.name in CASES:
            for plain in (False, True):
                for launch in metal.launches_of(selftest.plan(case.call, plain=plain)):
                    launched.add(launch.kernel)
                    in_registers.setdefault(launch.kernel, set()).add(dict(launch.constants).get("FA_IN_REGISTERS"))
    text = "".join(path.read_text() for path in (ROOT / "src/metal/kernels").glob("*.metal"))
    assert set(re.findall(r"define FA_ENTRY_(\w+)\(", text)) - launched == {"append", "rotate_queries", "forward_tensor"}
    assert in_registers["backward_dkv"] == in_registers["decode"] == {0, 1}


@pytest.mark.parametrize("name", CASES)
def test_all_accesses_are_right(name):
    (case,) = (case for case in selftest.cases() if case.name == name)
    with emulated("instrumented"):
        assert first_use.compared(FRAMEWORK, case.call).fault == ""
