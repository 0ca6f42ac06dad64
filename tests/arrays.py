"""The arrays of a case: real values in the dtype and the memory layout that the case names, NaN where nobody may look."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tolerance import DTYPES

if TYPE_CHECKING:
    from cases import CacheCase, Case


@dataclass
class Inputs:
    """The arrays of a case. `options` are keywords of the public functions, without those that have their default."""

    q: np.ndarray
    k: np.ndarray | None = None
    v: np.ndarray | None = None
    dout: np.ndarray | None = None
    dlse: np.ndarray | None = None
    varlen: tuple = ()  # cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    packed: np.ndarray | None = None  # qkv or kv, of which q, k, v are views
    k_cache: np.ndarray | None = None
    v_cache: np.ndarray | None = None
    written: np.ndarray | None = None  # (cache rows or pages, slots) bool: where new tokens go
    options: dict[str, Any] = field(default_factory=dict)


def generator(case, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(str(case).encode())])


def arrange(array: np.ndarray, layout: str) -> np.ndarray:
    """The same elements in other memory. Layouts speak of (b, s, h, d); of (s, h, d) for varlen."""
    if layout == "contiguous":
        return array
    if layout == "heads_first":  # (b, h, s, d) in memory, as transformers has it
        return np.ascontiguousarray(array.swapaxes(-3, -2)).swapaxes(-3, -2)
    if layout == "sliced":  # a part of a larger array: every stride is padded, rows stay 8-byte aligned
        shape = [size + 2 for size in array.shape[:-1]] + [array.shape[-1] // 8 * 8 + 16]
        larger = np.full(shape, np.nan, array.dtype)
        part = larger[tuple(slice(1, 1 + size) for size in array.shape[:-1]) + (slice(0, array.shape[-1]),)]
        part[...] = array
        return part
    if layout == "reversed":  # negative strides along batch and sequence
        flip = (slice(None, None, -1),) * (array.ndim - 2)
        return np.ascontiguousarray(array[flip])[flip]
    if layout == "strided":  # the last axis is not contiguous
        larger = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        larger[..., ::2] = array
        return larger[..., ::2]
    if layout == "broadcast":  # stride 0 along the first axis, and read-only; every batch entry is the first
        return np.broadcast_to(array[:1], array.shape)
    raise ValueError(f"no layout is called {layout}")


def _normal(random, shape, dtype: str, spread: float = 1.0):
    return (random.standard_normal(shape) * spread).astype(DTYPES[dtype])


def _cycle(values, count: int, limits) -> np.ndarray:
    return np.minimum(np.resize(np.asarray(values, np.int32), count), np.asarray(limits, np.int32)).astype(np.int32)


def _bias(random, case: Case):
    is_bool, axes = case.bias.startswith("bool:"), case.bias.removeprefix("bool:")
    sizes = {"b": case.batch, "h": case.heads, "q": case.rows, "k": case.keys}
    shape = tuple(sizes.get(axis, 1) for axis in axes)
    if is_bool:
        mask = random.random(shape) < 0.75
        if axes.endswith("qk") and case.rows > 1:
            mask[..., 1, :] = False  # a row that sees nothing
        return mask
    bias = _normal(random, shape, case.dtype)
    if axes == "bhqk":
        bias[random.random(shape) < 0.1] = -np.inf
        bias[:, 0, 1:2] = -np.inf if case.dtype == "float16" else -1e30  # a row that sees nothing
    return bias


def _common_options(random, case, batch: int) -> dict[str, Any]:
    options = {}
    if case.scale is not None:
        options["softmax_scale"] = case.scale
    if case.causal:
        options["causal"] = True
    if case.window != (-1, -1):
        options["window_size"] = case.window
    if case.softcap:
        options["softcap"] = case.softcap
    if case.alibi is not None:
        shape = (batch, case.heads) if case.alibi == "bh" else (case.heads,)
        options["alibi_slopes"] = random.uniform(0.02, 0.3, shape).astype(np.float32)
    if case.sink:
        dtype = np.float64 if case.dtype == "float64" else np.float32
        options["learnable_sink"] = random.standard_normal(case.heads).astype(dtype)
    if case.chunk:
        options["attention_chunk"] = case.chunk
    return options


def attention_inputs(case: Case, seed: int) -> Inputs:
    assert case.meaningful(), f"{case}: not a meaningful combination"
    random = generator(case, seed)
    if case.lengths is None:
        rows_shape, keys_shape = (case.batch, case.rows), (case.batch, case.keys)
        lse_shape = (case.batch, case.heads, case.rows)
        row_limits, key_limits = case.rows, case.keys
    else:
        row_limits, key_limits = (np.array([pair[side] for pair in case.lengths], np.int32) for side in (0, 1))
        rows_shape, keys_shape = (int(row_limits.sum()) + case.tail,), (int(key_limits.sum()) + case.tail,)
        lse_shape = (case.heads, *rows_shape)
    q = _normal(random, (*rows_shape, case.heads, case.dim), case.dtype, case.spread)
    k = _normal(random, (*keys_shape, case.kv, case.dim), case.dtype, case.spread)
    v = _normal(random, (*keys_shape, case.kv, case.v_dim), case.dtype)
    if case.trend:
        q[..., 0] = case.dim**0.5
        k[..., 0] = (case.trend * np.arange(k.shape[-3]))[:, None]
    dout = _normal(random, (*rows_shape, case.heads, case.v_dim), case.dtype)
    dlse = random.standard_normal(lse_shape).astype(np.float64 if case.dtype == "float64" else np.float32)

    options = _common_options(random, case, case.sequences)
    if case.dropout:
        options["dropout_p"] = case.dropout
        options["rng_state"] = np.array([0x123456789ABCDEF + seed, 5], np.int64)
    if case.bias is not None:
        options["attn_bias"] = _bias(random, case)
    for name, offset in zip(("q_offset", "k_offset"), case.offsets, strict=True):
        if offset is not None:
            options[name] = offset
    made = Inputs(q, k, v, dout, dlse if case.dlse else None, options=options)
    if case.lengths is not None:
        starts = [np.concatenate([[0], np.cumsum(limits)]).astype(np.int32) for limits in (row_limits, key_limits)]
        made.varlen = (*starts, int(row_limits.max(initial=0)), int(key_limits.max(initial=0)))
    if case.used_rows is not None:
        options["seqused_q"] = _cycle(case.used_rows, case.sequences, row_limits)
    if case.used_keys is not None:
        options["seqused_k"] = _cycle(case.used_keys, case.sequences, key_limits)
    _poison_absent(case, made)
    if case.page:
        _page(random, case, made, key_limits)
    if case.packed is not None:
        parts = [made.q, made.k, made.v] if case.packed == "qkv" else [made.k, made.v]
        made.packed = np.stack(parts, axis=-3)
        made.k, made.v = made.packed[..., -2, :, :], made.packed[..., -1, :, :]
        if case.packed == "qkv":
            made.q = made.packed[..., 0, :, :]
    else:
        made.q, made.k, made.v, made.dout = (arrange(x, case.layout) for x in (made.q, made.k, made.v, made.dout))
    return made


def _poison_absent(case: Case, made: Inputs) -> None:
    """What nobody may look at holds NaN: rows and keys beyond seqused, and those that belong to no sequence."""

    def absent(shape, limits, used, starts):
        mask = np.ones(shape, dtype=bool)
        for b in range(case.sequences):
            length = int(limits[b] if used is None else used[b])
            if case.lengths is None:
                mask[b, :length] = False
            else:
                mask[int(starts[b]) : int(starts[b]) + length] = False
        return mask

    starts_q, starts_k = made.varlen[:2] if made.varlen else (None, None)
    if case.lengths is None:
        rows, keys = [case.rows] * case.batch, [case.keys] * case.batch
    else:
        rows, keys = np.diff(starts_q), np.diff(starts_k)
    no_rows = absent(made.q.shape[:-2], rows, made.options.get("seqused_q"), starts_q)
    no_keys = absent(made.k.shape[:-2], keys, made.options.get("seqused_k"), starts_k)
    made.q[no_rows], made.dout[no_rows], made.k[no_keys], made.v[no_keys] = np.nan, np.nan, np.nan, np.nan


def _table(random, sequences: int, pages_each: int) -> tuple[np.ndarray, int]:
    """A block table of pages in random order, and the number of pages, of which three belong to nobody."""
    total = sequences * pages_each + 3
    return random.permutation(total)[: sequences * pages_each].reshape(sequences, pages_each).astype(np.int32), total


def _page(random, case: Case, made: Inputs, lengths) -> None:
    """Move K and V of a varlen call into pages; what no sequence uses holds NaN, unused table entries -1."""
    pages_each = -(-int(max(lengths)) // case.page)
    table, total = _table(random, case.sequences, pages_each)
    starts = made.varlen[1]
    for name in ("k", "v"):
        flat = getattr(made, name)
        pages = np.full((total, case.page, *flat.shape[1:]), np.nan, flat.dtype)
        for b, length in enumerate(lengths):
            for t in range(int(length)):
                pages[table[b, t // case.page], t % case.page] = flat[starts[b] + t]
        setattr(made, name, pages)
    for b, length in enumerate(lengths):
        table[b, -(-int(length) // case.page) :] = -1
    made.options["block_table"] = table


def cache_inputs(case: CacheCase, seed: int) -> Inputs:
    random = generator(case, seed)
    batch, dtype = case.batch, case.dtype
    options = _common_options(random, case, batch)
    made = Inputs(_normal(random, (batch, case.rows, case.heads, case.dim), dtype), options=options)
    pages_each = -(-case.capacity // case.page) if case.page else 0
    if case.cached is None:
        lengths = np.full(batch, pages_each * case.page or case.capacity, np.int32)
    else:
        lengths = _cycle(case.cached, batch, case.capacity - case.new)
        options["cache_seqlens"] = case.cached if isinstance(case.cached, int) else lengths
    if case.new:
        made.k = _normal(random, (batch, case.new, case.kv_heads, case.dim), dtype)
        made.v = _normal(random, (batch, case.new, case.kv_heads, case.v_dim), dtype)
    if case.rotary is not None:
        half = (case.dim if case.rotary_dim is None else case.rotary_dim) // 2
        angle = random.uniform(0, 2 * np.pi, (case.capacity + case.rows, half))
        options["rotary_cos"], options["rotary_sin"] = (turn(angle).astype(DTYPES[dtype]) for turn in (np.cos, np.sin))
        if case.rotary != "interleaved":
            options["rotary_interleaved"] = False
    if case.leftpad is not None:
        options["cache_leftpad"] = _cycle(case.leftpad, batch, lengths)
    if case.num_splits:
        options["num_splits"] = case.num_splits

    if case.page:
        table, rows = _table(random, batch, pages_each)
        slots = case.page
    else:
        rows, slots = batch + (2 if case.batch_index else 0), case.capacity
    index = random.permutation(rows)[:batch].astype(np.int32) if case.batch_index else np.arange(batch, dtype=np.int32)
    live, made.written = np.zeros((rows, slots), dtype=bool), np.zeros((rows, slots), dtype=bool)
    skipped = options.get("cache_leftpad", np.zeros(batch, np.int32))
    for b in range(batch):
        first, end = int(skipped[b]), int(lengths[b]) + case.new
        if case.nan_behind:
            first = max(first, end - case.rows - case.window[0])
        for t in range(first, end):
            place = (table[b, t // slots], t % slots) if case.page else (index[b], t)
            (live if t < lengths[b] else made.written)[place] = True
    if case.page:
        for b in range(batch):
            table[b, -(-(int(lengths[b]) + case.new) // slots) :] = -1
        options["block_table"] = table
    if case.batch_index:
        options["cache_batch_idx"] = index
    caches = []
    for width in (case.dim, case.v_dim):
        cache = _normal(random, (rows, slots, case.kv_heads, width), dtype)
        cache[~live] = np.nan  # a slot that holds no token must not matter
        caches.append(arrange(cache, case.layout))
    made.k_cache, made.v_cache = caches
    return made
