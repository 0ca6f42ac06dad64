"""Calls that are right, one of each kind, and the table of all that is wrong: what is changed and the error that must come."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import flash_attn
import flash_attn.numpy
from tolerance import DTYPES

FORM = re.compile(r"\[(\w+)\] ([\w, /.]+): expected .*found .*\.")
HALF = ("float16", "bfloat16")

# ---- calls that are right, to be broken ------------------------------------------------------------------------------

BATCH, ROWS, KEYS, HEADS, KV_HEADS, DIM = 2, 5, 7, 4, 2, 8


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, DTYPES.get(dtype, dtype))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def dense() -> dict[str, Any]:
    return {"q": ones(BATCH, ROWS, HEADS, DIM), "k": ones(BATCH, KEYS, KV_HEADS, DIM), "v": ones(BATCH, KEYS, KV_HEADS, DIM)}


def qkvpacked() -> dict[str, Any]:
    return {"qkv": ones(BATCH, ROWS, 3, HEADS, DIM)}


def kvpacked() -> dict[str, Any]:
    return {"q": ones(BATCH, ROWS, HEADS, DIM), "kv": ones(BATCH, KEYS, 2, KV_HEADS, DIM)}


def varlen() -> dict[str, Any]:
    return {
        "q": ones(ROWS, HEADS, DIM),
        "k": ones(KEYS, KV_HEADS, DIM),
        "v": ones(KEYS, KV_HEADS, DIM),
        "cu_seqlens_q": ints(0, 2, 5),
        "cu_seqlens_k": ints(0, 3, 7),
        "max_seqlen_q": 3,
        "max_seqlen_k": 4,
    }


def varlen_qkvpacked() -> dict[str, Any]:
    return {"qkv": ones(ROWS, 3, HEADS, DIM), "cu_seqlens": ints(0, 2, 5), "max_seqlen": 3}


def varlen_kvpacked() -> dict[str, Any]:
    call = varlen()
    del call["k"], call["v"]
    return dict(call, kv=ones(KEYS, 2, KV_HEADS, DIM))


def paged_varlen() -> dict[str, Any]:
    pages = {"k": ones(5, 4, KV_HEADS, DIM), "v": ones(5, 4, KV_HEADS, DIM), "block_table": ints(4, 1, 0, 2).reshape(2, 2)}
    return varlen() | pages


def cache() -> dict[str, Any]:
    call = dense()
    return {"q": call["q"], "k_cache": call["k"], "v_cache": call["v"], "cache_seqlens": ints(3, 4)}


def growing() -> dict[str, Any]:
    new = {"k": ones(BATCH, 2, KV_HEADS, DIM) * 5, "v": ones(BATCH, 2, KV_HEADS, DIM) * 6}
    return cache() | new | {"rotary_cos": ones(16, DIM // 2), "rotary_sin": ones(16, DIM // 2)}


def paged() -> dict[str, Any]:
    pages = {"k_cache": ones(5, 4, KV_HEADS, DIM), "v_cache": ones(5, 4, KV_HEADS, DIM), "block_table": ints(4, 1, 0, 2).reshape(2, 2)}
    return growing() | pages


def numpy_backward() -> dict[str, Any]:
    call = dense()
    out, lse, _ = flash_attn.flash_attn_func(**call, return_attn_probs=True)
    return call | {"dout": ones(*out.shape), "out": out, "softmax_lse": lse}


def numpy_varlen_backward() -> dict[str, Any]:
    call = varlen()
    out, lse, _ = flash_attn.flash_attn_varlen_func(**call, return_attn_probs=True)
    return call | {"dout": ones(*out.shape), "out": out, "softmax_lse": lse}


def merging() -> dict[str, Any]:
    out, lse = ones(BATCH, ROWS, HEADS, DIM), ones(BATCH, HEADS, ROWS)
    return {"out_a": out, "lse_a": lse, "out_b": out.copy(), "lse_b": lse.copy()}


def combining() -> dict[str, Any]:
    return {"out_partial": ones(3, BATCH, ROWS, HEADS, DIM), "lse_partial": ones(3, BATCH, ROWS, HEADS)}


CALLS: dict[Callable[[], dict[str, Any]], str] = {
    dense: "flash_attn_func",
    qkvpacked: "flash_attn_qkvpacked_func",
    kvpacked: "flash_attn_kvpacked_func",
    varlen: "flash_attn_varlen_func",
    varlen_qkvpacked: "flash_attn_varlen_qkvpacked_func",
    varlen_kvpacked: "flash_attn_varlen_kvpacked_func",
    paged_varlen: "flash_attn_varlen_func",
    cache: "flash_attn_with_kvcache",
    growing: "flash_attn_with_kvcache",
    paged: "flash_attn_with_kvcache",
    numpy_backward: "numpy.backward",
    numpy_varlen_backward: "numpy.varlen_backward",
    merging: "merge",
    combining: "flash_attn_combine",
}


def function_of(make) -> Callable:
    return functools.reduce(getattr, CALLS[make].split("."), flash_attn)


# ---- rules -----------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    make: Callable[[], dict[str, Any]]
    change: dict[str, Any]  # arguments that differ; a function gets the right value and returns the wrong one
    kind: type[Exception]
    argument: str  # that the message names
    words: str

    def __str__(self) -> str:
        return f"{self.make.__name__}:{','.join(self.change)}:{self.words[:30]}"


def strided(x: np.ndarray) -> np.ndarray:
    return np.repeat(x, 2, axis=-1)[..., ::2]


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


def odd_strides(x: np.ndarray) -> np.ndarray:
    """The same values as a field of packed records: strides are no whole number of elements."""
    records = np.zeros(x.shape, [("value", x.dtype), ("other", np.uint8)])
    records["value"] = x
    return records["value"]


def cast(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.astype(DTYPES.get(dtype, dtype))


def first(axis: int, n: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.take(range(n), axis=axis)


SHARED = ones(BATCH, KEYS, KV_HEADS, DIM)  # as both caches

TYPES = [
    Rule(dense, {"q": None}, TypeError, "q", "expected a NumPy"),
    Rule(dense, {"q": [[1.0]]}, TypeError, "q", "found builtins.list"),
    Rule(dense, {"q": 1.0}, TypeError, "q", "found builtins.float"),
    Rule(dense, {"k": None}, TypeError, "k", "expected an array, found none"),
    Rule(dense, {"v": lambda v: v.tolist()}, TypeError, "v", "expected a NumPy array like the others, found builtins.list"),
    Rule(dense, {"k": lambda k: np.ma.array(k, mask=True)}, TypeError, "k", "found numpy.ma.MaskedArray"),
    Rule(dense, {"v": "text"}, TypeError, "v", "found builtins.str"),
    Rule(qkvpacked, {"qkv": None}, TypeError, "qkv", "expected a NumPy"),
    Rule(kvpacked, {"kv": [1]}, TypeError, "kv", "expected a NumPy"),
    Rule(varlen, {"cu_seqlens_q": None}, TypeError, "cu_seqlens_q", "expected"),
    Rule(varlen, {"cu_seqlens_q": [0, 2, 5]}, TypeError, "cu_seqlens_q", "found builtins.list"),
    Rule(varlen, {"cu_seqlens_k": None}, TypeError, "cu_seqlens_k", "expected an array, found none"),
    Rule(varlen_qkvpacked, {"cu_seqlens": None}, TypeError, "cu_seqlens", "expected"),
    Rule(cache, {"k_cache": None}, TypeError, "k_cache", "expected an array, found none"),
    Rule(cache, {"cache_seqlens": 2.5}, TypeError, "cache_seqlens", "found builtins.float"),
    Rule(merging, {"out_a": None}, TypeError, "out_a", "expected a NumPy"),
    Rule(merging, {"lse_a": [1.0]}, TypeError, "lse_a", "expected a NumPy array like the others"),
    Rule(merging, {"out_b": "text"}, TypeError, "out_b", "expected a NumPy array like the others, found 'text'"),
    Rule(combining, {"out_partial": None}, TypeError, "out_partial", "expected a NumPy"),
    Rule(combining, {"lse_partial": 3}, TypeError, "lse_partial", "expected a NumPy array like the others, found 3"),
]
DTYPE_RULES = [
    *(Rule(dense, {"q": cast(d)}, TypeError, "q", d) for d in ("int32", "int64", "bool", "complex64", "object", "uint8", ">f4")),
    Rule(dense, {"k": cast("int32")}, TypeError, "k", "expected dtype float32 as q, found int32"),
    *(Rule(dense, {"k": cast(d)}, ValueError, "k", f"expected dtype float32 as q, found {d}") for d in (*HALF, "float64")),
    Rule(dense, {"v": cast("float16")}, ValueError, "v", "expected dtype float32 as q, found float16"),
    Rule(qkvpacked, {"qkv": cast("int64")}, TypeError, "qkv", "expected dtype float16, bfloat16, float32 or float64, found int64"),
    Rule(kvpacked, {"kv": cast("float64")}, ValueError, "kv", "expected dtype float32 as q, found float64"),
    Rule(varlen, {"cu_seqlens_q": cast("int64")}, TypeError, "cu_seqlens_q", "expected dtype int32, found int64"),
    Rule(varlen, {"cu_seqlens_k": cast("float32")}, TypeError, "cu_seqlens_k", "expected dtype int32, found float32"),
    Rule(varlen_qkvpacked, {"cu_seqlens": cast("int64")}, TypeError, "cu_seqlens", "expected dtype int32, found int64"),
    Rule(dense, {"alibi_slopes": ones(4, dtype="float16")}, TypeError, "alibi_slopes", "expected dtype float32, found float16"),
    Rule(dense, {"attn_bias": ints(1)}, TypeError, "attn_bias", "expected a bool or float array, found int32"),
    Rule(dense, {"attn_bias": ones(1, dtype="float64")}, TypeError, "attn_bias", "expected at most float32"),
    Rule(dense, {"learnable_sink": ints(1, 1, 1, 1)}, TypeError, "learnable_sink", "expected a float array, found int32"),
    Rule(dense, {"s_aux": ones(4, dtype="float64")}, TypeError, "learnable_sink", "expected at most float32"),
    Rule(dense, {"seqused_q": np.array([1, 1])}, TypeError, "seqused_q", "expected dtype int32, found int64"),
    Rule(dense, {"seqused_k": np.array([1.0, 1.0])}, TypeError, "seqused_k", "expected dtype int32, found float64"),
    Rule(dense, {"dropout_p": 0.5, "rng_state": ones(2)}, TypeError, "rng_state", "expected dtype int64 or uint32, found float32"),
    Rule(dense, {"out_dtype": "float16"}, TypeError, "out_dtype", "expected dtype float32, found float16"),
    Rule(dense, {"out_dtype": "int32"}, TypeError, "out_dtype", "expected dtype float32, found int32"),
    *(Rule(dense, {"out_dtype": d}, TypeError, "out_dtype", "expected a float dtype") for d in ("nonsense", object(), 5, {}, [], "O")),
    Rule(cache, {"cache_seqlens": cast("int64")}, TypeError, "cache_seqlens", "expected dtype int32, found int64"),
    Rule(cache, {"cache_batch_idx": np.array([0, 1])}, TypeError, "cache_batch_idx", "expected dtype int32, found int64"),
    Rule(cache, {"cache_leftpad": np.array([0, 1])}, TypeError, "cache_leftpad", "expected dtype int32, found int64"),
    Rule(paged, {"block_table": cast("int64")}, TypeError, "block_table", "expected dtype int32, found int64"),
    Rule(growing, {"k": cast("float16")}, ValueError, "k", "expected dtype float32 as q, found float16"),
    Rule(growing, {"rotary_cos": cast("float64")}, ValueError, "rotary_cos", "expected dtype float32 as q, found float64"),
    Rule(growing, {"v_cache": cast("bfloat16")}, ValueError, "v_cache", "expected dtype float32 as q, found bfloat16"),
    Rule(merging, {"lse_b": cast("int32")}, TypeError, "lse_b", "expected a float array, found int32"),
    Rule(combining, {"out_dtype": "int32"}, TypeError, "out_dtype", "expected a float dtype of NumPy, found 'int32'"),
    Rule(numpy_backward, {"dout": cast("float64")}, ValueError, "dout", "expected dtype float32 as q, found float64"),
    Rule(numpy_backward, {"out": cast("float64")}, ValueError, "out", "expected dtype float32, found float64"),
    Rule(numpy_backward, {"softmax_lse": cast("float16")}, TypeError, "softmax_lse", "expected dtype float32, found float16"),
]
SHAPES = [
    Rule(dense, {"q": lambda q: q[0]}, ValueError, "q", "must be 4D"),
    Rule(dense, {"q": lambda q: q[None]}, ValueError, "q", "must be 4D"),
    Rule(dense, {"q": np.ones((), np.float32)}, ValueError, "q", "must be 4D"),
    Rule(dense, {"k": lambda k: k[0]}, ValueError, "k", "must be 4D"),
    Rule(dense, {"v": lambda v: v[:, :, 0]}, ValueError, "v", "must be 4D"),
    Rule(dense, {"q": lambda q: q[None, None, None]}, ValueError, "q", "expected at most 5 axes"),
    Rule(varlen, {"q": lambda q: q[None]}, ValueError, "q", "must be 3D"),
    Rule(varlen, {"k": lambda k: k[None]}, ValueError, "k", "must be 3D"),
    Rule(qkvpacked, {"qkv": lambda x: x[0]}, ValueError, "qkv", "must be 5D"),
    Rule(qkvpacked, {"qkv": lambda x: x[:, :, :2]}, ValueError, "qkv", "expected axes (batch, seqlen, 3, heads, head_dim)"),
    Rule(kvpacked, {"kv": lambda x: x[:, :, :1]}, ValueError, "kv", "expected axes (batch, seqlen, 2, heads, head_dim)"),
    Rule(varlen_qkvpacked, {"qkv": lambda x: x[None]}, ValueError, "qkv", "must be 4D"),
    Rule(varlen_kvpacked, {"kv": lambda x: x[0]}, ValueError, "kv", "must be 4D"),
    Rule(dense, {"k": lambda k: k[..., :4]}, ValueError, "k", "Head dimensions must match"),
    Rule(kvpacked, {"kv": lambda x: x[..., :4]}, ValueError, "kv", "Head dimensions must match"),
    Rule(dense, {n: lambda x: np.concatenate([x, x[:, :, :1]], 2) for n in "kv"}, ValueError, "k", "4 heads of q are divisible, found 3"),
    Rule(dense, {n: lambda x: x[:, :, :0] for n in "kv"}, ValueError, "k", "divisible, found 0"),
    Rule(dense, {"q": lambda q: q[:, :, :0]}, ValueError, "q", "expected at least one head"),
    Rule(dense, {"q": lambda q: q[..., :0]}, ValueError, "q", "expected a head dim of 1 to 512, found 0"),
    Rule(dense, {"q": ones(1, 1, 1, 513)}, ValueError, "q", "expected a head dim of 1 to 512, found 513"),
    Rule(dense, {"v": ones(BATCH, KEYS, KV_HEADS, 513)}, ValueError, "v", "expected a head dim of 1 to 512, found 513"),
    Rule(dense, {"v": first(1, 6)}, ValueError, "v", "expected 7 on axis 1"),
    Rule(dense, {"k": first(0, 1), "v": first(0, 1)}, ValueError, "k", "expected 2 on axis 0"),
    Rule(dense, {"alibi_slopes": ones(2)}, ValueError, "alibi_slopes", "expected shape (4,) or (2, 4), found (2,)"),
    Rule(dense, {"attn_bias": ones(KEYS, ROWS)}, ValueError, "attn_bias", "expected a shape that broadcasts to (2, 4, 5, 7)"),
    Rule(dense, {"learnable_sink": ones(3)}, ValueError, "learnable_sink", "expected shape (4,), found (3,)"),
    Rule(dense, {"learnable_sink": ones(4), "s_aux": ones(4)}, ValueError, "learnable_sink, s_aux", "found both"),
    Rule(dense, {"seqused_q": ints(1)}, ValueError, "seqused_q", "expected (batch,) with 2 entries, found 1"),
    Rule(dense, {"dropout_p": 0.5, "rng_state": np.array([1])}, ValueError, "rng_state", "expected int64 (2,)"),
    Rule(varlen, {"cu_seqlens_q": lambda c: c[None]}, ValueError, "cu_seqlens_q", "must be 1D"),
    Rule(varlen, {"cu_seqlens_q": lambda c: c[:0]}, ValueError, "cu_seqlens_q", "expected batch + 1 entries, found 0"),
    Rule(varlen, {"cu_seqlens_k": lambda c: c[:2]}, ValueError, "cu_seqlens_k", "with 3 entries, found 2"),
    Rule(paged_varlen, {"cu_seqlens_k": None}, ValueError, "cu_seqlens_k", "expected cu_seqlens_k or seqused_k"),
    Rule(paged_varlen, {"block_table": lambda t: t[0]}, ValueError, "block_table", "must be 2D"),
    Rule(paged_varlen, {"block_table": first(0, 1)}, ValueError, "block_table", "expected 2 on axis 0"),
    Rule(cache, {"cache_seqlens": ints(1)}, ValueError, "cache_seqlens", "with 2 entries, found 1"),
    Rule(cache, {"cache_seqlens": np.array(3, np.int32)}, ValueError, "cache_seqlens", "must be 1D"),
    Rule(paged, {n: first(1, 0) for n in ("k_cache", "v_cache")}, ValueError, "k_cache", "expected pages of at least one key"),
    Rule(paged, {"cache_batch_idx": ints(0, 1)}, ValueError, "cache_batch_idx", "expected none together with block_table"),
    Rule(growing, {"k": None}, TypeError, "k", "expected an array, found none"),
    Rule(growing, {"v": None}, TypeError, "v", "expected an array, found none"),
    Rule(growing, {"k": first(0, 1)}, ValueError, "k", "expected shape (2, 2, 2, 8)"),
    Rule(growing, {"v": first(2, 1)}, ValueError, "v", "expected shape (2, 2, 2, 8)"),
    Rule(growing, {"cache_seqlens": None}, ValueError, "cache_seqlens", "expected the lengths before the new keys"),
    Rule(growing, {"rotary_sin": None}, TypeError, "rotary_sin", "expected an array, found none"),
    Rule(growing, {"rotary_sin": first(1, 2)}, ValueError, "rotary_sin", "expected shape (16, 4), found (16, 2)"),
    Rule(growing, {n: ones(16, 5) for n in ("rotary_cos", "rotary_sin")}, ValueError, "rotary_cos", "expected 1 to head_dim / 2"),
    Rule(numpy_backward, {"dout": first(1, 4)}, ValueError, "dout", "expected shape (2, 5, 4, 8)"),
    Rule(numpy_backward, {"softmax_lse": lambda x: x[0]}, ValueError, "softmax_lse", "expected shape (2, 4, 5)"),
    Rule(numpy_backward, {"dlse": ones(2, 5, 4)}, ValueError, "dlse", "expected shape (2, 4, 5)"),
    Rule(numpy_varlen_backward, {"softmax_lse": lambda x: x.T}, ValueError, "softmax_lse", "expected shape (4, 5)"),
    Rule(merging, {"lse_a": lambda x: x[:, :1]}, ValueError, "lse_a", "expected shape"),
    Rule(merging, {"out_b": lambda x: x[:1], "lse_b": lambda x: x[:1]}, ValueError, "out_b", "expected shape"),
    Rule(merging, {"out_a": ones(3)}, ValueError, "out_a", "expected axes (b, s, h, d) or (total, h, d)"),
    Rule(combining, {"out_partial": ones(3)}, ValueError, "out_partial", "expected axes (splits, b, s, h, d)"),
    Rule(combining, {name: first(0, 0) for name in ("out_partial", "lse_partial")}, ValueError, "out_partial", "at least one split"),
    Rule(combining, {"out": read_only(ones(2, 5, 4, 8))}, ValueError, "out", "expected a writable array"),
    Rule(combining, {"lse_partial": lambda x: x.swapaxes(2, 3)}, ValueError, "lse_partial", "expected shape"),
    Rule(combining, {"out": ones(2, 5, 4, 7)}, ValueError, "out", "expected shape"),
]
VALUES = [
    *(Rule(dense, {"dropout_p": p}, ValueError, "dropout_p", "expected a probability in [0, 1)") for p in (1, 1.5, -0.1, np.nan, np.inf)),
    *(Rule(dense, {"softmax_scale": x}, ValueError, "softmax_scale", "expected a finite float32") for x in (np.nan, np.inf, 1e300)),
    *(Rule(dense, {"softcap": x}, ValueError, "softcap", "expected 0 (off) or a positive") for x in (-1.0, np.nan, np.inf, 1e-300)),
    *(Rule(dense, {"window_size": w}, ValueError, "window_size", "expected") for w in ((-2, 0), (0, -5), (2**70, 0), [0, -(2**63) - 1])),
    *(Rule(dense, {"attention_chunk": c}, ValueError, "attention_chunk", "expected") for c in (-1, 2**40, 2**70)),
    *(Rule(dense, {"num_splits": n}, ValueError, "num_splits", "expected") for n in (-1, 5000, 2**40, 2**70)),
    *(Rule(dense, {"q_offset": n}, ValueError, "q_offset", "expected") for n in (2**40, -(2**40), 2**70)),
    Rule(dense, {"k_offset": 2**40}, ValueError, "k_offset", "expected a position within"),
    Rule(dense, {"q_offset": 2**28, "k_offset": -(2**28)}, ValueError, "q_offset", "from k_offset"),
    Rule(varlen, {"max_seqlen_q": -1}, ValueError, "max_seqlen_q", "expected 0 or more, found -1"),
    Rule(varlen, {"max_seqlen_q": 2}, ValueError, "max_seqlen_q", "expected at least 3, the longest sequence, found 2"),
    Rule(varlen, {"max_seqlen_q": 2**70}, ValueError, "max_seqlen_q", "expected an integer of 64 bits"),
    Rule(varlen, {"max_seqlen_k": -1}, ValueError, "max_seqlen_k", "expected 0 or more, found -1"),
    *(Rule(varlen, {"max_seqlen_k": n}, ValueError, "max_seqlen_k", "expected at least 4, the longest") for n in (0, 3)),
    Rule(varlen_qkvpacked, {"max_seqlen": 1}, ValueError, "max_seqlen", "expected at least 3"),
    Rule(varlen, {"cu_seqlens_q": ints(1, 2, 5)}, ValueError, "cu_seqlens_q", "expected 0 first, found 1"),
    Rule(varlen, {"cu_seqlens_q": ints(0, 4, 2)}, ValueError, "cu_seqlens_q", "never decrease, found 4 then 2"),
    Rule(varlen, {"cu_seqlens_q": ints(0, 3, 6)}, ValueError, "cu_seqlens_q", "within the 5 packed rows, found 6"),
    Rule(varlen, {"cu_seqlens_k": ints(0, 2**31 - 1, -(2**31))}, ValueError, "cu_seqlens_k", "never decrease"),
    Rule(varlen, {"seqused_q": ints(2, 4)}, ValueError, "seqused_q", "expected 0 to 3 (its rows), found 4 for sequence 1"),
    Rule(dense, {"seqused_k": ints(8, 1)}, ValueError, "seqused_k", "expected 0 to 7 (its keys), found 8 for sequence 0"),
    Rule(dense, {"seqused_k": ints(-1, 1)}, ValueError, "seqused_k", "found -1 for sequence 0"),
    *(Rule(cache, {"cache_seqlens": n}, ValueError, "cache_seqlens", "expected 0 to 7, the capacity") for n in (-1, 8)),
    Rule(cache, {"cache_seqlens": 2**70}, ValueError, "cache_seqlens", "expected an integer of 64 bits"),
    Rule(cache, {"cache_seqlens": ints(8, 0)}, ValueError, "cache_seqlens", "the capacity 7 of the cache, found 8 for sequence 0"),
    Rule(cache, {"cache_leftpad": ints(4, 0)}, ValueError, "cache_leftpad", "expected 0 to 3 (its keys), found 4"),
    Rule(cache, {"cache_batch_idx": ints(0, 2)}, ValueError, "cache_batch_idx", "expected rows of the cache, 0 to 1, found 2"),
    Rule(growing, {"cache_seqlens": ints(6, 0)}, ValueError, "cache_seqlens", "expected at most 5 keys before 2 new ones"),
    Rule(growing, {"cache_seqlens": 6}, ValueError, "cache_seqlens", "expected at most 5 keys before 2 new ones"),
    Rule(growing, {"cache_seqlens": ints(-1, 0)}, ValueError, "cache_seqlens", "found -1 for sequence 0"),
    Rule(growing, {"cache_batch_idx": ints(1, 1)}, ValueError, "cache_batch_idx", "found 1 twice"),
    Rule(growing, {n: first(0, 5) for n in ("rotary_cos", "rotary_sin")}, ValueError, "rotary_cos", "expected at least 6 positions"),
    Rule(
        growing,
        {"causal": True, "rotary_cos": first(0, 8), "rotary_sin": first(0, 8)},
        ValueError,
        "rotary_cos",
        "expected at least 9 positions, found 8",
    ),
    Rule(paged, {"block_table": ints(4, 1, 5, 2).reshape(2, 2)}, ValueError, "block_table", "expected pages 0 to 4, found 5 at (1, 0)"),
    Rule(paged, {"block_table": ints(4, -1, 0, 2).reshape(2, 2)}, ValueError, "block_table", "expected pages 0 to 4, found -1 at (0, 1)"),
    Rule(paged, {"cache_seqlens": ints(7, 0)}, ValueError, "cache_seqlens", "capacity 8 of the cache"),
    # written in place: no copy could help
    Rule(growing, {"k_cache": read_only}, ValueError, "k_cache", "expected a writable array, found a read-only one"),
    Rule(growing, {"v_cache": strided}, ValueError, "v_cache", "expected a contiguous last axis"),
    Rule(growing, {"k_cache": lambda x: np.broadcast_to(x[:1], x.shape)}, ValueError, "k_cache", "expected"),
    Rule(growing, {"v_cache": odd_strides}, ValueError, "v_cache", "expected memory aligned to its elements"),
    Rule(growing, {"k_cache": lambda x: SHARED, "v_cache": lambda x: SHARED}, ValueError, "k_cache", "memory of its own, as writing needs"),
    Rule(growing, {"k_cache": lambda x: np.lib.stride_tricks.as_strided(x, x.shape, (64, 64, 32, 4))}, ValueError, "k_cache", "its own"),
]
SCALARS = [
    *(Rule(dense, {"dropout_p": x}, TypeError, "dropout_p", "expected a number") for x in (None, "0.5", [1], 1j, ones(2))),
    Rule(dense, {"dropout_p": 10**400}, ValueError, "dropout_p", "expected a float64 number, found an int of 1329 bits"),
    *(Rule(dense, {"softmax_scale": x}, TypeError, "softmax_scale", "expected a number") for x in ("1", [], object())),
    Rule(dense, {"softcap": None}, TypeError, "softcap", "expected a number, found None"),
    *(
        Rule(dense, {"window_size": w}, TypeError, "window_size", "expected")
        for w in (None, 3, (1,), (1, 2, 3), (1.5, 0), ("a", 0), (None, 0))
    ),
    *(Rule(dense, {"attention_chunk": x}, TypeError, "attention_chunk", "expected an integer") for x in (None, 1.5, "3", np.float32(2))),
    Rule(dense, {"num_splits": 2.5}, TypeError, "num_splits", "expected an integer, found 2.5"),
    Rule(dense, {"q_offset": 1.5}, TypeError, "q_offset", "expected an integer, found 1.5"),
    Rule(dense, {"k_offset": "7"}, TypeError, "k_offset", "expected an integer, found '7'"),
    Rule(dense, {"causal": ones(2)}, TypeError, "causal", "expected True or False"),
    Rule(dense, {"deterministic": ones(2)}, TypeError, "deterministic", "expected True or False"),
    *(Rule(varlen, {"max_seqlen_q": x}, TypeError, "max_seqlen_q", "expected an integer") for x in (None, 3.0, ints(1, 2))),
    Rule(varlen_qkvpacked, {"max_seqlen": None}, TypeError, "max_seqlen", "expected an integer, found None"),
    Rule(cache, {"rotary_interleaved": ones(2)}, TypeError, "rotary_interleaved", "expected True or False"),
    Rule(cache, {"num_splits": "2"}, TypeError, "num_splits", "expected an integer"),
    Rule(cache, {"softcap": "2"}, TypeError, "softcap", "expected a number"),
]
RULES = TYPES + DTYPE_RULES + SHAPES + VALUES + SCALARS


def broken(rule: Rule) -> dict[str, Any]:
    call = rule.make()
    for name, value in rule.change.items():
        if isinstance(value, np.ndarray):
            value = value if not value.flags.writeable else value.copy()
        call[name] = value(call[name]) if inspect.isfunction(value) else value
    return call


def check_message(error: BaseException, function: str, argument: str | None = None) -> None:
    found = FORM.fullmatch(str(error))
    assert found, f"not of the form [function] argument: expected ..., found ....: {error}"
    assert found[1] == function.rpartition(".")[2], error
    assert argument is None or found[2] == argument, error


def check_rule(rule: Rule) -> None:
    """The broken call ends in the rule's error and has written nothing."""
    call = broken(rule)
    before = {name: array.tobytes() for name, array in call.items() if isinstance(array, np.ndarray)}
    try:
        function_of(rule.make)(**call)
    except rule.kind as error:
        check_message(error, CALLS[rule.make], rule.argument)
        assert rule.words in str(error), error
    else:
        raise AssertionError(f"nothing was raised: {rule}")
    changed = [name for name, content in before.items() if call[name].tobytes() != content]
    assert not changed, f"a call that failed has written into {changed}"
