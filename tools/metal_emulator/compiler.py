"""From Metal text to a loadable module: clang -E, the rewriter, clang again; everything built is cached by a hash of what went in."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .rewriter import Rewriter

HERE = Path(__file__).resolve().parent
OLDEST, NEWEST = 17, 24  # clang versions to look for; before 17 there is no bfloat arithmetic
# counted: as instrumented, but what is watched is what clang's optimiser leaves of the text, as a device's compiler would.
BUILDS = ("plain", "instrumented", "counted")
# Apple's headers, all of which the shim answers with one text.
HEADERS = (
    "metal_stdlib",
    "metal_atomic",
    "metal_common",
    "metal_compute",
    "metal_geometric",
    "metal_integer",
    "metal_math",
    "metal_matrix",
    "metal_numeric",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_tensor",
    "metal_type_traits",
    "metal_types",
    "MetalPerformancePrimitives/MetalPerformancePrimitives.h",
)
LANGUAGE = [
    "-std=gnu++20",
    "-w",
    "-fno-exceptions",
    "-fno-rtti",
    "-fPIC",
    "-fsigned-char",  # as in Metal, on every processor
    # Each operation rounds to its type, as on the device, and 1.0 is a float.
    *("-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none"),
    *("-Xclang", "-cl-single-precision-constant", "-ffp-contract=on"),
]
# Locals without a value hold a pattern (NaN for floats): a kernel that relies on them shows it.
PLAIN = ["-O2", "-ftrivial-auto-var-init=pattern"]
# Without vectorisation: a check must see the accesses that the text makes.
INSTRUMENTED = [
    *("-O1", "-fno-vectorize", "-fno-slp-vectorize", "-fsanitize=thread", "-gline-tables-only"),
    "-ftrivial-auto-var-init=pattern",
]


class EmulatorError(RuntimeError):
    """The emulator cannot run a text: no compiler, the text does not compile, or buffers that do not fit its signature."""


@functools.cache
def compiler() -> str:
    """The newest clang++ found, by Debian's names and plain ones."""
    for name in (*(f"clang++-{version}" for version in range(NEWEST, OLDEST - 1, -1)), "clang++"):
        path = shutil.which(name)
        if path and version(path) >= OLDEST:
            return path
    raise EmulatorError(
        f"[metal_emulator] compiler: expected clang++ {OLDEST} or newer (clang++-19, clang++) in PATH, found none; "
        "on Debian and Ubuntu: apt-get install clang-19"
    )


def version(path: str) -> int:
    """The major version of a clang; 0 for Apple's, which counts differently, and for what is no clang."""
    text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"clang version (\d+)", text)
    return int(found.group(1)) if found and "Apple" not in text else 0


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Fast half conversions and matrix products where the processor has them."""
    if platform.machine() != "x86_64":
        return ()
    try:
        known = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return ()
    return ("-mavx2", "-mfma", "-mf16c") if {"avx2", "fma", "f16c"} <= set(known) else ()


@functools.cache
def stamp() -> str:
    """A hash of everything but the kernel's text that decides what is built."""
    content = hashlib.sha256()
    for path in sorted([*HERE.glob("*.py"), *HERE.glob("runtime/*"), *HERE.glob("shim/*")]):
        content.update(path.read_bytes())
    words = (str(HERE), compiler(), subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout, *machine_flags())
    content.update(" ".join(words).encode())
    return content.hexdigest()[:16]


