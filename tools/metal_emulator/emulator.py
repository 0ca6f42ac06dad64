"""Runs Metal kernels on the CPU and says what is wrong with them: see README.md.

emulator = Emulator(build="instrumented")
report = emulator.launch(text, "kernel_name", [q, k, v, out], grid=(1024, 1, 1), threadgroup=(128, 1, 1))
report.check()
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import host
from .compiler import BUILDS, Compiler, EmulatorError

ORDERS = ("ascending", "descending")
SLACK = 1 << 16  # bytes of poison on both sides of each buffer: a stray index hits no other one, a stray write shows
POISON = 0xFF  # NaN in every float format
MLX_PREFIX = "custom_kernel_"  # how MLX names the kernels it generates a signature for
SMALL = 8  # MLX passes arrays with fewer elements as `constant`

_running = threading.Lock()  # the runtime has one machine
_modules: dict[tuple[str, str, Path], host.Module] = {}


class KernelFault(RuntimeError):
    """What Report.check raises: a kernel did something that a device may answer with wrong numbers or a crash."""


@dataclass
class Buffer:
    """One buffer argument. `array` may be a strided view: its memory is handed over, gaps included, as MLX does.

    initialised   whether a kernel may read a buffer that it can write; without, it holds NaN. MLX's outputs hold nothing.
    alignment     what the caller can promise about the address beyond the item size; an instrumented build promises no more
    """

    array: np.ndarray
    initialised: bool = False
    alignment: int = 0


@dataclass
class Fault:
    """One kind of misbehaviour at one place. kind: race, out of bounds, uninitialised read, divergence, misaligned access, limit."""

    kind: str
    text: str
    line: int = 0  # of the launched text; 0: not known
    source: str = ""

    def __str__(self):
        return f"{self.kind}: {self.text}" + (f"\n    line {self.line}: {self.source}" if self.line else "")


@dataclass
class Report:
    """What a launch did. Bytes are counted by builds that watch accesses; those of constant memory are not."""

    faults: list[Fault] = field(default_factory=list)
    threads: int = 0
    groups: int = 0
    barriers: int = 0  # of threadgroups
    simdgroup_barriers: int = 0
    shuffles: int = 0  # every exchange of a simdgroup, reductions included
    multiplications: int = 0  # 8x8x8 matrix products
    threadgroup_memory: int = 0  # bytes of threadgroup variables
    device_read: int = 0
    device_written: int = 0
    threadgroup_read: int = 0
    threadgroup_written: int = 0
    seconds: float = 0.0

    def kinds(self) -> set[str]:
        """The kinds of faults found."""
        return {fault.kind for fault in self.faults}

    def check(self) -> Report:
        """Raises KernelFault if anything was found."""
        if self.faults:
            raise KernelFault("\n".join(map(str, self.faults)))
        return self


class Emulator:
    """Compiles and launches kernels.

    build       "plain": fast; finds divergence, limits, crashes, writes around buffers
                "instrumented": watches every access of the text, too
                "counted": watches the accesses that an optimising compiler leaves; what its byte counters say is the cost
    order       in which lanes, simdgroups and groups run: "ascending" or "descending"; results must not depend on it
    cache_dir   where compiled kernels are kept; default: build/metal_emulator of the checkout
    """

    def __init__(self, build: str = "plain", order: str = "ascending", cache_dir: str | os.PathLike | None = None):
        if build not in BUILDS:
            raise ValueError(f"[Emulator] build: expected one of {BUILDS}, found {build!r}")
        if order not in ORDERS:
            raise ValueError(f"[Emulator] order: expected one of {ORDERS}, found {order!r}")
        self.build, self.order = build, order
        self.compiler = Compiler(Path(cache_dir) if cache_dir else default_cache())

    def compile(self, text: str) -> host.Module:
        """The module of a text, from memory, disk or clang."""
        key = (self.build, text, self.compiler.folder)
        if key not in _modules:
            host.runtime(self.compiler.runtime())
            _modules[key] = host.Module(self.compiler.module(text, self.build))
        return _modules[key]

    def build_all(self, texts) -> None:
        """Builds the modules of several texts at once, on all processors, for launches to find."""
        new = [text for text in dict.fromkeys(texts) if (self.build, text, self.compiler.folder) not in _modules]
        if len(new) > 1:
            self.compiler.prefix(self.build)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda text: self.compiler.module(text, self.build), new))

    def launch(self, text: str, name: str, buffers, grid, threadgroup, constants: dict[int, int] | None = None) -> Report:
        """Runs kernel `name` of a complete Metal text and writes its results into the buffers' arrays.

        buffers       in the order of the signature: NumPy arrays (any strides), Buffer objects, or None for one that is absent
        grid          threads in x, y, z, as MLX and dispatchThreads count; the threadgroup is cut to it
        constants     values of function constants by number
        """
        report = Report()
        if not text.isascii():
            where = next(i for i, c in enumerate(text) if not c.isascii())
            found = f"the text has a character that is not ASCII, {text[where]!r}: MLX hands texts over as ASCII"
            report.faults.append(Fault("limit", found, text.count("\n", 0, where) + 1, line_of(text, text.count("\n", 0, where) + 1)))
        with _running:
            module = self.compile(text)
            if name not in module.kernels:
                raise EmulatorError(f"[launch] name: expected one of {sorted(module.kernels)}, found {name!r}")
            kernel = module.kernels[name]
            parameters = [kernel.parameters[i] for i in range(kernel.parameter_count) if kernel.parameters[i].code >= host.BUFFER]
            buffers = [b if b is None or isinstance(b, Buffer) else Buffer(np.asanyarray(b)) for b in buffers]
            check_buffers(name, parameters, buffers)
            report.faults += limits(name, parameters, buffers, grid, threadgroup)
            if not report.faults:
                module.set_constants(constants or {})
                self.run(module, kernel, parameters, buffers, grid, threadgroup, text, report)
        return report

    def run(self, module, kernel, parameters, buffers, grid, threadgroup, text, report) -> None:
        checked = self.build != "plain"
        placed = [b and Placed(b, p, checked) for b, p in zip(buffers, parameters)]
        views = (host.BufferView * host.MAX_BUFFERS)()
        # An absent reference must point somewhere: compilers load through references before it is clear that the value is used.
        absent = np.full(256, POISON, np.uint8)
        for p, parameter in zip(placed, parameters):
            views[parameter.code - host.BUFFER] = p.view() if p else host.BufferView(absent.ctypes.data)
        dispatch = host.Dispatch(tuple(grid), tuple(threadgroup), self.order == "descending", checked)
        counters = host.Counters()
        faults = ctypes.create_string_buffer(1 << 16)
        library = host.runtime(self.compiler.runtime())
        if library.emulator_launch(kernel, views, dispatch, counters, faults, len(faults)):
            raise EmulatorError("[launch] threadgroup: no memory for its threads' stacks")
        for count in (*host.COUNTS, "seconds"):
            setattr(report, count, getattr(counters, count))
        report.faults += read_faults(faults.value.decode(), module.path, text)
        for p in placed:
            if p and p.writable:
                p.write_back()
            if p and not p.surroundings_intact():
                report.faults.append(Fault("out of bounds", f"something was written around buffer '{p.name}'"))


class Placed:
    """A buffer's copy in emulated device memory: alone between two stretches of poison."""

    def __init__(self, buffer: Buffer, parameter: host.Parameter, checked: bool):
        array = self.array = buffer.array
        self.name = parameter.name.decode()
        self.writable = bool(parameter.writable)
        self.constant = parameter.space == host.CONSTANT
        self.initialised = buffer.initialised or not self.writable
        first, end = extent(array)
        self.size = end - first
        # A multiple of the promised alignment, but not of twice that: a wider load shows as misaligned.
        alignment = max(array.itemsize, buffer.alignment) if checked else 64
        self.raw = np.full(self.size + 2 * SLACK + 4 * alignment, POISON, np.uint8)
        odd = alignment if checked else 0
        self.start = SLACK + (odd - (self.raw.ctypes.data + SLACK)) % (2 * alignment)
        self.offset = self.start + array.ctypes.data - first
        if self.initialised and self.size:
            ctypes.memmove(self.raw.ctypes.data + self.start, first, self.size)

    def view(self) -> host.BufferView:
        memory = self.raw.ctypes.data
        flags = (self.writable, self.constant, self.initialised)
        return host.BufferView(memory + self.offset, memory + self.start, self.size, self.name.encode(), *flags)

    def write_back(self) -> None:
        array = self.array
        array[...] = np.ndarray(array.shape, array.dtype, self.raw, self.offset, array.strides)

    def surroundings_intact(self) -> bool:
        return bool((self.raw[: self.start] == POISON).all() and (self.raw[self.start + self.size :] == POISON).all())


