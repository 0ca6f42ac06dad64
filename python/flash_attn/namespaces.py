"""What formula.py asks of an array library, under one spelling: NumPy's, where it has one."""

from __future__ import annotations

from typing import Any


class Namespace:
    """The functions formula.py and combine.py use, taken from a module with NumPy's names. Subclasses mend what differs.

    Arrays themselves must know + - * / // & | >> << comparisons, slicing with None, and shape. `//` is asked of non-negative
    integers only. Used as they are: float32, float64, bool_, int32, inf, exp, log, tanh, abs, maximum, minimum, where, sum, max,
    any, matmul, reshape, swapaxes, transpose, concatenate, stack, broadcast_to, zeros, take.
    """

    word: Any  # a 64-bit integer, for the words of Philox and their products; signed ones may wrap

    def __init__(self, module: Any):
        self._module = module
        self.word = module.uint64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def astype(self, array: Any, dtype: Any) -> Any:
        """`array` in a dtype of the library, or in one given by name."""
        return array.astype(self.dtype(dtype))

    def dtype(self, dtype: Any) -> Any:
        return getattr(self._module, dtype) if isinstance(dtype, str) else dtype

    def arange(self, first: int, end: int) -> Any:
        """int32 numbers."""
        return self._module.arange(first, end, dtype=self._module.int32)

    def constant(self, array: Any) -> Any:
        """`array`, through which no gradient flows."""
        return array

    def after(self, array: Any, *before: Any) -> Any:
        """`array`, not to be computed until `before` are: how a lazy library is kept from holding all blocks at once."""
        return array
