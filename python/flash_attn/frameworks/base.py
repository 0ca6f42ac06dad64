"""What a framework supplies: views of its arrays, memory for results, seeds, and how its autograd wraps our operations."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from flash_attn import _core
from flash_attn.call import DTYPE_NAMES, Arrays, Options, Role
from flash_attn.scalars import integer

_main_thread = threading.main_thread().ident


def _after_fork() -> None:
    global _main_thread
    _main_thread = threading.main_thread().ident


os.register_at_fork(after_in_child=_after_fork)


def on_main_thread() -> bool:
    """Whether this is the thread that signals such as Ctrl-C are handled on."""
    return threading.get_ident() == _main_thread


class Framework:
    """One subclass a file, found by the module name of the array's type. Methods with a body are defaults for CPU arrays."""

    name: str  # as errors say it: "NumPy"

    def owns(self, array: Any) -> bool:
        """Whether this is an array of the framework."""
        raise NotImplementedError

    def dtype_code(self, dtype: Any) -> int | None:
        """The core's code of a dtype, or None if it has none. Takes the framework's dtypes and, where usual, their names."""
        raise NotImplementedError

    def view(self, array: Any, writable: bool = False) -> _core.View:
        """A view that keeps the array's memory while it lives. BufferError if it shall be written and cannot."""
        raise NotImplementedError

    def empty(self, shape: list[int], code: int, like: Any) -> Any:
        """An uninitialised array for a result, on the device of ``like``."""
        raise NotImplementedError

    def contiguous(self, array: Any) -> Any:
        """The same values with contiguous memory, aligned to the element."""
        raise NotImplementedError

    def from_bytes(self, data: bytes, shape: Sequence[int], code: int, like: Any = None) -> Any:
        """A contiguous array with these bytes in it, on the device of ``like`` or where the framework computes now."""
        raise NotImplementedError

    def floats(self, array: Any) -> Sequence[float]:
        """All elements, in order."""
        raise NotImplementedError

    def traced(self, arrays: Arrays) -> bool:
        """Whether values cannot be had now, because a function is being compiled or exported: the plain formula runs then."""
        return False

    def namespace(self) -> Any:
        """The framework's operations under the names of flash_attn/namespaces.py."""
        raise NotImplementedError

    def formula(self, which: int, arrays: Arrays, options: Options) -> Arrays:
        """A pass by the plain formula."""
        from flash_attn import formula

        return formula.run(self.namespace(), which, arrays, options)

    def seed(self, like: Any) -> Any:
        """A SEED array, uint32[4] or int64[2], drawn from the framework's own generator."""
        raise NotImplementedError

    def length(self, function: str, name: str, value: Any) -> int:
        """An integer that depends on data, as users give it."""
        return integer(function, name, value)

    def quick(self, function: str, arrays: Arrays, values: tuple[Any, ...], with_lse: bool) -> tuple[Any, Any] | None:
        """(out, lse or anything) of a call like most, or None: then the long way, which converts and checks options, is to be taken.
        `values`: the options as the user gave them, in the order of Options. A small attention takes less time than the long way."""
        return None

    def asked(self, options: Options, with_lse: bool) -> Options:
        """The options of an attention whose lse the caller wants or not, with bit OUT in ``wants`` where nobody else wants it either."""
        return options

    def attention(self, function: str, arrays: Arrays, options: Options) -> tuple[Any, Any, Any]:
        """(out, lse, probabilities or None), differentiable by the framework's autograd if it has one."""
        raise NotImplementedError

    def with_kvcache(self, function: str, arrays: Arrays, options: Options) -> tuple[Any, Any]:
        """(out, lse) of queries against a cache, after the new keys, if any, have been written into it. No gradients."""
        from flash_attn import engine

        return engine.with_kvcache(self, function, arrays, options)

    def unpack(self, array: Any, axis: int) -> tuple[Any, ...]:
        """The parts of an array along an axis, without it; views where the framework has views."""
        index = (slice(None),) * axis
        return tuple(array[(*index, i)] for i in range(array.shape[axis]))

    def append(self, function: str, arrays: Arrays, options: Options) -> Any:
        """Writes new keys and values into the caches in place and returns the queries, turned if there is rotary."""
        from flash_attn import engine

        return engine.append_in_place(self, function, arrays, options)

    def prepare(self, function: str, which: int, views: list, options: Options) -> _core.Prepared:
        """All checks of a pass, and its plan."""
        return _core.prepare(function, which, views, options)

    def execute(self, prepared: _core.Prepared, arrays: Arrays, views: list) -> Arrays:
        """Allocates what a prepared call writes and the caller did not bring, runs it, and returns all of it by role."""
        like = next(iter(arrays.values()))
        results: Arrays = {}
        for role, code, shape in prepared.outputs:
            given = arrays.get(role)
            results[role] = self.empty(shape, code, like) if given is None else given
        outputs = [(role, self.view(array, writable=True)) for role, array in results.items()]
        _core.run(prepared, outputs, on_main_thread())
        return results

    def remark(self, function: str, views: list, options: Options) -> str:
        """What explain() has to add about a forward call, beginning with a line break, or ""."""
        return ""

    def describe_dtype(self, array: Any) -> str:
        """A dtype as errors say it."""
        return str(array.dtype)

    def supported_dtypes(self) -> str:
        """For errors."""
        return ", ".join(DTYPE_NAMES.values())


# Roles whose memory may have any strides with a contiguous last axis; all others are contiguous. Neither is asked of the user: copies
# are made, except of arrays that are written in place.
STRIDED = frozenset({Role.Q, Role.K, Role.V, Role.OUT, Role.DOUT, Role.DQ, Role.DK, Role.DV, Role.BIAS, Role.NEW_K, Role.NEW_V, Role.PAGES})
WRITTEN = frozenset({Role.OUT, Role.LSE, Role.DQ, Role.DK, Role.DV, Role.DELTA, Role.DBIAS, Role.DSINK})
