"""The random bits of dropout in array code: the scheme of src/semantics/dropout.h. 32-bit words lie in 64-bit integers, as products do.

One Philox4x32-7 call (Salmon et al., SC11) decides rows {i, i + 8} x keys {j, j + 8, j + 16, j + 24} by 16 bits each, so an
eighth of the elements is computed and the rest is a matter of order.
"""

from __future__ import annotations

from typing import Any

LOW, WORD = 0xFFFF, 0xFFFFFFFF


def bits(xp: Any, seed: Any, streams: int, rows: tuple[int, int], keys: tuple[int, int], shape: tuple[int, int]) -> Any:
    """16 random bits of each element: (*shape, rows, keys); rows and keys are ranges of absolute positions, shape[0] *
    shape[1] == streams. `seed`: uint32 (4,) (low, high, offset, 0) or int64 (2,) (seed, offset)."""
    row_start, key_start = rows[0] // 16 * 16, keys[0] // 32 * 32
    row_blocks, key_blocks = -(-(rows[1] - row_start) // 16), -(-(keys[1] - key_start) // 32)
    i = _counter(xp, row_start, row_blocks, 16, 4)
    j = _counter(xp, key_start, key_blocks, 32, 5)
    stream = xp.reshape(xp.astype(xp.arange(0, streams), xp.word), (streams, 1, 1))
    low, high, offset = _words(xp, seed)
    counter = (i[None, :, None], j[None, None, :], stream, offset)
    words = _philox7(xp, counter, low, high)
    words = [xp.broadcast_to(word, (streams, row_blocks * 8, key_blocks * 8)) for word in words]
    # group = (row / 8 % 2) * 4 + (key / 8 % 4): the low half of a word first
    groups = xp.stack([xp.astype(words[group // 2] >> (16 * (group % 2)) & LOW, xp.int32) for group in range(8)])
    groups = xp.reshape(groups, (2, 4, streams, row_blocks, 8, key_blocks, 8))
    groups = xp.transpose(groups, (2, 3, 0, 4, 5, 1, 6))
    whole = xp.reshape(groups, (*shape, row_blocks * 16, key_blocks * 32))
    return whole[:, :, rows[0] - row_start : rows[1] - row_start, keys[0] - key_start : keys[1] - key_start]


def _counter(xp: Any, start: int, blocks: int, size: int, shift: int) -> Any:
    """(position / size) * 8 + position % 8 for the first eight positions of each block."""
    position = xp.reshape(xp.arange(start, start + blocks * size), (blocks, size))[:, :8]
    position = xp.astype(xp.reshape(position, (blocks * 8,)), xp.word) & WORD
    return (position >> shift) * 8 + (position & 7)


def _words(xp: Any, seed: Any) -> tuple[Any, Any, Any]:
    """(seed low, seed high, offset), each of one element."""
    if seed.shape[0] == 4:
        words = xp.astype(seed, xp.word)
        return words[:1], words[1:2], words[2:3]
    low, high = (xp.astype(half, xp.word) for half in (seed & WORD, seed >> 32 & WORD))
    return low[:1], high[:1], low[1:]


def _philox7(xp: Any, counter: tuple, key0: Any, key1: Any) -> tuple:
    x, y, z, w = counter
    for _ in range(7):
        high0, low0 = _product(x, 0xD2511F53)
        high1, low1 = _product(z, 0xCD9E8D57)
        x, y, z, w = high1 ^ y ^ key0, low1, high0 ^ w ^ key1, low0
        key0, key1 = key0 + 0x9E3779B9 & WORD, key1 + 0xBB67AE85 & WORD
    return x, y, z, w


def _product(a: Any, constant: int) -> tuple[Any, Any]:
    """(high, low) words of a * constant."""
    product = a * constant
    return product >> 32 & WORD, product & WORD
