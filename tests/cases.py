"""Tables of test cases, named by purpose, and the arrays of a case.

A case is what differs from the default, and is named by it: str(Case(causal=True)) is "causal". `a | b` is both. Tests
and benchmarks take their cases from here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from arrays import Inputs, attention_inputs, cache_inputs


class _Named:
    """A frozen dataclass whose str() is what differs from the default."""

    def changes(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def __str__(self) -> str:
        return ",".join(_word(name, value) for name, value in self.changes().items()) or "default"

    def __or__(self, other):
        return replace(self, **other.changes())

    def conflicts(self, other) -> bool:
        mine, others = self.changes(), other.changes()
        return any(mine[name] != others[name] for name in mine.keys() & others.keys())


def _word(name, value) -> str:
    if value is True:
        return name
    return f"{name}={str(value).replace(' ', '')}"


@dataclass(frozen=True)
class Case(_Named):
    """A call of flash_attn_func, or of flash_attn_varlen_func if `lengths` is given."""

    batch: int = 2
    heads: int = 2
    kv_heads: int | None = None  # None: as many as heads
    rows: int = 37
    keys: int = 109
    dim: int = 32
    value_dim: int | None = None  # None: dim
    dtype: str = "float32"
    scale: float | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: str | None = None  # "h" or "bh"
    dropout: float = 0.0
    bias: str | None = None  # the axes that are not broadcast, "bhqk", "1h1k", "qk" ...; "bool:..." for a mask
    sink: bool = False
    chunk: int = 0
    offsets: tuple[int | None, int | None] = (None, None)  # q_offset, k_offset
    used_rows: tuple[int, ...] | None = None  # seqused_q, cycled over the batch
    used_keys: tuple[int, ...] | None = None  # seqused_k
    lengths: tuple[tuple[int, int], ...] | None = None  # (rows, keys) of each sequence: varlen
    tail: int = 0  # rows and keys after the last sequence, which belong to nobody
    page: int = 0  # page size of a paged varlen K and V (forward only)
    packed: str | None = None  # "qkv" or "kv": the packed forms
    layout: str = "contiguous"
    spread: float = 1.0  # standard deviation of q and k
    trend: float = 0.0  # added to the score for each key: the maximum moves all the time
    dlse: bool = True  # lse has a gradient, too

    @property
    def kv(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def v_dim(self) -> int:
        return self.dim if self.value_dim is None else self.value_dim

    @property
    def sequences(self) -> int:
        return self.batch if self.lengths is None else len(self.lengths)

    def meaningful(self) -> bool:
        """False for combinations that API.md does not define."""
        dense_only = self.bias is not None or self.offsets != (None, None)
        if self.lengths is not None and (dense_only or self.packed == "qkv"):
            return False
        if self.packed is not None and (self.v_dim != self.dim or self.layout != "contiguous"):
            return False
        if self.packed == "qkv" and (self.rows != self.keys or self.kv != self.heads):
            return False
        return self.heads % self.kv == 0


@dataclass(frozen=True)
class CacheCase(_Named):
    """A call of flash_attn_with_kvcache."""

    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    rows: int = 1
    dim: int = 32
    value_dim: int | None = None
    dtype: str = "float32"
    scale: float | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: str | None = None
    sink: bool = False
    chunk: int = 0
    capacity: int = 80
    cached: int | tuple[int, ...] | None = (61, 9)  # cache_seqlens: an int, a length a row (cycled), or None
    new: int = 0  # tokens to append
    rotary: str | None = None  # "interleaved" or "halves"
    rotary_dim: int | None = None  # None: dim, rounded down to an even number
    leftpad: tuple[int, ...] | None = None
    batch_index: bool = False  # the sequences use cache rows in another order, and some rows are not used
    page: int = 0
    num_splits: int = 0
    layout: str = "contiguous"
    nan_behind: bool = False  # tokens that lie behind the window of every query hold NaN

    @property
    def v_dim(self) -> int:
        return self.dim if self.value_dim is None else self.value_dim


def inputs(case: Case | CacheCase, seed: int = 0) -> Inputs:
    """The arrays of a case: fresh ones at every call, equal for equal seeds."""
    return cache_inputs(case, seed) if isinstance(case, CacheCase) else attention_inputs(case, seed)


# ---- tables --------------------------------------------------------------------------------------

TILE_KEYS = (15, 16, 17, 95, 96, 97, 192, 193)  # around the tile sizes of the kernels
TILE_ROWS = (15, 16, 17, 31, 32, 33, 64, 65)

single = [
    Case(),
    Case(dlse=False),
    Case(scale=0.3),
    Case(scale=-0.5),
    Case(kv_heads=1),
    Case(heads=6, kv_heads=2),
    Case(value_dim=20),
    Case(causal=True),
    Case(window=(17, 0)),
    Case(window=(9, 5)),
    Case(window=(-1, 3)),
    Case(window=(40, -1)),
    Case(window=(0, 0)),
    Case(causal=True, window=(20, 7)),
    Case(softcap=1.5),
    Case(softcap=30.0),
    Case(alibi="h"),
    Case(alibi="bh"),
    Case(dropout=0.17),
    Case(dropout=0.9),
    Case(sink=True),
    Case(chunk=24),
    Case(offsets=(64, None)),
    Case(offsets=(30, 7)),
    Case(offsets=(70, 90), causal=True),
    Case(used_rows=(20, 37), used_keys=(50, 109)),
    Case(used_rows=(0, 5), used_keys=(7, 0)),
    *(Case(bias=axes) for axes in ("bhqk", "1hqk", "b1qk", "b11k", "bhq1", "1h11", "1111", "hqk", "qk")),
    *(Case(bias=axes) for axes in ("bool:bhqk", "bool:b11k", "bool:qk", "bool:hq1")),
    Case(spread=4.0),
    Case(spread=10.0),  # scores of some hundreds: exp would overflow without its maximum
    Case(spread=30.0),  # and of thousands, with an lse to match
    Case(trend=0.5),
    Case(trend=-0.5),
    Case(packed="kv"),
    Case(packed="qkv", keys=37),
    Case(lengths=((37, 109), (5, 5), (64, 20))),
]

_features = [
    Case(heads=4, kv_heads=2),
    Case(value_dim=20),
    Case(causal=True),
    Case(window=(31, 6)),
    Case(softcap=2.0),
    Case(alibi="bh"),
    Case(dropout=0.17),
    Case(bias="bhqk"),
    Case(bias="b11k"),
    Case(bias="bool:b1qk"),
    Case(sink=True),
    Case(chunk=24),
    Case(offsets=(50, 3)),
    Case(used_rows=(20, 37), used_keys=(50, 109)),
    Case(lengths=((37, 109), (50, 17), (1, 1))),
    Case(layout="heads_first"),
    Case(trend=0.5),
    Case(dtype="bfloat16"),
]
pairs = [a | b for a, b in itertools.combinations(_features, 2) if not a.conflicts(b) and (a | b).meaningful()]


def _covering(axes: list[list[Case]]) -> list[Case]:
    """Cases with one value of every axis, until each meaningful pair of values has met in one of them (greedy)."""
    values = [[(axis, n) for n in range(len(options))] for axis, options in enumerate(axes)]
    wanted = {
        (a, b)
        for one, two in itertools.combinations(values, 2)
        for a, b in itertools.product(one, two)
        if (axes[a[0]][a[1]] | axes[b[0]][b[1]]).meaningful()
    }
    covering = []
    while wanted:
        first = min(wanted)
        chosen = {first[0][0]: first[0], first[1][0]: first[1]}
        case = axes[first[0][0]][first[0][1]] | axes[first[1][0]][first[1][1]]
        for axis in values:
            if axis[0][0] in chosen:
                continue
            fits = [value for value in axis if (case | axes[value[0]][value[1]]).meaningful()]
            gain = [sum(tuple(sorted((value, other))) in wanted for other in chosen.values()) for value in fits]
            best = fits[int(np.argmax(gain))]
            chosen[best[0]] = best
            case = case | axes[best[0]][best[1]]
        wanted -= {tuple(sorted(pair)) for pair in itertools.combinations(chosen.values(), 2)}
        wanted -= {(b, a) for a, b in itertools.combinations(chosen.values(), 2)}
        covering.append(case)
    return covering


mixed = _covering(
    [
        [Case(), Case(dtype="float16"), Case(dtype="bfloat16"), Case(dtype="float64")],
        [Case(), Case(heads=3, kv_heads=1), Case(heads=4, kv_heads=2)],
        [Case(), Case(dim=64), Case(dim=40, value_dim=72)],
        [Case(), Case(causal=True), Case(window=(40, 0)), Case(window=(12, 9)), Case(chunk=32)],
        [Case(), Case(rows=130, keys=130), Case(rows=100, keys=33), Case(lengths=((3, 120), (97, 97), (0, 5)))],
        [Case(), Case(softcap=3.0)],
        [Case(), Case(alibi="h"), Case(alibi="bh")],
        [Case(), Case(bias="bhqk"), Case(bias="1h1k"), Case(bias="bool:b1qk")],
        [Case(), Case(dropout=0.3)],
        [Case(), Case(sink=True)],
        [Case(), Case(offsets=(60, 20))],
        [Case(), Case(used_rows=(30, 36), used_keys=(100, 31))],
        [Case(), Case(layout="heads_first"), Case(layout="sliced")],
    ]
)

_edge_sizes = [
    *itertools.product((0, 1), (0, 1, 2, *TILE_KEYS)),
    *itertools.product((2, *TILE_ROWS), (0, 1, 17)),
    *((rows, TILE_KEYS[n % len(TILE_KEYS)]) for n, rows in enumerate(TILE_ROWS)),
    *((rows, TILE_KEYS[(n + 3) % len(TILE_KEYS)]) for n, rows in enumerate(TILE_ROWS)),
    (96, 96),
    (97, 97),
    (130, 131),
    (300, 7),
    (290, 300),
]
edges = [
    Case(batch=1, heads=1, rows=rows, keys=keys, dim=16, causal=causal)
    for causal in (False, True)
    for rows, keys in dict.fromkeys(_edge_sizes)
] + [
    # rows without keys, and tile borders that every feature must respect
    Case(batch=1, rows=97, keys=30, causal=True, sink=True),
    Case(batch=1, rows=97, keys=30, causal=True, dropout=0.3),
    Case(batch=1, heads=1, dim=18, scale=1.0, dropout=0.5, lengths=((2, 1), (93, 2)), spread=3.0),  # probabilities of exactly 1
    Case(batch=1, rows=97, keys=30, causal=True, alibi="h", softcap=2.0),
    Case(batch=1, rows=97, keys=97, window=(3, 2), bias="bhqk"),
    Case(batch=1, rows=40, keys=200, window=(3, 2)),
    Case(batch=1, rows=40, keys=200, window=(96, -1)),
    Case(batch=1, rows=200, keys=40, window=(5, 5)),
    Case(batch=1, rows=200, keys=40, window=(5, -1), sink=True),
    Case(batch=1, rows=20, keys=20, offsets=(0, 20), causal=True),
    Case(batch=1, rows=20, keys=20, offsets=(0, 20), causal=True, sink=True),
    Case(batch=1, rows=20, keys=20, offsets=(10, 20), causal=True),
    Case(batch=1, rows=64, keys=192, chunk=96),
    Case(batch=1, rows=64, keys=192, chunk=1),
    Case(batch=1, rows=64, keys=192, chunk=1000),
    Case(batch=1, rows=100, keys=64, chunk=16, causal=True),
    Case(batch=1, heads=5, kv_heads=1, rows=33, keys=97, causal=True),
    Case(batch=1, heads=16, kv_heads=2, rows=7, keys=97, causal=True, dropout=0.2),
    Case(batch=1, heads=1, rows=193, keys=193, dim=64, causal=True),
    Case(batch=1, heads=1, rows=129, keys=97, dim=256, causal=True),
    Case(batch=1, heads=1, rows=65, keys=97, dim=512, causal=True),
    Case(batch=1, heads=2, rows=40, keys=300, trend=1.0, causal=True),
    Case(batch=1, heads=2, rows=40, keys=300, trend=-1.0),
    Case(batch=5, heads=1, rows=1, keys=1),
    Case(used_rows=(0,), used_keys=(0,)),
    Case(used_keys=(1, 96), keys=97, causal=True, sink=True),
    Case(used_rows=(36, 1), used_keys=(96, 97), keys=97, causal=True, bias="bhqk"),
]

dims = [
    Case(batch=1, dim=dim, rows=19, keys=33, dtype=dtype, causal=dtype != "float32")
    for dtype in ("float32", "float16", "bfloat16")
    for dim in (1, 2, 3, 7, 8, 16, 18, 32, 33, 36, 40, 64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 512)
] + [
    Case(batch=1, rows=19, keys=33, dim=dim, value_dim=value_dim)
    for dim, value_dim in ((192, 128), (64, 32), (1, 5), (5, 1), (96, 160), (512, 64), (24, 512), (72, 73))
]

dtypes = [
    Case(dtype=dtype) | change
    for dtype in ("float16", "bfloat16", "float64")
    for change in (
        Case(),
        Case(causal=True, heads=4, kv_heads=2),
        Case(softcap=2.0, alibi="h"),
        Case(bias="1111"),
        Case(dropout=0.17, window=(30, 2)),
        Case(bias="bhqk", sink=True),
        Case(spread=4.0),
        Case(trend=0.5),
        Case(lengths=((37, 109), (5, 5), (64, 20)), causal=True),
        Case(rows=130, keys=210),
    )
]

varlen = [
    Case(lengths=lengths) | change
    for lengths in (
        ((1, 1),),
        ((0, 0),),
        ((0, 4), (4, 0)),
        ((1, 1), (1, 97), (97, 1), (0, 0), (16, 96)),
        ((40, 40), (0, 0), (100, 100), (3, 3)),
    )
    for change in (Case(), Case(causal=True))
] + [
    Case(lengths=((20, 50), (0, 9), (33, 33), (1, 120))) | change
    for change in (
        Case(heads=6, kv_heads=2, causal=True),
        Case(window=(11, 4)),
        Case(softcap=2.0),
        Case(alibi="bh"),
        Case(dropout=0.17),
        Case(dropout=0.17, causal=True, heads=4, kv_heads=2),
        Case(sink=True, causal=True),
        Case(chunk=16),
        Case(value_dim=48),
        Case(used_rows=(7, 0, 33, 1), used_keys=(50, 3, 12, 0)),
        Case(used_keys=(10, 9, 20, 64), causal=True, sink=True),
        Case(tail=5, causal=True),
        Case(packed="kv", causal=True),
        Case(layout="heads_first"),
        Case(layout="sliced"),
        Case(layout="reversed"),
        Case(layout="strided"),
        Case(dtype="bfloat16", causal=True),
        Case(dtype="float16", alibi="h"),
        Case(dtype="float64", sink=True),
    )
]

# varlen over pages has no backward
paged_varlen = [
    Case(lengths=((1, 50), (20, 9), (33, 130)), page=page) | change
    for page, change in (
        (1, Case(causal=True)),
        (3, Case()),
        (16, Case(causal=True, heads=4, kv_heads=2)),
        (16, Case(dtype="bfloat16", window=(20, 0))),
        (64, Case(sink=True, softcap=3.0)),
        (256, Case(alibi="h", dropout=0.2)),
    )
]

strides = [
    Case(layout=layout) | change
    for layout in ("heads_first", "sliced", "reversed", "strided", "broadcast")
    for change in (
        Case(),
        Case(causal=True, heads=4, kv_heads=2, dtype="bfloat16"),
        Case(dtype="float16", dim=33, value_dim=7),
        Case(bias="bhqk", dropout=0.17),
    )
] + [
    Case(packed="kv", causal=True, heads=4, kv_heads=1),
    Case(packed="kv", dtype="bfloat16", dropout=0.17),
    Case(packed="qkv", rows=64, keys=64, causal=True),
    Case(packed="qkv", rows=40, keys=40, dtype="float16", alibi="h"),
]

decode = [
    # reading a cache
    CacheCase(),
    CacheCase(cached=None),
    CacheCase(cached=40),
    CacheCase(cached=(0, 1)),
    CacheCase(cached=(0, 1), sink=True),
    CacheCase(causal=True),
    CacheCase(heads=8, kv_heads=1),
    CacheCase(heads=3, kv_heads=3),
    CacheCase(rows=5),
    CacheCase(rows=5, causal=True),
    CacheCase(rows=5, causal=True, cached=(3, 60)),
    CacheCase(rows=33, causal=True, heads=4, kv_heads=1),
    CacheCase(window=(13, 0)),
    CacheCase(rows=5, window=(13, 2)),
    CacheCase(softcap=2.0),
    CacheCase(alibi="h"),
    CacheCase(alibi="bh", rows=3, causal=True),
    CacheCase(sink=True, rows=2, causal=True),
    CacheCase(chunk=16, rows=3),
    CacheCase(scale=0.7),
    CacheCase(value_dim=48),
    CacheCase(dim=128, capacity=300, cached=(299, 257)),
    *(CacheCase(dim=dim, cached=(33, 2)) for dim in (1, 7, 40, 192, 320, 512)),
    *(
        CacheCase(window=(13, 0), nan_behind=True) | change
        for change in (
            CacheCase(),
            CacheCase(rows=5, causal=True, new=5),
            CacheCase(page=16),
            CacheCase(num_splits=3, capacity=300, cached=(299, 150), dtype="bfloat16"),
        )
    ),
    # appending to it
    CacheCase(new=1),
    CacheCase(new=1, cached=(0, 79)),
    CacheCase(new=1, cached=40, causal=True),
    CacheCase(new=5, rows=5, causal=True),
    CacheCase(new=5, rows=2),
    CacheCase(new=2, rows=5, causal=True, cached=(0, 30)),
    CacheCase(new=17, rows=17, causal=True, cached=(0, 63)),
    CacheCase(new=1, value_dim=16),
    *(
        CacheCase(new=rows, rows=rows, rotary=style, causal=causal)
        for style in ("interleaved", "halves")
        for rows, causal in ((1, False), (4, True), (4, False))
    ),
    CacheCase(new=3, rows=3, rotary="interleaved", window=(20, 0)),
    CacheCase(new=3, rows=3, rotary="halves", rotary_dim=16, causal=True),
    CacheCase(new=3, rows=3, rotary="interleaved", rotary_dim=16, causal=True),
    CacheCase(new=1, rotary="halves", dim=40, rotary_dim=2),
    # where the cache lies
    CacheCase(leftpad=(5, 0)),
    CacheCase(leftpad=(61, 9), sink=True),
    CacheCase(leftpad=(5, 8), new=3, rows=3, causal=True, rotary="halves"),
    CacheCase(leftpad=(7, 3), rows=4, window=(10, 0), alibi="h"),
    CacheCase(batch_index=True),
    CacheCase(batch_index=True, new=2, rows=2, causal=True),
    CacheCase(batch_index=True, leftpad=(4, 2), new=1, rotary="interleaved"),
    *(CacheCase(page=page) for page in (1, 3, 16, 256)),
    *(CacheCase(page=page, new=4, rows=4, causal=True, cached=(15, 0, 46), batch=3) for page in (1, 3, 16, 256)),
    CacheCase(page=16, new=1, rotary="interleaved", cached=(15, 16)),
    CacheCase(page=3, new=2, rows=2, rotary="halves", causal=True, window=(9, 0)),
    CacheCase(page=16, cached=None),
    *(CacheCase(layout=layout, new=2, rows=2, causal=True) for layout in ("heads_first", "sliced", "reversed")),
    CacheCase(layout="sliced", page=16, new=1),
    # split keys
    *(
        CacheCase(num_splits=splits, capacity=300, cached=(280, 3), heads=8, kv_heads=2) | change
        for splits in (1, 3)
        for change in (
            CacheCase(),
            CacheCase(rows=3, causal=True, new=3),
            CacheCase(window=(50, 0), softcap=3.0),
            CacheCase(page=16, sink=True),
            CacheCase(leftpad=(100, 1), alibi="bh", dtype="bfloat16"),
        )
    ),
    CacheCase(num_splits=7, capacity=5, cached=(4, 2)),
    # dtypes
    *(
        CacheCase(dtype=dtype) | change
        for dtype in ("float16", "bfloat16", "float64")
        for change in (
            CacheCase(),
            CacheCase(new=1, rotary="halves", causal=True),
            CacheCase(new=4, rows=4, causal=True, rotary="interleaved", page=16),
            CacheCase(heads=8, kv_heads=1, capacity=300, cached=(290, 100), window=(100, 0)),
        )
    ),
]
