"""python -m flash_attn selftest and bench: what they cover, that they see a wrong kernel, what they print and return."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from unittest import mock

import pytest

pytest.importorskip("numpy")

from building import ROOT
from flash_attn import __main__ as program
from flash_attn import _core, bench, first_use, selftest
from flash_attn.runners import metal

TILES = {"FORWARD": "forward", "DQ": "backward_dq", "DKV": "backward_dkv", "DECODE": "decode", "BIAS": "bias_gradient"}


def tiles_of_table(name: str) -> set[tuple]:
    """(bytes of an element, in registers, and where there is one: keep) of each row in tiles.h."""
    text = (ROOT / "src/metal/tiles.h").read_text()
    rows = re.search(rf"{name}_TILES\[\] = \{{(.*?)\n\}};", text, flags=re.S).group(1)
    found = re.findall(r"\{(\d), \d+, (?:(\d, \d), )?(true|false)(?:, (true|false), \w+)?\}", rows)
    assert len(found) == rows.count("{")
    return {(int(size), tiles if name != "DECODE" else "", in_registers, keep) for size, tiles, in_registers, keep in found}


def test_cases_reach_every_row_tile_and_feature_of_the_metal_tables():
    rows, launched, tiles, features, needs = set(), set(), {name: set() for name in TILES}, 0, 0
    names = [case.name for case in selftest.cases()]
    assert len(names) == len(set(names)) > 100
    for case in selftest.cases():
        prepared = selftest.plan(case.call)
        rows |= {prepared.kernel, selftest.plan(case.call, plain=True).kernel, selftest.plan(case.call, index=17).kernel}
        for launch in metal.launches_of(prepared):
            known = dict(launch.constants)
            launched.add(launch.kernel)
            features |= known.get("FA_F", 0)
            needs |= known.get("FA_NEEDS", 0)
            for name, kernel in TILES.items():
                if kernel == launch.kernel:
                    words = {True: "true", False: "false"}
                    held = f"{known['FA_HELD_TILES']}, {known['FA_STREAM_TILES']}" if name in ("FORWARD", "DQ", "DKV") else ""
                    keep = words[bool(known["FA_KEEP"])] if "FA_KEEP" in known else ""
                    tiles[name].add((4 if known["FA_DTYPE"] == 3 else 2, held, words[bool(known["FA_IN_REGISTERS"])], keep))
    assert {row["name"] for row in _core.kernel_table() if row["backend"] == "metal"} - rows == {
        "append",
        "merge",
    }  # the only ones they have
    assert {name: tiles_of_table(name) for name in TILES} == tiles
    assert features == int(re.search(r"ALL_FEATURES = (\d+)u", (ROOT / "src/semantics/features.h").read_text()).group(1))
    assert needs == 1 | 2 | 4  # packed, cached, paged
    assert {"merge", "probabilities", "sink_gradient", "delta"} <= launched


def test_on_the_cpu(capsys):
    assert selftest.main(["--quick", "--device", "CPU"]) == 0
    count = len(list(selftest.cases(quick=True)))
    assert f"{count} of {count} are right" in capsys.readouterr().out


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_tensors_of_pytorch(pass_):
    """As on a device of its own: where `like` is, and as far from a multiple of 16 bytes as it."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from flash_attn.frameworks.torch import FRAMEWORK

    (case,) = (case for case in selftest.cases() if case.name == f"{pass_}, causal, bfloat16, 96")
    for like in (torch.empty(1), torch.empty(2)[1:]):
        comparison = first_use.compared(FRAMEWORK, case.call, like)
        assert (comparison.kernel, comparison.fault) == (pass_, "") and 0 < comparison.error < 1
        data = case.call.arrays[0]
        assert FRAMEWORK.from_bytes(data.bytes, data.sizes, data.code, like).storage_offset() == like.storage_offset()


def test_a_difference_is_bad(capsys):
    with mock.patch.object(first_use, "TOLERANCES", dict.fromkeys(first_use.TOLERANCES, 0.0)):
        assert selftest.main(["--device", "CPU", "--only", "forward, causal, float16, 64"]) == 1
    assert re.search(r"BAD .*forward, causal, float16, 64\n +out off by .*\n  0 of 1 are right", capsys.readouterr().out)


def test_a_crash_is_bad_and_the_rest_goes_on(capsys):
    compared = first_use.compared

    def crashing(framework, call, like):
        if call.options.causal:
            raise RuntimeError("the driver says no")
        return compared(framework, call, like)

    with mock.patch.object(first_use, "compared", crashing):
        assert selftest.main(["--device", "CPU", "--quick", "--only", "forward, "]) == 1
    out = capsys.readouterr().out
    assert "the driver says no" in out and "  ok " in out


def test_metal_in_the_emulator(capsys):
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    from fake_gpu import planted
    from target_metal import emulated, why_not

    if why_not():
        pytest.skip(why_not())
    with emulated():
        for only in ("forward, causal, float16, 64", "backward, packed, float16, 64"):
            assert selftest.main(["--device", "Metal", "--only", only]) == 0
        with planted({"forward.metal": ("= log_sum_exp(a);", "= log_sum_exp(a) + 0.01f;")}):
            assert selftest.main(["--device", "Metal", "--only", "forward, causal, float16, 64"]) == 1
    assert "lse off by 0.01" in capsys.readouterr().out


def test_nothing_to_test():
    assert selftest.main(["--only", "no such case"]) == 2 and selftest.main(["--device", "no such device"]) == 2
    assert program.main(["selftests"]) == 2


def test_command_line():
    command = [sys.executable, "-m", "flash_attn", "selftest", "--device", "CPU", "--only", "decode split, float32, 96"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "1 of 1 are right" in done.stdout, done


def test_bench(capsys, tmp_path):
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    plot = tmp_path / "plot.png"
    assert bench.main(["--lengths", "32", "64", "--heads", "1", "--seconds", "0.01", "--plot", str(plot)]) == 0
    rows = re.findall(r"^\| (forward|train)( causal)? \| (\d+) \|((?: [\d.]+ \|){5})$", capsys.readouterr().out, flags=re.M)
    assert [row[:3] for row in rows] == [
        (job, causal, n) for job in ("forward", "train") for causal in ("", " causal") for n in ("32", "64")
    ]
    assert plot.exists() == (importlib.util.find_spec("matplotlib") is not None)
