"""Plants faults in the meaning (src/semantics), in the edges of the CPU kernels and in the checks of calls, and shows that a test
notices each.

python tests/mutants.py [words]     only faults whose file or text contains one of the words
python tests/mutants.py --list      the faults; fails if one no longer fits its file

All faults of faults.py are built into one private copy of the library, each behind a switch; then, for each, a forked
process turns it on and runs a selection of the tables of cases until one fails. A fault that none notices is printed, and
the exit status is 1. A crash or an endless loop counts as noticed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from building import ROOT, build, configure

sys.path.append(str(ROOT / "tools"))  # targets.py finds the emulator there
FOLDER = ROOT / "build" / "mutants"
TREE, BUILD = FOLDER / "tree", FOLDER / "build"
SECONDS = 60, 600  # of a run with a fault, and of one without, which takes a fraction on an idle machine
DECLARATION = 'extern "C" volatile int flash_attn_fault;\n'
DEFINITION = DECLARATION + 'extern "C" __attribute__((visibility("default"))) volatile int flash_attn_fault = 0;\n'


def faults() -> list[tuple[str, str, str]]:
    from faults import KERNELS, SEMANTICS, VALIDATE

    folders = {"src/semantics": SEMANTICS, "src/cpu": KERNELS, "src/core": VALIDATE}
    return [(f"{folder}/{file}", old, new) for folder, some in folders.items() for file, old, new in some]


def pattern(code: str) -> str:
    """A regular expression for code, however its lines are broken."""
    return "".join(r"\s+" if part.isspace() else re.escape(part) for part in re.split(r"(\s+)", code))


def plant(text: str, file: str, planted: list[tuple[int, str, str]]) -> str:
    """The text of a file with its faults, each behind `flash_attn_fault == number`."""
    places: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for number, old, new in planted:
        before, part, after = (pattern(piece) for piece in re.split("[«»]", old))
        found = list(re.finditer(f"{before}({part}){after}", text))
        assert len(found) == 1, f"{file}: found {len(found)} times, expected once: {old}"
        places.setdefault(found[0].span(1), []).append((number, new))

    def render(first: int, end: int, own: list[tuple[int, str]]) -> str:
        """text[first:end] with the switches of the places inside, and around it those of its own faults."""
        inside = [p for p in places if first <= p[0] and p[1] <= end and p != (first, end)]
        outer = sorted(p for p in inside if not any(q != p and q[0] <= p[0] and p[1] <= q[1] for q in inside))
        result, at = "", first
        for place in outer:
            assert place[0] >= at, f"{file}: faults overlap: {text[place[0] : place[1]]}"
            result += text[at : place[0]] + render(*place, places[place])
            at = place[1]
        result += text[at:end]
        for number, new in own:
            result = f"(flash_attn_fault == {number} ? ({new}) : ({result}))"
        return result

    return render(0, len(text), [])


def make_tree(planted: list[tuple[str, str, str]]) -> None:
    """A copy of what the module is built from, with the faults; files that did not change keep their times."""
    for name in ("CMakeLists.txt", "cmake", "include", "src", "python"):
        source = ROOT / name
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if not file.is_file() or file.suffix in (".so", ".pyc"):
                continue
            path = file.relative_to(ROOT).as_posix()
            text = file.read_text()
            own = [(n, old, new) for n, (where, old, new) in enumerate(planted, 1) if where == path]
            text = plant(text, path, own) if own else text
            if path == "src/semantics/platform.h":
                text = text.replace("#pragma once\n", f"#pragma once\n{DECLARATION}", 1)
            write(TREE / path, text)
    write(TREE / "src/core/fault.cpp", DEFINITION)
    missing = {where for where, _, _ in planted} - {p.relative_to(TREE).as_posix() for p in TREE.rglob("*")}
    assert not missing, f"no such file: {missing}"


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def compile_tree() -> Path:
    """The module of the tree, beside its package."""
    options = ("-DFLASH_ATTN_PYTHON=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1")
    configure(TREE, BUILD, *options, f"-DPython_EXECUTABLE={sys.executable}")
    build(BUILD, "_core")
    (module,) = BUILD.glob("_core*.so")
    return Path(shutil.copy(module, TREE / "python" / "flash_attn"))


class Checks:
    """A selection of the tables, with what is expected computed once, before any fork."""

    def __init__(self):
        import bad_calls
        import cases
        import judge
        import targets
        from cases import CacheCase, Case

        for name in ("expected_forward", "expected_backward", "expected_kvcache"):
            setattr(judge, name, remembered(getattr(targets, name).__wrapped__))
        target = targets.TARGETS[0]
        both = [
            *cases.single,
            *(c | Case(dtype="float64") for c in cases.single if c.dtype == "float32"),
            *cases.edges[-26:],
            *(c for c in cases.dims if c.dim in (1, 33, 72)),
            *cases.strides[:8],
            *cases.varlen[10:],
            Case(rows=100, keys=64, chunk=16),
            Case(dropout=0.3, offsets=(50, 3)),
        ]
        more_tiles_than_fit = Case(batch=1, heads=1, rows=140, keys=4200, dim=512)
        more_keys_than_fit = Case(batch=8, rows=4, keys=4100, dim=8)
        rising = CacheCase(scale=8.0, capacity=300, cached=(299, 280))
        self.runs = [(f"refused {rule}", functools.partial(bad_calls.check_rule, rule)) for rule in bad_calls.RULES]
        for what, attempt, some in (
            ("forward", judge.try_forward, (*both, *cases.paged_varlen, more_tiles_than_fit)),
            ("decode", judge.try_kvcache, (*cases.decode, rising)),
            ("backward", judge.try_backward, (*both, more_keys_than_fit)),
        ):
            self.runs += [(f"{what} {c}", functools.partial(attempt, target, c)) for c in some]
        self.runs += [
            ("NaN in keys that no row sees", judge_unseen(target, Case(rows=30, keys=130, window=(9, 0)), keys=slice(91))),
            ("NaN in rows that see no key", judge_unseen(target, Case(rows=130, keys=30, causal=True), rows=slice(100))),
            ("NaN in a row that a mask hides", judge_unseen(target, Case(bias="bool:qk"), rows=slice(1, 2))),
        ]
        for c in (*both, more_keys_than_fit):
            judge.expected_forward(c), judge.expected_backward(c)
        for c in (*cases.paged_varlen, more_tiles_than_fit):
            judge.expected_forward(c)
        for c in (*cases.decode, rising):
            judge.expected_kvcache(c)

    def first_failure(self) -> str | None:
        for name, run in self.runs:
            try:
                run()
            except Exception as error:
                return f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return None


def remembered(function):
    known = {}

    def call(case, seed=0):
        if (case, seed) not in known:
            known[case, seed] = function(case, seed)
        return known[case, seed]

    return call


def judge_unseen(target, case, rows: slice = slice(0), keys: slice = slice(0)):
    """What these rows and keys hold reaches no result: no row sees those keys, those rows see none."""
    import numpy as np

    import cases

    def results(value):
        arrays = cases.inputs(case)
        for array, some in ((arrays.q, rows), (arrays.dout, rows), (arrays.k, keys), (arrays.v, keys)):
            array[:, some] = value
        gradients = target.backward(case, arrays, arrays.dout, arrays.dlse)
        return [*target.forward(case, arrays)[:2], *(gradients[name] for name in ("dq", "dk", "dv"))]

    def run():
        for zero, nan in zip(results(0), results(np.nan)):
            np.testing.assert_array_equal(nan, zero)

    return run


def noticed(checks: Checks, switch: ctypes.c_int, number: int, seconds: int) -> str | None:
    """How a fault shows, or None; in a process of its own, because it may crash or never end."""
    read, wrote = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            signal.alarm(seconds)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            switch.value = number
            os.write(wrote, (checks.first_failure() or "").encode()[:2000])
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(wrote)
    with os.fdopen(read, "rb") as pipe:
        found = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    assert os.WEXITSTATUS(status) == 0, "the run itself failed"
    return found or None


def list_faults() -> int:
    import judge  # noqa: F401  what a run needs can be imported

    planted = faults()
    for file in sorted({file for file, _, _ in planted}):
        own = [(n, old, new) for n, (where, old, new) in enumerate(planted, 1) if where == file]
        plant((ROOT / file).read_text(), file, own)
        for _, old, new in own:
            print(f"{file}: {one_line(old)} -> {one_line(new)}")
    return 0


def one_line(code: str) -> str:
    return re.sub(r"\s+", " ", code)


def main() -> int:
    if sys.argv[1:] == ["--list"]:
        return list_faults()
    planted = faults()
    start = time.monotonic()
    make_tree(planted)
    module = compile_tree()
    print(f"{len(planted)} faults planted, built in {time.monotonic() - start:.0f} s", flush=True)
    sys.path.insert(0, str(TREE / "python"))
    switch = ctypes.c_int.in_dll(ctypes.CDLL(str(module)), "flash_attn_fault")
    import flash_attn

    assert Path(flash_attn.__file__).is_relative_to(TREE), flash_attn.__file__
    checks = Checks()
    start = time.monotonic()
    wrong = noticed(checks, switch, 0, SECONDS[1])
    assert wrong is None, f"without any fault: {wrong}"
    healthy = time.monotonic() - start
    print(f"{len(checks.runs)} checks, {healthy:.1f} s without a fault", flush=True)

    missed, tried = [], 0
    for number, (file, old, new) in enumerate(planted, 1):
        if sys.argv[1:] and not any(word in file or word in old for word in sys.argv[1:]):
            continue
        tried += 1
        found = noticed(checks, switch, number, max(SECONDS[0], int(4 * healthy)))
        print(f"{'noticed' if found else 'MISSED '} {file}: {one_line(old)} -> {new}   {(found or '')[:100]}", flush=True)
        if not found:
            missed.append(number)
    print(f"{tried - len(missed)} of {tried} faults noticed in {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
