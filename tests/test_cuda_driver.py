"""The CUDA driver layer, cache and runner, on a driver and a compiler made of software (fake_cuda/): no GPU is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flash_attn import _core

FAKE = Path(__file__).resolve().parent / "fake_cuda"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CUDA is found through Linux's loader")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The folder of libcuda.so.1 and libnvrtc.so."""
    folder = tmp_path_factory.mktemp("libraries")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    for source, library in (("libcuda.cpp", "libcuda.so.1"), ("libnvrtc.cpp", "libnvrtc.so")):
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", str(FAKE / source), "-o", str(folder / library)]
        subprocess.run(command, check=True)
    return folder


class Machine:
    """Runs Python in processes that see the software GPU; what it was asked for is in `log`, compilations in `compiled`."""

    def __init__(self, libraries: Path, folder: Path):
        self.libraries, self.folder, self.cache = libraries, folder, folder / "home" / "cache"
        self.log_file, self.compiled_file = folder / "log", folder / "compiled"

    def environment(self, **changes: str | None) -> dict[str, str]:
        package = Path(_core.__file__).parent.parent
        made = os.environ | {
            "LD_LIBRARY_PATH": str(self.libraries),
            "PYTHONPATH": os.pathsep.join([str(FAKE), str(package)]),
            "FLASH_ATTENTION_NVRTC": str(self.libraries / "libnvrtc.so"),
            "FLASH_ATTENTION_CACHE": str(self.cache),
            "FAKE_CUDA_LOG": str(self.log_file),
            "FAKE_NVRTC_LOG": str(self.compiled_file),
        }
        made |= {name: value for name, value in changes.items() if value is not None}
        return {name: value for name, value in made.items() if name not in changes or changes[name] is not None}

    def run(self, script: str, **changes: str | None) -> str:
        """What a script prints; AssertionError if it fails."""
        command = [sys.executable, "-c", f"from client import *\n{script}"]
        done = subprocess.run(command, env=self.environment(**changes), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def error(self, script: str, **changes: str | None) -> str:
        """The error that a script ends with."""
        return self.run(f"try:\n  {script}\nexcept Exception as error:\n  print(type(error).__name__, error)", **changes)

    def log(self, *kinds: str) -> list[str]:
        lines = self.log_file.read_text().splitlines() if self.log_file.exists() else []
        return [line for line in lines if not kinds or line.split()[0] in kinds]

    @property
    def compiled(self) -> list[str]:
        return self.compiled_file.read_text().splitlines() if self.compiled_file.exists() else []


@pytest.fixture
def machine(libraries, tmp_path):
    return Machine(libraries, tmp_path)


# ---- launches ----------------------------------------------------------------------------------------------------------


def test_a_launch_gets_the_callers_stream_arrays_and_numbers(machine):
    printed = machine.run(
        """
arrays = qkv()
outputs, _ = run(Pass.FORWARD, arrays, Options(causal=True), stream=0xabc)
print(*(f"{view_address[id(v)]:x}" for _, v in arrays + outputs))
"""
    )
    (launch,) = machine.log("launch")
    _, kernel, blocks, threads, shared, stream, device, q, *pointers = launch.replace("arrays ", "").split()
    assert (kernel, blocks.split(",")[1:], stream, device, q) == ("forward", ["4", "2"], "abc", "0", "q=25600,256,64")
    assert int(threads.split(",")[0]) % 32 == 0
    assert [p for p in pointers if p != "0"] == printed.split()
    assert [i for i, p in enumerate(pointers) if p != "0"] == [0, 1, 2, 3, 4]  # q, k, v, out, lse by role
    assert f"attribute forward 8 {shared}" in machine.log("attribute")


def test_every_launch_of_a_plan_gets_its_temporaries(machine):
    printed = machine.run(
        """
arrays = backward_of(qkv())
_, temporaries = run(Pass.BACKWARD, arrays)
print(*(f"{view_address[id(v)]:x}" for v in temporaries))
for launch in core.plan("f", Pass.BACKWARD, arrays, Options(), (CUDA, 90, 132, 232448))["launches"]:
    print(launch["kernel"], *(f"{role}:{temporary}" for role, temporary in launch["arguments"] if temporary >= 0))
"""
    )
    first, *planned = printed.splitlines()
    addresses, launched = first.split(), machine.log("launch")
    assert len(planned) == len(launched) > 1 and len(addresses) > 1
    for words, line in zip((p.split() for p in planned), launched, strict=True):
        kernel, pointers = line.split()[1], line.partition("arrays ")[2].split()
        assert kernel == words[0]
        for pair in words[1:]:
            role, temporary = map(int, pair.split(":"))
            assert pointers[role] == addresses[temporary]


def test_later_calls_load_wait_and_ask_for_nothing(machine):
    machine.run("arrays = qkv()\nfor _ in range(3): run(Pass.FORWARD, arrays)")
    kinds = [line.split()[0] for line in machine.log()]
    assert kinds.count("load") == kinds.count("function") == 1 and kinds.count("launch") == 3
    assert kinds[-2:] == ["launch", "launch"] and "synchronize" not in kinds


def test_modules_load_while_a_stream_is_captured(machine):
    machine.run("forward()")
    assert [line for line in machine.log("capture", "load") if "load" not in line] == ["capture mode 2", "capture mode 0"]
    assert machine.log("capture", "load")[1].startswith("load")


def test_arrays_of_another_device_than_the_current_one(machine):
    machine.run("for index in (1, 0, 1): run(Pass.FORWARD, qkv(index=index), index=index)", FAKE_CUDA_DEVICES="2", FAKE_CUDA_CONTEXT="0")
    steps = [" ".join(line.split()[:2]) for line in machine.log("retain", "push", "pop", "load")]
    assert steps == ["retain 1", "push 1", "load 1", "pop 1", "load 0", "push 1", "pop 1"]
    assert [line.split()[6] for line in machine.log("launch")] == ["1", "0", "1"]


def test_a_thread_without_a_context_uses_the_devices_own(machine):
    machine.run("forward()", FAKE_CUDA_CONTEXT="-1")
    assert [line.split()[0] for line in machine.log("retain", "push", "launch", "pop")] == ["retain", "push", "launch", "pop"]


def test_a_device_that_is_not_there(machine):
    assert "[cuda] device: expected 0 to 0, found 3." in machine.error("run(Pass.FORWARD, qkv(index=3), index=3)")


def test_nothing_to_do_is_no_launch(machine):
    machine.run("run(Pass.FORWARD, qkv(rows=0))")
    assert not machine.log("launch", "load")


def test_append_and_a_call_with_a_cache(machine):
    machine.run(
        """
cache = [(Role.K, array((3, 64, 2, 64))), (Role.V, array((3, 64, 2, 64))), (Role.LENGTHS, array((2,), "int32")),
         (Role.CACHE_ROWS, array((2,), "int32"))]
new = [(Role.NEW_K, array((2, 5, 2, 64))), (Role.NEW_V, array((2, 5, 2, 64)))]
run(Pass.APPEND, cache + new)
run(Pass.FORWARD, [(Role.Q, array((2, 5, 4, 64)))] + cache)
"""
    )
    assert machine.log("launch")[0].split()[1] == "append"
    assert machine.log("launch")[0].split()[2] == "2,2,2"


def test_values_are_checked_only_on_request(machine):
    script = """
arrays = [(Role.Q, array((10, 4, 64))), (Role.K, array((10, 2, 64))), (Role.V, array((10, 2, 64)))]
arrays += [(role, array((3,), "int32", values=[0, 7, 12])) for role in (Role.CU_ROWS, Role.CU_KEYS)]
run(Pass.FORWARD, arrays, Options(max_rows=7, max_keys=7))
"""
    machine.run(script)
    assert not machine.log("synchronize", "copy")
    script = script.replace("\n", "\n  ").strip()
    expected = "ValueError [flash_attn_func] cu_seqlens_q: expected an end within the 10 packed rows, found 12."
    assert expected in machine.error(script, FLASH_ATTENTION_CHECK="1")
    assert [line.split()[0] for line in machine.log("synchronize", "copy", "launch")][-2:] == ["synchronize", "copy"]


def test_memory_is_looked_at_without_being_read(machine):
    for address, expected in ((0, "with memory, found a null pointer"), (257, "memory aligned to its elements of 2 bytes")):
        script = f"run(Pass.FORWARD, [(Role.Q, core.view_of_address({address}, 2, [2, 1, 4, 64], [256, 256, 64, 1], CUDA)), *qkv()[1:]])"
        assert f"ValueError [flash_attn_func] q: expected {'an array ' if address == 0 else ''}{expected}" in machine.error(script)


# ---- errors ------------------------------------------------------------------------------------------------------------


def test_failures_name_what_was_done_and_what_the_driver_said(machine):
    said = "CUDA_ERROR_FAKE (700): a planted failure."
    found = machine.error("forward()", FAKE_CUDA_FAIL="cuLaunchKernel")
    assert re.search(r"RuntimeError \[cuda\] launch of forward \(forward_sm80\.cuh, 1 x 4 x 2 blocks of \d+ threads, \d+ bytes\): ", found)
    assert said in found
    found = machine.error("forward()", FAKE_CUDA_FAIL="cuModuleLoadData")
    assert "[cuda] loading forward_sm80.cuh sm_90 FA_F=0" in found and said in found
    found = machine.error("forward()", FAKE_CUDA_FAIL="cuFuncSetAttribute")
    assert "[cuda] kernel forward of forward_sm80.cuh" in found and "bytes of shared memory" in found
    assert "[cuda] driver: expected a usable NVIDIA GPU, found CUDA_ERROR_FAKE" in machine.error("forward()", FAKE_CUDA_FAIL="cuInit")


def test_a_failed_load_is_tried_again(machine):
    script = """
import os
for _ in range(2):
    try:
        forward()
        print("runs")
    except RuntimeError:
        os.environ.pop("FAKE_CUDA_FAIL")
        import ctypes
        ctypes.CDLL(None).unsetenv(b"FAKE_CUDA_FAIL")
"""
    assert "runs" in machine.run(script, FAKE_CUDA_FAIL="cuModuleLoadData")


def test_a_failed_compilation_shows_the_first_error(machine):
    found = machine.error("forward()", FAKE_NVRTC_FAIL="1")
    assert "RuntimeError [cuda] compiler: forward_sm80.cuh: FAKE_ERROR" in found and "kernels/a.cuh(3): error: planted" in found
    assert "some warning" not in found
    assert not list(machine.cache.glob("*")) if machine.cache.exists() else True


def test_without_a_driver(machine, tmp_path):
    found = machine.error("forward()", LD_LIBRARY_PATH=str(tmp_path))
    assert "RuntimeError [cuda] driver: expected NVIDIA's driver (libcuda.so.1), found none" in found


def test_without_a_compiler(machine, tmp_path):
    found = machine.error("forward()", FLASH_ATTENTION_NVRTC=str(tmp_path / "libnvrtc.so"))
    assert "RuntimeError [cuda] compiler: expected NVIDIA's run-time compiler" in found
    assert "pip install nvidia-cuda-nvrtc (CUDA 13) or nvidia-cuda-nvrtc-cu12 (CUDA 12)." in found
    assert "is of CUDA 11.8" in machine.error("forward()", FAKE_NVRTC_VERSION="11080")


def test_a_kernel_that_does_not_exist_for_the_device(machine):
    found = machine.error("forward()", FAKE_CUDA_ARCH="70")
    assert found.startswith("NotImplementedError [flash_attn_func] no CUDA kernel takes this call: ")
    assert "; forward_sm80: is for other chips than architecture 70" in found


# ---- the compiler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "option"), [("80", "sm_80"), ("90", "sm_90a"), ("100", "sm_100a"), ("89", "compute_80"), ("120", "compute_100")]
)
def test_architectures(machine, arch, option):
    machine.run("forward()", FAKE_CUDA_ARCH=arch)
    assert machine.compiled[0].startswith(f"--gpu-architecture={option} -default-device --std=c++20 -DFA_F=0 ")


