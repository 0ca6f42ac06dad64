"""The documents: their code runs, their links and the files they name are there."""

from __future__ import annotations

import re

import pytest

from building import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("src", "include", "python", "tests", "tools", "examples", "benchmarks", "docs", "cmake")
FILES = {p.relative_to(ROOT).as_posix() for folder in FOLDERS for p in (ROOT / folder).rglob("*")} | {p.name for p in ROOT.iterdir()}
NAMED = re.compile(rf"(?<![>\w./-])(?:[\w./-]+\.(?:h|cpp|py|cuh|metal|md|sh|cmake|toml)\b|(?:{'|'.join(FOLDERS)})/[\w./-]+)")
WRITTEN = {"benchmarks/results/", "_core.pyi"}  # by a run, by a build
BLOCKS = re.findall(r"^(\w+):\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.M | re.S)


def test_the_readme_has_a_quick_start_for_each():
    assert [name for name, _ in BLOCKS] == ["MLX", "NumPy"]


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_quick_start(name, code):
    pytest.importorskip("mlx.core" if name == "MLX" else "numpy")
    found: dict = {}
    exec(code, found)
    dq = found["dq"] if name == "MLX" else found["gradients"].dq
    assert tuple(dq.shape) == tuple(found["q"].shape) and bool((dq != 0).any())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()) if not t.startswith("http")]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    """By their path, by the end of it (`words/tile.metal`), or by their name alone."""
    named = {w for code in re.findall(r"`([^`\n]+)`", page.read_text()) for w in NAMED.findall(code)} - WRITTEN
    missing = {w for w in named if w.rstrip("/") not in FILES and not any(f.endswith("/" + w.rstrip("/")) for f in FILES)}
    assert not missing


def test_the_tour_names_every_folder_of_the_sources():
    tour = (ROOT / "docs" / "how_it_works.md").read_text()
    folders = [p for p in (ROOT / "src").iterdir() if p.is_dir()]
    assert folders and not [p.name for p in folders if f"`src/{p.name}/" not in tour]
