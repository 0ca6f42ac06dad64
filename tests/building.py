"""CMake for the tests that compile something: the examples, the objects that test_architecture.py looks into, the mutants."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = ROOT / "build" / "test"  # where `make test` has compiled everything


def tool(program: str) -> str:
    """A build tool from this environment, or from the system."""
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.exists() else shutil.which(program)
    assert found, f"{program} is needed: pip install {program}"
    return found


def run(*command, **options) -> str:
    """Standard output of a command; AssertionError with all of its output if it fails."""
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    said = f"{' '.join(str(c) for c in command)}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    assert result.returncode == 0, said
    return result.stdout


def configure(source: Path, build: Path, *definitions: str) -> None:
    """A Ninja build of `source` in `build`."""
    run(tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *definitions)


def build(folder: Path, *targets: str) -> None:
    """Builds all, or some targets."""
    run(tool("cmake"), "--build", folder, *(("--target", *targets) if targets else ()))


def cpp_library(folder: Path) -> Path:
    """A build folder with the C++ library: that of `make test`, or a new one below `folder`."""
    if (MADE / "libflash_attn.a").exists():
        return MADE
    made = folder / "library"
    configure(ROOT, made)
    build(made)
    return made
