"""Who may know what (docs/how_it_works.md, "What must never know what"), read from the sources and from objects."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

from building import ROOT, configure, run

SRC = ROOT / "src"
PACKAGE = ROOT / "python" / "flash_attn"
BACKENDS = sorted(p.parent.name for p in SRC.glob("*/kernels.cpp"))
CPP_FOLDERS = ("src", "include", "tests", "examples", "tools")
CPP = sorted(p for folder in CPP_FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cuh", ".metal"))
OURS = [p for p in CPP if SRC in p.parents]
KERNELS = [p for p in OURS if "kernels" in p.parts]
KERNEL_TEXT = [p for p in OURS if {"semantics", "kernels", "simd", "words"} & set(p.parts)]
PYTHON = sorted(p for folder in ("python", "tests", "tools", "benchmarks", "examples") for p in (ROOT / folder).rglob("*.py"))


def without_comments(path: Path) -> str:
    """The text of a C++ file with blanks for comments; lines and columns stay."""

    def blank(match):
        return match.group() if match.group()[0] == '"' else re.sub(r"[^\n]", " ", match.group())

    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', blank, path.read_text(), flags=re.S)


def code(path: Path) -> str:
    """Without the insides of string literals, too."""
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', without_comments(path))


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*([<"][^>"]+)', path.read_text(), flags=re.M)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def findings(paths, pattern: str, allowed=(), read=code) -> list[str]:
    """'file:line: text' of every match outside the allowed files."""
    found = []
    for path in paths:
        if name(path) not in allowed:
            for number, line in enumerate(read(path).split("\n"), 1):
                if re.search(pattern, line):
                    found.append(f"{name(path)}:{number}: {line.strip()}")
    return found


# ---- C++: includes go down -------------------------------------------------------------------------------------------


def may_include(path: Path, header: str) -> bool:
    where = path.relative_to(SRC).parts
    if where[0] == "semantics":
        return header[0] == '"' and "/" not in header
    if header[0] == "<" or where[0] == "bindings":
        return True
    header = header[1:]
    if (path.parent / header).exists():
        header = (path.parent / header).relative_to(SRC).as_posix()
    storey = header.split("/")[0]
    if where[0] == "core":
        lists_backends = where[1] == "registry.cpp" and header in {f"{b}/kernels.h" for b in BACKENDS}
        return storey in ("core", "semantics", "flash_attn") or lists_backends
    if where[1] in ("kernels", "simd", "isa", "words"):
        return storey in (where[0], "semantics", "flash_attn")
    return storey in (where[0], "core", "semantics", "flash_attn")


def test_includes_go_down():
    wrong = [f"{name(p)} includes {h[1:]}" for p in OURS for h in includes(p) if not may_include(p, h)]
    assert not wrong, "\n".join(wrong)


def test_isa_files_use_no_library():
    """What src/cpu/isa reaches, except the public header's types, is ours or the compiler's own."""
    compilers = {"<immintrin.h", "<arm_neon.h", "<stddef.h", "<stdint.h", "<cstddef", "<cstdint"}
    todo, seen, wrong = list((SRC / "cpu" / "isa").glob("*.cpp")), set(), []
    while todo:
        path = todo.pop()
        seen.add(path)
        for header in includes(path):
            if header[0] == "<":
                wrong += [] if header in compilers else [f"{name(path)} includes {header[1:]}"]
            else:
                found = [p for p in (path.parent / header[1:], SRC / header[1:]) if p.exists()]
                todo += [p for p in found[:1] if p not in seen]
    assert not wrong, "\n".join(wrong)


def test_public_header_stands_alone():
    for path in (ROOT / "include").rglob("*.h"):
        assert all(h[0] == "<" for h in includes(path)), f"{name(path)} includes a header that is not installed"


def test_core_names_no_kernel():
    names = set()
    for table in SRC.glob("*/kernels.cpp"):
        names |= set(re.findall(r'\{\s*"([a-z0-9_]+)"\s*,\s*Pass::', table.read_text()))
    assert names, "no row of a kernel table was recognised"
    found = findings((SRC / "core").iterdir(), "|".join(f'"{n}"' for n in sorted(names)), read=without_comments)
    assert not found, "\n".join(found)


# ---- C++: everything in its room -------------------------------------------------------------------------------------


def test_environment_is_read_in_one_place():
    found = findings(OURS, r"\bgetenv\b", allowed=("src/core/env.h",))
    found += findings(PACKAGE.rglob("*.py"), r"\bgetenv\b|\benviron\b", read=Path.read_text)
    assert not found, "\n".join(found)


def test_arguments_are_checked_in_one_place():
    checks = {name(p) for p in (SRC / "core").glob("validate*.cpp")}
    rooms = checks | {
        "src/core/error.h",
        "src/core/names.cpp",  # fail() itself
        "src/core/api.cpp",  # arrays to write to, which describe() does not see yet
        "src/cpu/dispatch.cpp",  # the machine and the environment, which are no arguments
        "src/cpu/threads.cpp",
    }
    found = findings(OURS, r"(?<!\.)\bfail\(", allowed=rooms)
    assert not found, "\n".join(found)


def test_tile_sizes_are_in_tiles_h():
    pattern = r"\b(?:constexpr|const|enum)\b[^;=]*\b(?:\w*TILE\w*|bq|bk|BQ|BK|\w*_TASK\w*|\w*PANEL\w*)\s*=\s*\d{2,}"
    found = findings(KERNELS, pattern)
    assert not found, "\n".join(found)


def test_formulas_are_in_semantics():
    """Kernels call probability(), score(), keeps()...: no exponential, logarithm or Philox of their own."""
    found = findings(KERNELS, r"\b(?:exp|exp2|log|log2|tanh|expf|exp2f|logf)\(|1\.4426950|0\.6931471|0x[Dd]2511[Ff]53")
    assert not found, "\n".join(found)


def test_semantics_is_values_only():
    paths = sorted(p for p in (SRC / "semantics").iterdir() if p.name != "platform.h")
    types = {"int", "unsigned", "float", "double", "auto", "V", "I", "U", "Real", "Int64"}
    for path in paths:
        types |= set(re.findall(r"\bstruct (\w+)", code(path)))
    kinds = "|".join(sorted(types))
    rules = {
        "pointer or reference": rf"\b(?:{kinds})(?:<[\w, ]+>)?\s*(?:const\s*)?[&*]|->",
        "std::": r"\bstd\s*::",
        "lambda": r"\[[&=\w, ]*\]\s*[({]",
        "branch on data": r"&&|\|\||\?",
        "loop": r"\b(?:for|while|do|goto)\b",
        "preprocessor ladder": r"^\s*#\s*(?:if|ifdef|ifndef|define)",
        "auto variable": r"\bauto\s+\w+\s*=",
    }
    wrong = [f"{what}: {line}" for what, pattern in rules.items() for line in findings(paths, pattern)]
    assert not wrong, "\n".join(wrong)


def test_kernel_text_is_ascii():
    for path in KERNEL_TEXT:
        assert path.read_text().isascii(), name(path)


def test_files_are_short():
    long = [f"{name(p)}: {n} lines" for p in CPP + PYTHON if (n := len(p.read_text().splitlines())) > 600]
    assert not long, "\n".join(long)


def test_files_say_what_they_are():
    """The first line of every C++ file is a comment, of every module a docstring."""

    def says(path):
        beside = path.with_suffix(".h")  # a .cpp may leave that to its header
        return path.read_text().startswith("//") or (path.suffix == ".cpp" and beside.exists() and says(beside))

    bare = [name(p) for p in CPP if not says(p)]
    bare += [name(p) for p in PYTHON if p.name != "__init__.py" and not ast.get_docstring(ast.parse(p.read_text()))]
    assert not bare, "\n".join(bare)


# ---- C++: no symbol that the linker would share between instruction sets -------------------------------------------


@pytest.fixture(scope="module")
def compile_commands(tmp_path_factory):
    build = tmp_path_factory.mktemp("configured")
    configure(ROOT, build)
    return json.loads((build / "compile_commands.json").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects with nm")
@pytest.mark.parametrize("isa", sorted(p.stem for p in (SRC / "cpu" / "isa").glob("*.cpp")))
def test_isa_objects_hold_no_weak_symbol(isa, compile_commands, tmp_path):
    entry = [e for e in compile_commands if Path(e["file"]) == SRC / "cpu" / "isa" / f"{isa}.cpp"]
    if not entry:
        assert os.uname().machine != "x86_64", f"{isa}.cpp is not built"
        return
    # unoptimised, every inline function that is not static would be emitted as a symbol that the linker merges
    command = re.sub(r" -O\d", "", entry[0]["command"]).split()
    command[command.index("-o") + 1] = str(tmp_path / "isa.o")
    run(*command, "-O0", "-w", cwd=entry[0]["directory"])
    symbols = run("nm", "-C", tmp_path / "isa.o")
    shared = [line for line in symbols.splitlines() if re.match(r"[0-9a-f ]+ [WwVvu] ", line)]
    assert not shared, "\n".join(shared)
    defined = [line.split(maxsplit=2)[2] for line in symbols.splitlines() if re.match(r"[0-9a-f]+ [TDRBC] ", line)]
    assert defined == [f"fa::cpu::{isa.upper()}"], f"expected one exported name, the table of kernels: {defined}"


# ---- Python ----------------------------------------------------------------------------------------------------------


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file of the package imports."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, *packages: str) -> bool:
    return any(module == p or module.startswith(p + ".") for p in packages)


FRAMEWORKS = ("numpy", "torch", "mlx", "jax")
EACH = tuple(f"flash_attn.frameworks.{f}" for f in FRAMEWORKS)
# what the modules of a storey may not import; frameworks call back into the engine from their autograd rules
FORBIDDEN = {
    "flash_attn.call": ("flash_attn.interface", "flash_attn.engine", "flash_attn.frameworks", "flash_attn.runners"),
    "flash_attn.formula": ("flash_attn.interface", "flash_attn.engine", "flash_attn.runners", "flash_attn._core"),
    "flash_attn.interface": (*EACH, "flash_attn.runners", *FRAMEWORKS),
    "flash_attn.engine": ("flash_attn.interface", *EACH, "flash_attn.runners", *FRAMEWORKS),
    "flash_attn.frameworks": ("flash_attn.interface",),
    "flash_attn.runners": ("flash_attn.interface", "flash_attn.engine", "flash_attn.frameworks"),
}


def test_python_imports_go_down():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for storey, forbidden in FORBIDDEN.items():
            if within(module, storey):
                wrong += [f"{module} imports {i}" for i in sorted(imports(path)) if within(i, *forbidden)]
    assert not wrong, "\n".join(wrong)


def test_frameworks_do_not_know_each_other():
    wrong = []
    for path in (PACKAGE / "frameworks").glob("*.py"):
        if path.stem == "__init__":  # lists them
            continue
        others = [f for f in FRAMEWORKS if f != path.stem]
        forbidden = [f"flash_attn.frameworks.{o}" for o in others] + [o for o in others if o != "numpy"]
        wrong += [f"{path.stem} imports {i}" for i in sorted(imports(path)) if within(i, *forbidden)]
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_imports_no_framework():
    probe = f"import sys, flash_attn; print([m for m in {FRAMEWORKS} if m in sys.modules])"
    assert run(sys.executable, "-c", probe).strip() == "[]"


def test_the_reference_sees_nothing_of_the_package():
    wrong = [i for i in imports_of_test("reference.py") if within(i, "flash_attn")]
    assert not wrong, wrong


def imports_of_test(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
