"""A call of the formula with every sequence in a row of its own: packed sequences padded, pages and cache rows gathered, by array
operations alone, because lengths may have no values yet.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flash_attn.call import Arrays, Options, Role

NO_LIMIT = 1 << 29


class Call(NamedTuple):
    """A call with sequences side by side: q (b, h, rows, d), k, v (b, hk, keys, d) in the dtype of the sums."""

    q: Any
    k: Any
    v: Any
    real: Any
    batch: int
    heads: int
    kv_heads: int
    rows: int  # of the longest sequence
    keys: int
    value_dim: int
    row_counts: Any  # of each sequence, int32 (b, 1, 1, 1); None: all have `rows`
    key_counts: Any
    shift: Any  # the key on the diagonal of row 0: an int, or an array like row_counts
    left: int
    right: int
    chunk: int
    scale: float
    softcap: float
    slopes: Any  # (b or 1, h, 1, 1)
    bias: Any  # four axes, each whole or 1
    sink: Any  # (1, h, 1, 1)
    seed: Any
    options: Options
    cu_rows: Any  # of packed rows and keys, else None
    cu_keys: Any
    total_rows: int
    total_keys: int


def real_of(xp: Any, array: Any) -> Any:
    return xp.float64 if array.dtype == xp.float64 else xp.float32


def gather(xp: Any, arrays: Arrays, options: Options) -> Call:
    q = arrays[Role.Q]
    real = real_of(xp, q)
    cu_rows = arrays.get(Role.CU_ROWS)
    batch = q.shape[0] if cu_rows is None else cu_rows.shape[0] - 1
    rows = q.shape[1] if cu_rows is None else min(options.max_rows, q.shape[0])
    row_counts = arrays.get(Role.USED_ROWS)
    if row_counts is None and cu_rows is not None:
        row_counts = cu_rows[1:] - cu_rows[:-1]
    k, v, keys, key_counts = _gather_keys(xp, arrays, options, batch)
    shift: Any = keys - rows
    if options.has_offsets:
        shift = options.q_offset - options.k_offset
    elif row_counts is not None or key_counts is not None:
        shift = (keys if key_counts is None else key_counts) - (rows if row_counts is None else row_counts)
    slopes, sink = arrays.get(Role.SLOPES), arrays.get(Role.SINK)
    heads, kv_heads, dim = q.shape[-2], k.shape[-2], q.shape[-1]
    side_by_side = q if cu_rows is None else _padded(xp, q, cu_rows[:-1], rows)
    side_by_side, k, v = (xp.swapaxes(xp.astype(x, real), 1, 2) for x in (side_by_side, k, v))
    if keys == 0:  # one key that nobody sees, so that every sum has a term
        k, v = (xp.zeros((batch, kv_heads, 1, x.shape[-1]), real) for x in (k, v))
    return Call(
        q=side_by_side,
        k=k,
        v=v,
        real=real,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        rows=rows,
        keys=keys,
        value_dim=v.shape[-1],
        row_counts=_each(row_counts),
        key_counts=_each(key_counts),
        shift=_each(shift),
        left=NO_LIMIT if options.left < 0 else min(options.left, NO_LIMIT),
        right=0 if options.causal else NO_LIMIT if options.right < 0 else min(options.right, NO_LIMIT),
        chunk=options.chunk,
        scale=dim**-0.5 if options.scale is None else options.scale,
        softcap=options.softcap,
        slopes=None if slopes is None else xp.reshape(xp.astype(slopes, real), (-1, heads, 1, 1)),
        bias=_four_axes(xp, arrays.get(Role.BIAS), real),
        sink=None if sink is None else xp.reshape(xp.astype(sink, real), (1, -1, 1, 1)),
        seed=arrays.get(Role.SEED) if options.dropout else None,
        options=options,
        cu_rows=cu_rows,
        cu_keys=None if cu_rows is None or Role.PAGES in arrays else arrays[Role.CU_KEYS],
        total_rows=q.shape[0],
        total_keys=arrays[Role.K].shape[0],
    )


def _four_axes(xp: Any, bias: Any, real: Any) -> Any:
    if bias is None:
        return None
    bias = bias if bias.dtype == xp.bool_ else xp.astype(bias, real)
    return xp.reshape(bias, (1,) * (4 - len(bias.shape)) + tuple(bias.shape))


def _each(counts: Any) -> Any:
    """Numbers of each sequence, against (b, h, rows, keys)."""
    return counts[:, None, None, None] if hasattr(counts, "shape") else counts


def _gather_keys(xp: Any, arrays: Arrays, options: Options, batch: int) -> tuple[Any, Any, int, Any]:
    """k and v as (b, keys, hk, d), how many keys the longest sequence has, and the number of each (None: all as many)."""
    k, v = arrays[Role.K], arrays[Role.V]
    cu_rows, cu_keys, pages, leftpad = (arrays.get(role) for role in (Role.CU_ROWS, Role.CU_KEYS, Role.PAGES, Role.LEFTPAD))
    if pages is not None:
        table = xp.reshape(xp.maximum(xp.minimum(pages, k.shape[0] - 1), 0), (-1,))  # unused entries may hold anything
        k, v = (xp.reshape(xp.take(x, table, axis=0), (batch, -1, *x.shape[2:])) for x in (k, v))
    elif Role.CACHE_ROWS in arrays:
        k, v = (xp.take(x, arrays[Role.CACHE_ROWS], axis=0) for x in (k, v))
    if cu_rows is not None:
        keys = min(options.max_keys, k.shape[0 if pages is None else 1])
        counts = arrays.get(Role.USED_KEYS)
        counts = cu_keys[1:] - cu_keys[:-1] if counts is None else counts
        first = None if pages is not None else cu_keys[:-1]
    else:
        keys, first = k.shape[1], None
        counts = arrays.get(Role.USED_KEYS)
        if counts is None:
            counts = arrays.get(Role.LENGTHS, options.cache_length)
            if counts is None and pages is not None:
                counts = keys
            if counts is not None and Role.NEW_K in arrays:
                counts = counts + arrays[Role.NEW_K].shape[1]
    if leftpad is not None:
        counts = xp.maximum((keys if counts is None else counts) - leftpad, 0)
        first = leftpad if first is None else first + leftpad
    if isinstance(counts, int):
        keys, counts = counts, None
    if first is None:
        k, v = k[:, :keys], v[:, :keys]
    else:
        k, v = (_padded(xp, x, first, keys) for x in (k, v))
    return k, v, keys, counts


# ---- packed sequences --------------------------------------------------------------------------------------------------


def _padded(xp: Any, array: Any, first: Any, count: int) -> Any:
    """`count` entries of each sequence from its `first` on: of packed (total, h, d), or along axis 1 of (b, s, h, d)."""
    batch, packed = first.shape[0], len(array.shape) == 3
    size = array.shape[0 if packed else 1]
    index = xp.minimum(first[:, None] + xp.arange(0, count)[None], max(size - 1, 0))
    if not packed:
        index = index + (xp.arange(0, batch) * size)[:, None]
        array = xp.reshape(array, (batch * size, *array.shape[2:]))
    if 0 in (count, batch, size):
        return xp.zeros((batch, count, *array.shape[1:]), array.dtype)
    return xp.reshape(xp.take(array, xp.reshape(index, (-1,)), axis=0), (batch, count, *array.shape[1:]))


def _packed(xp: Any, array: Any, cu: Any, total: int, absent: float) -> Any:
    """Packed (total, ...) from sequences side by side (b, count, ...); `absent` for what belongs to no sequence."""
    batch, count = array.shape[:2]
    if 0 in (batch, count, total):
        return xp.zeros((total, *array.shape[2:]), array.dtype) + absent
    t = xp.arange(0, total)
    sequence = xp.sum(xp.astype(cu[1:][None] <= t[:, None], xp.int32), axis=1)
    own = xp.astype(xp.minimum(sequence, batch - 1), xp.int32)
    index = own * count + xp.minimum(t - xp.take(cu, own, axis=0), count - 1)
    flat = xp.take(xp.reshape(array, (batch * count, *array.shape[2:])), index, axis=0)
    inside = xp.reshape(sequence < batch, (total,) + (1,) * (len(array.shape) - 2))
    return xp.where(inside, flat, absent)


def padded_rows(xp: Any, call: Call, array: Any) -> Any:
    return array if call.cu_rows is None else _padded(xp, array, call.cu_rows[:-1], call.rows)


def packed_rows(xp: Any, call: Call, array: Any, absent: float) -> Any:
    return array if call.cu_rows is None else _packed(xp, array, call.cu_rows, call.total_rows, absent)


def packed_keys(xp: Any, call: Call, array: Any) -> Any:
    return array if call.cu_keys is None else _packed(xp, array, call.cu_keys, call.total_keys, 0.0)


def padded_lse(xp: Any, call: Call, lse: Any) -> Any:
    if call.cu_rows is None:
        return lse
    return xp.swapaxes(padded_rows(xp, call, xp.swapaxes(lse, 0, 1)[..., None])[..., 0], 1, 2)


def of_rows(xp: Any, call: Call, lse: Any) -> Any:
    """lse (b, h, rows), -inf for rows that do not exist."""
    if call.row_counts is None:
        return lse
    return xp.where(xp.arange(0, call.rows) < call.row_counts[..., 0], lse, -math.inf)


def packed_lse(xp: Any, call: Call, lse: Any) -> Any:
    return lse if call.cu_rows is None else xp.swapaxes(packed_rows(xp, call, xp.swapaxes(lse, 1, 2), -math.inf), 0, 1)