@pytest.mark.parametrize(("driver", "chosen"), [("12080", "12"), ("13000", "13")])
def test_the_compiler_is_no_newer_than_the_driver(machine, driver, chosen):
    for part, number in (("cu13", "13"), ("cuda_nvrtc", "12")):
        folder = machine.folder / "site" / "nvidia" / part / "lib"
        folder.mkdir(parents=True)
        shutil.copy(machine.libraries / "libnvrtc.so", folder / f"libnvrtc.so.{number}")
    script = f"import sys\nsys.path.append({str(machine.folder / 'site')!r})\n" + "print(core.cuda_state()['compiler'])"
    path = os.pathsep.join([str(FAKE), str(Path(_core.__file__).parent.parent), str(machine.folder / "site")])
    found = machine.run(script, FLASH_ATTENTION_NVRTC=None, FAKE_CUDA_VERSION=driver, PYTHONPATH=path, CUDA_HOME="/nowhere")
    assert found.rstrip().endswith(f"libnvrtc.so.{chosen}")


def test_what_one_call_needs_is_compiled_at_once(machine):
    script = "import time\nstart = time.perf_counter()\nrun(Pass.BACKWARD, backward_of(qkv()))\nprint(time.perf_counter() - start)"
    seconds = float(machine.run(script, FAKE_NVRTC_MS="700"))
    assert len(machine.compiled) >= 2 and seconds < 1.3