def extent(array: np.ndarray) -> tuple[int, int]:
    """The first address of an array's memory and the one past its last byte."""
    first = array.ctypes.data
    if not array.size:
        return first, first
    steps = [(length - 1) * stride for length, stride in zip(array.shape, array.strides)]
    return first + sum(min(step, 0) for step in steps), first + sum(max(step, 0) for step in steps) + array.itemsize


def default_cache() -> Path:
    """build/metal_emulator of the checkout, or a temporary folder where that cannot be written."""
    folder = Path(__file__).resolve().parents[2] / "build" / "metal_emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / f"metal_emulator_{os.getuid()}"
    return folder


def check_buffers(name: str, parameters, buffers) -> None:
    """Raises where the buffers cannot be those of the signature."""
    if len(buffers) != len(parameters):
        names = ", ".join(p.name.decode() for p in parameters)
        raise EmulatorError(f"[launch] buffers: expected {len(parameters)} for {name} ({names}), found {len(buffers)}")
    for parameter, buffer in zip(parameters, buffers):
        if buffer is None or not name.startswith(MLX_PREFIX):
            continue
        array = buffer.array
        if array.itemsize != parameter.item_size:
            raise EmulatorError(
                f"[launch] buffers: expected items of {parameter.item_size} bytes for '{parameter.name.decode()}', found {array.dtype}"
            )
        if parameter.space == host.DEVICE and not parameter.writable and array.size < SMALL:
            raise EmulatorError(
                f"[launch] buffers: expected at least {SMALL} elements for '{parameter.name.decode()}', which the signature takes from "
                f"device memory, found {array.size}: MLX passes fewer as constant"
            )


