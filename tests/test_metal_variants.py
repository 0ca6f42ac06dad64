"""The texts that the workflow for macOS gives to Apple's compiler: written here, complete, and right as far as the lint and clang know."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("numpy")

import metal_lint
import metal_variants
from building import ROOT
from metal_emulator import Emulator, EmulatorError
from metal_emulator.compiler import compiler

try:
    compiler()
except EmulatorError as error:
    pytest.skip(str(error), allow_module_level=True)

SOURCES = "".join(path.read_text() for path in (ROOT / "src/metal/kernels").glob("*.metal"))
OF_METAL_4 = {"forward_tensor"}  # which PyTorch does not compile
KERNELS = sorted(set(re.findall(r"define FA_ENTRY_(\w+)\(", SOURCES)) - OF_METAL_4)


@pytest.fixture(scope="module")
def texts():
    return metal_variants.texts()


def kernel_of(name: str) -> str:
    return re.fullmatch(r"torch_(\w+)_[0-9a-f]{16}", name).group(1)


def test_every_kernel_is_written(texts):
    assert sorted({kernel_of(name) for name in texts}) == KERNELS
    assert len(texts) == len(set(texts.values())) > 500


@pytest.mark.parametrize("kernel", KERNELS)
def test_texts_are_clean(texts, kernel):
    """bfloat16, where conversions are strictest; all variants of a kernel have the same lines but for constants."""
    some = [text for name, text in texts.items() if kernel_of(name) == kernel]
    text = next((text for text in some if "#define FA_DTYPE 2" in text and "#define FA_VECTOR 1" in text), None)
    text = text or next(text for text in some if "#define FA_DTYPE 2" in text)
    assert metal_lint.lint(text) == []


def test_command_line(tmp_path, capsys):
    assert metal_variants.main([str(tmp_path / "texts"), "--quick"]) == 0
    files = sorted((tmp_path / "texts").glob("*.metal"))
    assert f"{len(files)} texts in" in capsys.readouterr().out
    assert all(re.search(r"\[\[kernel\]\] void|kernel void", path.read_text("ascii")) for path in files)


def test_mlxs_texts_are_complete(tmp_path):
    """With what MLX puts before them; one is compiled."""
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    from metal_emulator.capture import mlx_utils

    if tuple(map(int, mx.__version__.split(".")[:2])) < (0, 32):
        pytest.skip("before 0.32 MLX cannot build a metal_kernel without Metal")
    texts = metal_variants.texts_of_mlx(quick=True)
    found = {re.fullmatch(r"(mlx|metal4)_(\w+)_[0-9a-f]{16}", name).groups() for name in texts}
    kernels = {kernel for prefix, kernel in found if prefix == "mlx"}
    assert {kernel for prefix, kernel in found if prefix == "metal4"} == OF_METAL_4 and not kernels & OF_METAL_4
    assert {"forward", "decode", "backward_dq", "backward_dkv", "bias_gradient", "forward_plain", "merge", "delta"} <= kernels
    assert Emulator().compile(next(text for name, text in texts.items() if name.startswith("mlx_decode"))).kernels
    text = next(text for name, text in texts.items() if name.startswith("mlx_forward_") and "#define FA_VECTOR 2" in text)
    assert metal_lint.lint(text, skip=mlx_utils().count("\n")) == []
    text = next(text for name, text in texts.items() if name.startswith("metal4_") and "#define FA_DTYPE 2" in text)
    assert metal_lint.lint(text, skip=mlx_utils().count("\n")) == []