def test_threads_compile_and_load_once(machine):
    machine.run(
        """
import threading
threads = [threading.Thread(target=forward) for _ in range(6)]
for t in threads: t.start()
for t in threads: t.join()
""",
        FAKE_NVRTC_MS="200",
    )
    assert len(machine.compiled) == len(machine.log("load")) == 1 and len(machine.log("launch")) == 6


# ---- the cache ---------------------------------------------------------------------------------------------------------


def entries(machine) -> list[Path]:
    return sorted(machine.cache.iterdir())


def test_later_processes_compile_nothing(machine):
    machine.run("forward()")
    machine.run("forward()")
    assert len(machine.compiled) == 1 and len(machine.log("load")) == 2
    (entry,) = entries(machine)
    assert len(entry.name) == 64 and entry.stat().st_mode & 0o777 == 0o600 and machine.cache.stat().st_mode & 0o777 == 0o700


def test_whatever_decides_the_content_is_in_the_name(machine):
    sources = machine.folder / "src"
    shutil.copytree(FAKE.parent.parent / "src", sources)
    texts = {"FLASH_ATTENTION_KERNELS": str(sources)}
    machine.run("forward()", **texts)
    machine.run("forward()", FAKE_NVRTC_VERSION="13010", **texts)
    machine.run("forward()", FAKE_CUDA_ARCH="80", **texts)
    machine.run("forward(softcap=2.0)", **texts)
    assert len(entries(machine)) == 4
    for file, expected in (("cuda/tiles.h", 4), ("semantics/mask.h", 5)):
        with (sources / file).open("a") as text:
            text.write("// changed\n")
        machine.run("forward()", **texts)
        assert len(machine.compiled) == len(entries(machine)) == expected, file


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "folder"])
def test_a_damaged_entry_is_built_again(machine, damage):
    machine.run("forward()")
    (entry,) = entries(machine)
    good = entry.read_bytes()
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        entry.write_bytes({"empty": b"", "cut": good[:-1], "changed": good[:-1] + b"x"}[damage])
    machine.run("forward()")
    assert len(machine.compiled) == 2
    if damage != "folder":
        assert entry.read_bytes() == good
    assert len(entries(machine)) == 1, "a file written aside was left"


