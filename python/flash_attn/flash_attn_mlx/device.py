"""Whether MLX is here, and on what."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

MINIMUM = (0, 29)  # of MLX


def _mlx_version() -> str | None:
    try:
        return importlib.metadata.version("mlx")
    except importlib.metadata.PackageNotFoundError:
        return None


def is_apple_silicon() -> bool:
    """Whether this is a Mac with an Apple chip."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def is_mlx_available() -> bool:
    """Whether MLX arrays can be used here, on whatever device: an MLX new enough is installed and can be imported."""
    return check_mlx_requirements()[0]


def check_mlx_requirements() -> tuple[bool, str]:
    """(whether all is there, a sentence that says what is, or what is missing)."""
    wanted = ".".join(map(str, MINIMUM))
    version = _mlx_version()
    if version is None:
        return False, "MLX is not installed: pip install 'mlx[cpu]' on Linux, pip install mlx on a Mac."
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        return False, f"MLX {version} is too old: {wanted} or newer is needed."
    try:
        import mlx.core as mx
    except ImportError as error:
        return False, f"MLX {version} is installed but cannot be imported: {error}"
    return True, f"MLX {version} on {'Metal' if mx.metal.is_available() else 'the CPU'}."


def get_device_info() -> dict[str, Any]:
    """The platform, MLX's version and its default device."""
    info: dict[str, Any] = {"platform": sys.platform, "machine": platform.machine(), "is_apple_silicon": is_apple_silicon()}
    info["mlx_available"] = is_mlx_available()
    if info["mlx_available"]:
        import mlx.core as mx

        info |= {"mlx_version": _mlx_version(), "metal": mx.metal.is_available(), "default_device": str(mx.default_device())}
    return info
