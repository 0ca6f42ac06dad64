"""Plain numbers out of what callers pass for them: Python's and NumPy's numbers, arrays with one element. Errors in the house form, also
for arguments of other interfaces that nothing here can take."""

from __future__ import annotations

import operator
from typing import Any


def integer(function: str, name: str, value: Any, bits: int = 64) -> int:
    """An integer that the core can hold; never a rounded one. Raises TypeError, ValueError."""
    number = value
    if type(value) is not int:
        try:
            number = operator.index(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"[{function}] {name}: expected an integer, found {said(value)}.") from None
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise ValueError(f"[{function}] {name}: expected an integer of {bits} bits, found {said(number)}.")
    return number


def number(function: str, name: str, value: Any) -> float:
    """A float; NaN and infinities are for the core to judge. Raises TypeError, ValueError."""
    if type(value) is float:
        return value
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value.item() if hasattr(value, "item") else value)
    except OverflowError:
        raise ValueError(f"[{function}] {name}: expected a float64 number, found {said(value)}.") from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"[{function}] {name}: expected a number, found {said(value)}.") from None


def flag(function: str, name: str, value: Any) -> bool:
    """True or False of anything that has a truth value. Raises TypeError."""
    if type(value) is bool:
        return value
    try:
        return bool(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"[{function}] {name}: expected True or False, found {said(value)}.") from None


def refuse(function: str, **given: Any) -> None:
    """Raises NotImplementedError unless all of these arguments are None."""
    for name, value in given.items():
        if value is not None:
            raise NotImplementedError(f"[{function}] {name}: expected None, for there is no such kernel, found {type(value).__name__}.")


def said(value: Any) -> str:
    """A value as errors say it: itself if that is short, else what it is."""
    if type(value) in (bool, int, float, complex, str, bytes, type(None)):
        if type(value) is int and value.bit_length() > 80:
            return f"an int of {value.bit_length()} bits"
        text = repr(value)
        if len(text) <= 40:
            return text
    return f"{type(value).__module__}.{type(value).__qualname__}"