def limits(name: str, parameters, buffers, grid, threadgroup) -> list[Fault]:
    """What a device would refuse before it starts."""
    found = []
    highest = max((p.code - host.BUFFER for p in parameters), default=0)
    if highest >= host.MAX_BUFFERS:
        found.append(Fault("limit", f"{name} has a buffer number {highest}: at most {host.MAX_BUFFERS} buffers, 0 to 30"))
    if min(grid) < 1 or min(threadgroup) < 1:
        found.append(Fault("limit", f"grid {tuple(grid)} and threadgroup {tuple(threadgroup)} must be positive"))
    threads = int(np.prod(threadgroup, dtype=np.int64))
    if threads > host.MAX_THREADS:
        found.append(Fault("limit", f"a threadgroup of {threads} threads: the limit is {host.MAX_THREADS}"))
    return found


def line_of(text: str, number: int) -> str:
    lines = text.split("\n")
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def read_faults(log: str, module: Path, text: str) -> list[Fault]:
    """The runtime's lines as Faults, with the line of the text for each instruction where a tool can tell it."""
    rows = [line.split("\t", 3) for line in log.split("\n") if line]
    offsets = sorted({int(offset) for _, _, offset, _ in rows if int(offset)})
    lines = dict(zip(offsets, lines_at(module, offsets)))
    faults = []
    for kind, line, offset, sentence in rows:
        number = int(line) or lines.get(int(offset), 0)
        faults.append(Fault(kind, sentence, number, line_of(text, number)))
    return faults


def lines_at(module: Path, offsets: list[int]) -> list[int]:
    """Line numbers of instructions, 0 where unknown, from the module's debug information."""
    tool = shutil.which("addr2line")
    if not tool or not offsets:
        return [0] * len(offsets)
    done = subprocess.run([tool, "-e", str(module), *map(hex, offsets)], capture_output=True, text=True)
    numbers = []
    for row in done.stdout.split("\n"):
        name, _, number = row.split(" ")[0].rpartition(":")
        numbers.append(int(number) if name.endswith("kernel.metal") and number.isdigit() else 0)
    return numbers
