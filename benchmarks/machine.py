"""The machine a benchmark runs on: its peak of fused multiply-adds, what it is, and the state of the sources."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Peak:
    """Calls do float32 multiply-adds from registers on `threads` threads at once, and return the operations a second of all together.

    Each thread is measured in its own CPU time: the peak is what the cores can do, however busy the machine is.
    """

    STEPS = 400_000  # 1 to 4 ms

    def __init__(self, threads: int):
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "peak.so"
            compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"
            flags = ["-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC"]
            source = Path(__file__).with_name("peak.cpp")
            subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
            self.function = ctypes.CDLL(str(library)).multiply_add_rate
        self.function.restype, self.function.argtypes = ctypes.c_double, [ctypes.c_long]

    def __call__(self) -> float:
        if self.threads == 1:
            return self.function(self.STEPS)
        return sum(self.pool.map(self.function, [self.STEPS] * self.threads))


def processor() -> str:
    """The CPU's name, as the system knows it."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False).stdout.strip()
    return platform.machine()


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The commit of the sources, "+" after it if files differ from it; empty outside a checkout."""

    def git(*words: str) -> str:
        result = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict:
    """What a result must say to be repeatable. No host name, no path."""
    from flash_attn import _core

    versions = {name: version(name) for name in ("flash-attn", "numpy", "mlx", "torch")}
    return {
        "processor": processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "instruction_set": _core.isa(),
        "versions": {name: found for name, found in versions.items() if found},
        "commit": commit(),
        "load": round(os.getloadavg()[0], 1),  # before the run: of others
    }
