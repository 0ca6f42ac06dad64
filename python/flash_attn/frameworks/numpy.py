"""NumPy arrays: the buffer protocol; bfloat16 is that of ml_dtypes and enters as its uint16 view. No autograd: flash_attn.numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flash_attn import _core, engine
from flash_attn.call import DTYPE_NAMES, DTYPES, Arrays, Options
from flash_attn.frameworks.base import Framework, on_main_thread
from flash_attn.namespaces import Namespace

_CODES: dict[np.dtype, int] = {np.dtype(name): code for name, code in DTYPES.items() if name not in ("bfloat16", "bool_")}
generator = np.random.default_rng()


def _bfloat16() -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


class _Namespace(Namespace):
    def dtype(self, dtype: Any) -> Any:
        return _bfloat16() if dtype == "bfloat16" else dtype


_quick = _core.Buffers(np.ndarray, np.empty, tuple(np.dtype("V" if n in (0, 2) else DTYPE_NAMES[n]) for n in range(9))).quick


class NumPy(Framework):
    name = "NumPy"

    def owns(self, array: Any) -> bool:
        return isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)  # whose mask nothing here would respect

    def dtype_code(self, dtype: Any) -> int | None:
        if isinstance(dtype, str) and dtype == "bfloat16":
            return DTYPES["bfloat16"]
        try:
            dtype = np.dtype(dtype)
        except TypeError:
            return None
        code = _CODES.get(dtype)
        return DTYPES["bfloat16"] if code is None and dtype.name == "bfloat16" else code

    def view(self, array: Any, writable: bool = False) -> _core.View:
        code = self.dtype_code(array.dtype)
        if code == DTYPES["bfloat16"]:
            array = array.view(np.uint16)
        return _core.view_of_buffer(array, code, writable)

    def empty(self, shape: list[int], code: int, like: Any) -> np.ndarray:
        return np.empty(shape, _bfloat16() if code == DTYPES["bfloat16"] else DTYPE_NAMES[code])

    def contiguous(self, array: Any) -> np.ndarray:
        return np.array(array, order="C", copy=True)

    def from_bytes(self, data: bytes, shape: Sequence[int], code: int, like: Any = None) -> np.ndarray:
        return np.frombuffer(data, self.empty([0], code, None).dtype).reshape(shape)

    def floats(self, array: Any) -> Sequence[float]:
        return array.astype(np.float64).reshape(-1).tolist()

    def namespace(self) -> Namespace:
        return _Namespace(np)

    def seed(self, like: Any) -> np.ndarray:
        seed = generator.integers(0, 2**32, 4, dtype=np.uint32)
        seed[2:] = 0
        return seed

    def quick(self, function: str, arrays: Arrays, values: tuple[Any, ...], with_lse: bool) -> tuple[Any, Any] | None:
        return _quick(function, arrays, values, on_main_thread())

    def attention(self, function: str, arrays: Arrays, options: Options) -> tuple[Any, Any, Any]:
        return engine.forward(self, function, arrays, options)


FRAMEWORK = NumPy()
