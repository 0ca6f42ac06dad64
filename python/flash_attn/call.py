"""The vocabulary of a call: roles of arrays, passes, dtype codes and options, as the C++ core numbers them."""

from __future__ import annotations

from typing import Any, NamedTuple

from flash_attn import _core


class Role:
    """What an array is in a call; the meaning of each is in include/flash_attn/flash_attn.h."""


for _number, _name in enumerate(_core.ROLES):
    setattr(Role, _name.upper(), _number)


class Pass:
    """Passes of the core."""

    FORWARD, BACKWARD, APPEND, MERGE = range(4)


# kinds of devices
CPU, CUDA, METAL, ROCM = range(4)

# dtype codes of the core, by the name that every array library uses
DTYPES = {"float16": 1, "bfloat16": 2, "float32": 3, "float64": 4, "int32": 5, "int64": 6, "uint32": 7, "bool": 8, "bool_": 8}
DTYPE_NAMES = {1: "float16", 2: "bfloat16", 3: "float32", 4: "float64", 5: "int32", 6: "int64", 7: "uint32", 8: "bool"}


class Options(NamedTuple):
    """Everything of a call that is not an array: flat numbers in the order of fa::Options, so that frameworks can carry it.

    ``scale`` None is ``head_dim ** -0.5``; ``out_dtype`` 0 is that of q; ``wants`` are bits of roles to be written beyond
    the pass's own.
    """

    dropout: float = 0.0
    scale: float | None = None
    causal: bool = False
    left: int = -1
    right: int = -1
    softcap: float = 0.0
    deterministic: bool = False
    chunk: int = 0
    has_offsets: bool = False
    q_offset: int = 0
    k_offset: int = 0
    max_rows: int = -1
    max_keys: int = -1
    out_dtype: int = 0
    splits: int = 0
    cache_length: int | None = None
    rotary_interleaved: bool = True
    wants: int = 0


Arrays = dict[int, Any]  # by role; absent arrays are left out
