"""What must agree between files when a version, a tool or a kernel table changes."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from importlib import metadata

from packaging.version import Version

import flash_attn
from building import ROOT, run

PROJECT = (ROOT / "pyproject.toml").read_text()


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, flags=re.M)
    assert match, f"nothing matches {pattern}"
    return match.group(1)


def group(name: str) -> set[str]:
    return set(re.findall(r'"([^"]+)"', found(rf"^{name} = (\[.*)$", PROJECT)))


def test_versions_agree():
    version, build = found(r'^version = "(.+)"', PROJECT), found(r'^wheel.build-tag = "(\d+)"', PROJECT)
    assert flash_attn.__version__ == version == metadata.version("flash-attn")
    assert found(r"project\(flash_attn VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text()) == version
    assert found(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text()) == f"{version}-{build}"


def test_clients_accept_the_version():
    version = found(r'^version = "(.+)"', PROJECT)
    assert Version("2.1.1") <= Version(version) <= Version("2.8.3")  # TransformerEngine, which looks for the distribution
    assert Version("2.7.3") <= Version(version)  # the same on Blackwell; transformers is content with 2.3.3
    assert flash_attn.__version__ >= "2.6.3"  # yunchang, which compares strings


def test_build_tools_agree():
    assert group("requires") <= group("build"), "make installs other build tools than pip"


def test_python_versions_agree():
    named = [int(minor) for minor in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PROJECT)]
    first, last = named[0], named[-1]
    assert named == list(range(first, last + 1))
    assert found(r'^requires-python = ">=3\.(\d+)"', PROJECT) == str(first)
    assert found(r'^target-version = "py3(\d+)"', PROJECT) == str(first)
    pattern = found(r'^build = "(cp.+)"', PROJECT)
    assert [minor for minor in range(100) if fnmatch(f"cp3{minor}-manylinux_x86_64", pattern)] == named
    assert f"CPython 3.{first} to 3.{last} " in (ROOT / "CONTRIBUTING.md").read_text()
    tested = {int(minor) for minor in re.findall(r'python: "3\.(\d+)"', (ROOT / ".github/workflows/tests.yml").read_text())}
    assert {min(tested), max(tested)} == {first, last}


def test_format_tools_agree():
    pinned = dict(item.split("==") for item in group("lint"))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert found(r"mirrors-clang-format\n    rev: v(.+)", hooks) == pinned["clang-format"]
    assert found(r"ruff-pre-commit\n    rev: v(.+)", hooks) == pinned["ruff"]


def test_support_matrix_is_current():
    now = run(sys.executable, ROOT / "tools" / "support_matrix.py", "--print")
    assert (ROOT / "docs" / "support_matrix.md").read_text() == now, "run tools/support_matrix.py"


def test_planted_faults_fit_their_files():
    listed = run(sys.executable, ROOT / "tests" / "mutants.py", "--list").splitlines()
    assert len(listed) > 100 and all(line.startswith("src/") for line in listed)


def test_variables_are_documented():
    variables = set(re.findall(r"FLASH_ATTENTION_[A-Z_]+", (ROOT / "src/core/env.h").read_text())) - {"FLASH_ATTENTION_"}
    page = (ROOT / "docs" / "environment.md").read_text()
    assert variables == set(re.findall(r"FLASH_ATTENTION_[A-Z_]+", page))


def test_installed_package_is_typed():
    files = {str(f) for f in metadata.files("flash-attn")}
    assert {"flash_attn/py.typed", "flash_attn/_core.pyi"} <= files
