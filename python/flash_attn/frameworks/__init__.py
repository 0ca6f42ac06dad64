"""One file for each kind of arrays; a framework is imported when the first of its arrays arrives, never before."""

from __future__ import annotations

from typing import Any

from flash_attn.frameworks.base import Framework


# Import statements, not importlib, and no table that grows: torch.compile, which may see the very first call, follows only the former,
# and would compile again for each change of the latter.
def _numpy() -> Framework:
    from flash_attn.frameworks.numpy import FRAMEWORK

    return FRAMEWORK


def _torch() -> Framework:
    from flash_attn.frameworks.torch import FRAMEWORK

    return FRAMEWORK


def _mlx() -> Framework:
    from flash_attn.frameworks.mlx import FRAMEWORK

    return FRAMEWORK


# (module, name) of an array's type or of one of its bases -> what imports our file, and later the framework itself
_FILES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _numpy,
    ("torch", "Tensor"): _torch,
    ("torch.nn.parameter", "Parameter"): _torch,
    ("mlx.core", "array"): _mlx,
}
_LATER = {("jaxlib", "ArrayImpl"): "JAX", ("jax", "Tracer"): "JAX"}


def of(array: Any, function: str, argument: str) -> Framework:
    """The framework of an array; TypeError if it is not an array of one we know."""
    kind = type(array)
    known = _FILES.get((kind.__module__, kind.__name__))
    return known if isinstance(known, Framework) else _find(kind, function, argument)


def _find(kind: type, function: str, argument: str) -> Framework:
    for base in kind.__mro__:
        key = (base.__module__, base.__name__)
        if key in _FILES:
            if not isinstance(_FILES[key], Framework):
                _FILES[key] = _FILES[key]()
            return _FILES[key]
    for base in kind.__mro__:
        name = _LATER.get((base.__module__.partition(".")[0], base.__name__))
        if name:
            raise NotImplementedError(
                f"[{function}] {argument}: expected a NumPy, PyTorch or MLX array, found one of {name}, which this release does not take."
            )
    raise TypeError(f"[{function}] {argument}: expected a NumPy, PyTorch or MLX array, found {kind.__module__}.{kind.__qualname__}.")
