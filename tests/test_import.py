"""Importing the package: quick, and without any library of arrays; every module of an installed wheel imports."""

from __future__ import annotations

import os
import sys
from importlib import metadata

from building import run

QUICK = 0.030  # seconds
FRAMEWORKS = ("numpy", "torch", "mlx", "jax", "ml_dtypes")
NEEDED = {"call", "engine", "explain", "frameworks", "frameworks.base", "interface", "scalars", "_core"}


def test_import_loads_only_what_a_first_call_needs():
    probe = f"import sys, flash_attn; print(*(m for m in sys.modules if m.split('.')[0] in ('flash_attn', *{FRAMEWORKS})))"
    loaded = set(run(sys.executable, "-c", probe).split())
    assert loaded == {"flash_attn"} | {f"flash_attn.{name}" for name in NEEDED}


def test_import_is_quick(tmp_path):
    """In CPU time, and the best of several: other work on the machine only adds to it."""
    environment = dict(os.environ, PYTHONPYCACHEPREFIX=str(tmp_path))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    probe = "import time; start = time.process_time(); import flash_attn; print(time.process_time() - start)"
    assert min(float(run(sys.executable, "-c", probe, env=environment)) for _ in range(8)) < QUICK


def modules() -> list[str]:
    """Names of the installed modules, from the list that pip keeps."""
    names = []
    for file in metadata.files("flash-attn") or ():
        parts = file.with_suffix("").parts
        if file.suffix == ".py" and parts[0].startswith("flash_attn") and parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


def test_every_installed_module_imports():
    found = modules()
    assert {"flash_attn_interface", "flash_attn_2_cuda", "flash_attn.cute.interface", "flash_attn.ops.triton.rotary"} <= set(found)
    run(sys.executable, "-c", PROBE.format(found=found, frameworks=FRAMEWORKS))


PROBE = """
import importlib, importlib.util
for module in {found}:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:  # only for want of a library that is not here
        if error.name not in {frameworks} or importlib.util.find_spec(error.name):
            raise
"""


def report(**variables: str) -> str:
    return run(sys.executable, "-m", "flash_attn", env=dict(os.environ, **variables))


def test_the_report_names_backends_and_frameworks():
    said = report(FLASH_ATTENTION_CPU_ISA="scalar", FLASH_ATTENTION_NUM_THREADS="1")
    assert "CPU    ready: instruction set scalar, 1 threads" in said
    for word in ("CUDA ", "Metal ", "ROCm ", *FRAMEWORKS):
        assert f"\n  {word}" in said, word


def test_the_report_of_a_wrong_variable_says_so():
    assert "FLASH_ATTENTION_CPU_ISA: expected one of" in report(FLASH_ATTENTION_CPU_ISA="sse9")


def test_the_report_detects_a_second_distribution(tmp_path):
    other = tmp_path / "another-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    (other / "top_level.txt").write_text("flash_attn\n")
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(tmp_path)])
    assert "several distributions provide flash_attn" in report(PYTHONPATH=path)
