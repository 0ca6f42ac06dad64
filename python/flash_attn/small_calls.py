"""Small calls that run the kernels of a large one: the same roles, dtypes, head dims and options, few rows, keys and heads, random values.

first_use.py compares kernels on them before a call of the user's runs on a device that has not seen these kernels; selftest.py does the
same for all kernels. Values are made without any array library.
"""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

from flash_attn.call import DTYPES, Options, Pass, Role

ROWS, KEYS, BATCH, KV_HEADS = 9, 200, 2, 2  # rows are more where heads share keys: decode must stay decode, and forward forward
_DECODE_ROWS = 33  # rows (position * group) of a key/value head that every backend's decode kernel leaves to forward
_BLOCK = 4099  # random values; longer arrays repeat them, and a prime number is no multiple of a row


class Shape(NamedTuple):
    """What is known of an array before it is there."""

    code: int  # of its dtype
    sizes: tuple[int, ...]


class Data(NamedTuple):
    """An array as bytes, contiguous."""

    code: int
    sizes: tuple[int, ...]
    bytes: bytes


class SmallCall(NamedTuple):
    function: str
    which: int  # Pass.FORWARD or Pass.BACKWARD; the latter lacks OUT and LSE, which a forward pass on the rest gives
    arrays: dict[int, Data]
    options: Options


def like(function: str, which: int, shapes: dict[int, Shape], options: Options, split: bool) -> SmallCall:
    """A small call for the kernels of this one. ``split``: its keys are split among threadgroups."""
    packed, paged = Role.CU_ROWS in shapes, Role.PAGES in shapes
    q, k, v = (shapes[role] for role in (Role.Q, Role.K, Role.V))
    batch = (shapes[Role.CU_ROWS].sizes[0] - 1) if packed else q.sizes[0]
    most_rows = options.max_rows if packed else q.sizes[1]
    most_keys = shapes[Role.PAGES].sizes[1] * k.sizes[1] if paged else options.max_keys if packed else k.sizes[1]
    group, kv_heads, dim, value_dim = q.sizes[-2] // k.sizes[-2], min(k.sizes[-2], KV_HEADS), q.sizes[-1], v.sizes[-1]
    b, heads = min(batch, BATCH), kv_heads * group
    rows, keys = min(most_rows, _DECODE_ROWS // group + ROWS), min(most_keys, KEYS)
    fewer_rows, fewer_keys = [rows, rows // 2][:b], [keys, keys // 2 + keys % 2][:b]
    total = sum(fewer_rows) if packed else rows
    made: dict[int, Data] = {}

    def floats(role: int, *sizes: int, first: float = -2.0, last: float = 2.0) -> None:
        made[role] = Data(shapes[role].code, sizes, _random(shapes[role].code, _product(sizes), role, first, last))

    def integers(role: int, values: Sequence[int], *sizes: int) -> None:
        made[role] = Data(DTYPES["int32"], sizes or (len(values),), struct.pack(f"{len(values)}i", *values))

    floats(Role.Q, *((total,) if packed else (b, rows)), heads, dim)
    size = min(k.sizes[1], max(keys, 1)) if paged else 0
    pages = -(-keys // size) if paged else 0
    before = (b * pages, size) if paged else (sum(fewer_keys),) if packed else (b, keys)
    floats(Role.K, *before, kv_heads, dim)
    floats(Role.V, *before, kv_heads, value_dim, first=-1.0)
    for role in shapes.keys() - made.keys():
        if role == Role.SEED:
            count = shapes[role].sizes[0]
            made[role] = Data(*shapes[role], struct.pack("2q" if count == 2 else "4I", *(7, 1, 0, 0)[:count]))
        elif role == Role.SLOPES:
            floats(role, *((b,) if len(shapes[role].sizes) == 2 else ()), heads, first=0.02, last=0.5)
        elif role == Role.BIAS:
            ours, theirs = (b, heads, rows, keys), shapes[role].sizes
            floats(role, *(1 if n == 1 else small for n, small in zip(theirs, ours[4 - len(theirs) :])))
        elif role == Role.SINK:
            floats(role, heads)
        elif role == Role.DOUT:
            floats(role, *made[Role.Q].sizes[:-1], value_dim)
        elif role == Role.DLSE:
            floats(role, *((heads, total) if packed else (b, heads, rows)))
        elif role == Role.CU_ROWS:
            integers(role, [sum(fewer_rows[:i]) for i in range(b + 1)])
        elif role == Role.CU_KEYS:
            integers(role, [sum(fewer_keys[:i]) for i in range(b + 1)])
        elif role == Role.USED_ROWS:
            integers(role, [max(n - 1, 0) for n in fewer_rows])
        elif role in (Role.USED_KEYS, Role.LENGTHS):
            integers(role, [max(n - 1, 0) for n in fewer_keys])
        elif role == Role.CACHE_ROWS:
            integers(role, range(b)[::-1])
        elif role == Role.LEFTPAD:
            integers(role, [min(i, keys // 4) for i in range(b)])
        elif role == Role.PAGES:
            integers(role, range(b * pages)[::-1], b, pages)
    return SmallCall(
        function,
        which,
        made,
        options._replace(
            max_rows=rows if packed else -1,
            max_keys=keys if packed else -1,
            q_offset=max(keys - rows, 0) if options.has_offsets else 0,
            k_offset=0,
            splits=2 if split else 1,
            cache_length=None if options.cache_length is None else min(options.cache_length, keys),
        ),
    )


def forward_of(call: SmallCall) -> SmallCall:
    """The forward pass whose results a backward pass reads."""
    arrays = {role: data for role, data in call.arrays.items() if role not in (Role.DOUT, Role.DLSE)}
    return call._replace(which=Pass.FORWARD, arrays=arrays, options=call.options._replace(wants=0))


def results(call: SmallCall) -> dict[int, tuple[int, ...]]:
    """The shapes of OUT and LSE."""
    q = call.arrays[Role.Q].sizes
    return {
        Role.OUT: (*q[:-1], call.arrays[Role.V].sizes[-1]),
        Role.LSE: (q[1], q[0]) if Role.CU_ROWS in call.arrays else (q[0], q[2], q[1]),
    }


def _product(sizes: Sequence[int]) -> int:
    count = 1
    for n in sizes:
        count *= n
    return count


def _random(code: int, count: int, seed: int, first: float, last: float) -> bytes:
    block = _block(code, seed, first, last)
    size = len(block) // _BLOCK * count
    return (block * (count // _BLOCK + 1))[:size]


@functools.cache
def _block(code: int, seed: int, first: float, last: float) -> bytes:
    chance = random.Random(seed)
    values = [chance.uniform(first, last) for _ in range(_BLOCK)]
    if code == DTYPES["bool"]:
        return bytes(x > first + (last - first) / 8 for x in values)
    if code == DTYPES["float16"]:
        return struct.pack(f"{_BLOCK}e", *values)
    wide = struct.pack(f"{_BLOCK}{'d' if code == DTYPES['float64'] else 'f'}", *values)
    if code != DTYPES["bfloat16"]:
        return wide
    narrow = bytearray(2 * _BLOCK)
    narrow[0::2], narrow[1::2] = wide[2::4], wide[3::4]
    return bytes(narrow)
