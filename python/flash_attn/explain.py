"""flash_attn.explain: which kernel a call would run, and why others would not."""

from __future__ import annotations

import threading
from typing import Any

from flash_attn import interface


def explain(function: Any, *args: Any, **kwargs: Any) -> str:
    """What ``function(*args, **kwargs)`` would run: one line for each kernel that cannot take the call, then the one that does.

    ``explain(flash_attn_func, q, k, v, causal=True)`` takes one of the seven functions and its arguments, computes nothing, and
    raises what the call would raise.
    """
    thread = threading.get_ident()
    interface.explaining.add(thread)
    try:
        return function(*args, **kwargs)
    finally:
        interface.explaining.discard(thread)
