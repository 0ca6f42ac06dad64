"""python -m flash_attn: what was found on this machine, and what is missing. selftest and bench after it are programs of their own."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys


def _version(module: str, distribution: str | None = None) -> str:
    try:
        return importlib.metadata.version(distribution or module)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# Not importlib.metadata.packages_distributions(): Python 3.10's sees no package that comes without top_level.txt, as ours does.
def _provides_flash_attn(distribution: importlib.metadata.Distribution) -> bool:
    listed = (distribution.read_text("top_level.txt") or "").split()
    return "flash_attn" in listed or any(file.parts[:1] == ("flash_attn",) for file in distribution.files or ())


def _other_distribution() -> str | None:
    """A second package that provides the module flash_attn: the registry's CUDA-only one has the same name."""
    owners = sorted({other.metadata["Name"] for other in importlib.metadata.distributions() if _provides_flash_attn(other)})
    if len(owners) > 1:
        return f"several distributions provide flash_attn ({', '.join(owners)}): uninstall all of them, then install one."
    try:
        files = importlib.metadata.files("flash-attn") or []
    except importlib.metadata.PackageNotFoundError:
        return "imported from a checkout, not from an installed package."
    if not any(str(file).endswith(".so") and "_core" in str(file) for file in files):
        return "the installed distribution flash-attn is another project's: pip uninstall flash-attn, then install this one."
    return None


def _metal(mode: str) -> str:
    from flash_attn.flash_attn_mlx import device

    if mode.startswith("emulate"):
        return "kernels run in the emulator (FLASH_ATTENTION_METAL)"
    if not device.is_apple_silicon():
        return f"expected a Mac with an Apple chip, found {sys.platform} on {platform.machine()}"
    available, said = device.check_mlx_requirements()
    return f"ready: {said}; not tried on one: python -m flash_attn selftest" if available and said.endswith("Metal.") else said


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["selftest"], ["bench"]):
        return importlib.import_module(f"flash_attn.{arguments[0]}").main(arguments[1:])
    if arguments:
        print(f"[flash_attn] arguments: expected none, selftest or bench, found {' '.join(arguments)}", file=sys.stderr)
        return 2
    return report()


def report() -> int:
    """Prints what there is."""
    import flash_attn
    from flash_attn import _core

    print(
        f"flash_attn {flash_attn.__version__} (distribution {_version('flash-attn')}), {platform.platform()}, "
        f"Python {platform.python_version()}"
    )
    warning = _other_distribution()
    if warning:
        print(f"  note: {warning}")
    print("backends")
    try:
        print(f"  CPU    ready: instruction set {_core.isa()}, {_core.threads()} threads")
    except ValueError as error:
        print(f"  CPU    {error}")
    cuda = _core.cuda_state()
    print(f"  CUDA   driver: {cuda['driver']}")
    for number, device in enumerate(cuda["devices"]):
        print(f"         device {number}: {device}")
    print(f"         compiler: {cuda['compiler']}")
    print(f"         compiled kernels: {cuda['cache']}")
    print(f"  Metal  {_metal(_core.metal_mode())}")
    print("  ROCm   not in this release")
    print("frameworks")
    for module, note in (
        ("numpy", "NumPy arrays: all seven functions, explicit gradients"),
        ("ml_dtypes", "bfloat16 for NumPy"),
        ("mlx", "MLX arrays (pip install 'flash-attn[mlx]')"),
        ("torch", "PyTorch tensors"),
        ("jax", "JAX arrays: not in this release"),
    ):
        print(f"  {module:10} {_version(module):14} {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