class Compiler:
    """Builds into one folder and finds again what is there. Several processes may share it: each file appears by one rename."""

    def __init__(self, folder: Path):
        self.folder = folder / stamp()
        self.folder.mkdir(parents=True, exist_ok=True)

    def module(self, text: str, build: str) -> Path:
        """The shared object of a text's kernels."""
        key = hashlib.sha256(f"{build}\n{text}".encode()).hexdigest()[:32]
        return self.once(f"{key}.so", lambda out: self.build_module(text, build, out))

    def runtime(self) -> Path:
        """The shared object that all kernels call."""
        sources = sorted(str(path) for path in HERE.glob("runtime/*.cpp"))
        flags = ["-std=c++20", "-O2", "-shared", "-fPIC", *machine_flags()]
        return self.once("runtime.so", lambda out: run([compiler(), *flags, *sources, "-o", out, "-ldl"]))

    def preprocessed(self, text: str) -> str:
        """The text without directives, its lines marked as those of kernel.metal."""
        command = [compiler(), *LANGUAGE, "-x", "c++", "-E", "-nostdinc", "-include", str(HERE / "shim" / "macros.h")]
        flat = run([*command, "-I", str(self.headers()), "-"], f'#line 1 "kernel.metal"\n{text}')
        return flat[flat.index('# 1 "kernel.metal"') :]

    def rewritten(self, text: str) -> str:
        """The C++ that clang gets to see."""
        try:
            return Rewriter(self.preprocessed(text)).run()
        except SyntaxError as error:
            raise EmulatorError(f"[metal_emulator] text: {error}") from None

    def flags(self, build: str) -> list[str]:
        return [*LANGUAGE, *machine_flags(), *(PLAIN if build == "plain" else INSTRUMENTED)]

    def headers(self) -> Path:
        """A folder with Apple's headers, empty: what they offer comes from the shim."""

        def create(out: str) -> None:
            for name in HEADERS:
                path = Path(out, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

        return self.once("headers", create)

    def prefix(self, build: str) -> Path:
        """The shim, parsed once."""
        header = str(HERE / "shim" / "metal.h")
        # No file times in it: its content is in the folder's name, and a checkout that comes and goes changes times only.
        command = [compiler(), *self.flags(build), "-Xclang", "-fno-pch-timestamp", "-x", "c++-header", header, "-o"]
        return self.once(f"metal-{build}.pch", lambda out: run([*command, out]))

    def build_module(self, text: str, build: str, out: str) -> None:
        flags = [*self.flags(build), "-include-pch", str(self.prefix(build)), "-x", "c++", "-"]
        source = self.rewritten(text)
        if build == "plain":
            run([compiler(), *flags, "-shared", "-o", out], not_unrolled(source))
            return
        # The sanitizer's pass skips what lies in an address space: those are taken out of clang's intermediate text first.
        raw = run([compiler(), *flags, "-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm", "-o", "-"], source)
        hooks = ("-tsan-instrument-func-entry-exit=0", "-tsan-instrument-atomics=0", "-tsan-instrument-read-before-write=1")
        instrument = [*INSTRUMENTED, *(word for hook in hooks for word in ("-mllvm", hook))]
        assembly = [compiler(), "-w", "-fPIC", *machine_flags(), *instrument, "-x", "ir", "-", "-S", "-o", "-"]
        run(
            [compiler(), "-w", "-shared", "-x", "assembler", "-", "-o", out],
            run(assembly, flattened(raw, every_access=build == "instrumented")),
        )

    def once(self, name: str, create) -> Path:
        """The file or folder `name`, made by create(path) if it is not there."""
        path = self.folder / name
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                made = os.path.join(scratch, name)
                create(made)
                try:
                    os.rename(made, path)
                except OSError:  # another process was faster with the same folder
                    if not path.exists():
                        raise
        return path


def run(command: list[str], text: str | None = None) -> str:
    """A command's output; its complaints as an EmulatorError."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise EmulatorError(f"[metal_emulator] text: expected Metal that clang accepts, found\n{done.stderr[:8000]}")
    return done.stdout


def not_unrolled(source: str) -> str:
    """Without the text's wish to have loops unrolled, which changes no number and takes half of the time to compile."""
    return re.sub(r"(?m)^\s*#pragma clang loop unroll\(full\)", "", source)


def flattened(intermediate: str, every_access: bool) -> str:
    """LLVM's text without address spaces. With every_access the optimiser must leave all loads and stores in them as they are: it would
    move a read past the end under the condition that its value is used, where no check sees it."""
    text = intermediate
    if every_access:
        text = re.sub(r"(?m)^(\s+(?:%\S+ = load|store)) (?!volatile)(.* addrspace\([123]\) )", r"\1 volatile \2", text)
    text = re.sub(r" addrspace\([123]\)", "", text)
    text = re.sub(r"\n\s*(%[\w.]+) = addrspacecast ptr ([^ ,]+) to ptr[^\n]*", r"\n  \1 = bitcast ptr \2 to ptr", text)
    text = re.sub(r"addrspacecast \(ptr ([^()]+) to ptr\)", r"\1", text)
    # Intrinsics carry the spaces in their names, and so are declared once a space.
    text = re.sub(r"(@llvm\.[\w.]*?)((?:\.p[0123])+)", lambda m: m.group(1) + re.sub("p[123]", "p0", m.group(2)), text)
    declared, lines = set(), []
    for line in text.split("\n"):
        if line.startswith("declare"):
            name = re.search(r"@[\w.]+", line).group()
            if name in declared:
                continue
            declared.add(name)
        lines.append(line)
    return "\n".join(lines)
