"""The C++ library as its users meet it: installed, found by find_package, linked into the programs of examples/cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

from building import ROOT, build, configure, cpp_library, run, tool

PROGRAMS = sorted(p.stem for p in (ROOT / "examples" / "cpp").glob("*.cpp"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """The folder of the built programs."""
    folder = tmp_path_factory.mktemp("cpp")
    prefix = folder / "prefix"
    run(tool("cmake"), "--install", cpp_library(folder), "--component", "cpp", "--prefix", prefix)
    examples = folder / "programs"
    configure(ROOT / "examples" / "cpp", examples, f"-DCMAKE_PREFIX_PATH={prefix}")
    build(examples)
    return examples


@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", PROGRAMS)
def test_example(program, programs):
    assert "largest difference" in run(programs / program)


def test_every_example_is_built():
    assert set(PROGRAMS) <= set((ROOT / "examples" / "cpp" / "CMakeLists.txt").read_text().replace(")", " ").split())