def test_processes_at_once(machine):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: machine.run("forward()", FAKE_NVRTC_MS="100"), range(6)))
    assert len(entries(machine)) == 1 and len(machine.log("launch")) == 6
    before = len(machine.compiled)
    machine.run("forward()")
    assert len(machine.compiled) == before


@pytest.mark.parametrize("trouble", ["file", "below a file", "others may write", "link"])
def test_without_a_folder_to_trust_nothing_is_kept_and_nothing_fails(machine, trouble):
    machine.cache.parent.mkdir()
    if trouble == "others may write":
        machine.cache.mkdir()
        machine.cache.chmod(0o777)
    elif trouble == "below a file":
        machine.cache.write_text("")
        machine.cache = machine.cache / "folder"
    elif trouble == "file":
        machine.cache.write_text("")
    machine.run("forward()")
    if trouble == "link":  # an entry that leads elsewhere is not read
        (entry,) = entries(machine)
        elsewhere = machine.folder / "elsewhere"
        entry.rename(elsewhere)
        entry.symlink_to(elsewhere)
    machine.run("forward()")
    assert len(machine.compiled) == 2 and len(machine.log("launch")) == 2
    if trouble != "link":
        assert machine.run("print(core.cuda_state()['cache'])").startswith("none: ")
    if trouble == "others may write":
        assert not entries(machine)


def test_the_users_own_cache_folder(machine):
    changes = {"FLASH_ATTENTION_CACHE": None, "XDG_CACHE_HOME": None, "HOME": str(machine.folder / "someone")}
    machine.run("forward()", **changes)
    assert len(list((machine.folder / "someone" / ".cache" / "flash_attn").iterdir())) == 1
    machine.run("forward()", **changes | {"XDG_CACHE_HOME": str(machine.folder / "xdg")})
    assert len(list((machine.folder / "xdg" / "flash_attn").iterdir())) == 1
    assert "none: no home folder is known" in machine.run("print(core.cuda_state()['cache'])", **changes | {"HOME": None})
