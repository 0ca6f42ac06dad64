"""The public functions: each gathers its arguments into one call, and nothing else. Upstream's names, order and defaults.

Shapes: b batch, s sequence, h query heads, hk key/value heads (h % hk == 0), d head dim, dv value head dim (1..512 each).
Arrays: NumPy, PyTorch, MLX, JAX; float16, bfloat16, float32 (float64 on CPUs). The result is of the caller's kind, on the
caller's device, differentiable by its autograd.

Formulas: Dao et al., FlashAttention (arXiv:2205.14135) and FlashAttention-2 (arXiv:2307.08691).
"""

from __future__ import annotations

import numbers
import threading
from typing import Any

from flash_attn import engine, frameworks
from flash_attn.call import Arrays, Options, Role
from flash_attn.scalars import flag, integer, number, said

explaining: set[int] = set()  # threads whose calls say what they would run: explain.py

_ARGUMENTS = """
    Arguments:
        dropout_p: probability in [0, 1) of dropping a (normalised) attention probability; kept ones grow by 1 / (1 - p).
        softmax_scale: factor of q.k; default d ** -0.5.
        causal: query i sees key j iff j <= i + sk - sq (aligned at the bottom right).
        window_size: (left, right), -1 unlimited: j in [i + sk - sq - left, i + sk - sq + right].
        softcap: c > 0 turns a score s into c * tanh(s / c); 0 is off.
        alibi_slopes: float32 (h,) or (b, h): slope * |i + sk - sq - j| is subtracted from the score.
        deterministic: bitwise reproducible gradients (on CPUs they always are).
        return_attn_probs: also return the lse and, with dropout, the probabilities (for tests; O(s^2) memory).
    Keyword-only:
        attn_bias (dense only): broadcastable to (b, h, sq, sk), unscaled, added after ALiBi; bool: True is visible; values
            below -1e20 hide.
        learnable_sink, s_aux: (h,): exp(sink) enters the sum of each row (both names mean the same).
        q_offset, k_offset (dense only): absolute positions of row 0 and key 0; once one is given, they replace the
            bottom-right alignment.
        seqused_q, seqused_k: int32 (b,): rows and keys beyond are absent.
        attention_chunk: c > 0: query and key must lie in the same chunk of c positions.
        out_dtype: "float32" for partial results to be merged.
        rng_state: int64 (2,) [seed, offset] or uint32 (4,); default: drawn from the framework's generator.
        num_splits, sm_margin: hints that never change the meaning.
    Returns:
        out, or (out, softmax_lse, S_dmask) with return_attn_probs. softmax_lse: float32, natural logarithm, -inf for a row
        that sees no key (its out is 0). S_dmask: empty (0,) without dropout.
    Raises:
        TypeError, ValueError: "[function] argument: expected ..., found ..."; NotImplementedError: no kernel takes the call.
"""


def _documented(function: Any) -> Any:
    function.__doc__ += _ARGUMENTS
    return function


def _window(function: str, window_size: Any) -> tuple[int, int]:
    try:
        left, right = window_size
    except (TypeError, ValueError):
        raise TypeError(f"[{function}] window_size: expected two integers (left, right), found {said(window_size)}.") from None
    return integer(function, "window_size", left), integer(function, "window_size", right)


def _same(function: str, names: str, one: Any, other: Any) -> Any:
    if one is not None and other is not None:
        raise ValueError(f"[{function}] {names}: expected one of the two names for the same thing, found both.")
    return other if one is None else one


_DENSE = (Role.SLOPES, Role.BIAS, Role.SINK, Role.USED_ROWS, Role.USED_KEYS)
_PACKED = (Role.CU_ROWS, Role.CU_KEYS, Role.SLOPES, Role.SINK, Role.USED_ROWS, Role.USED_KEYS, Role.PAGES)
_CACHED = (
    Role.NEW_K, Role.NEW_V, Role.COS, Role.SIN, Role.LENGTHS, Role.CACHE_ROWS, Role.LEFTPAD, Role.PAGES, Role.SLOPES, Role.SINK
)  # fmt: skip
_Q, _K, _V = Role.Q, Role.K, Role.V


def _arrays(q: Any, k: Any, v: Any, roles: tuple[int, ...], *others: Any) -> Arrays:
    """Arrays by role, those that are there."""
    arrays = {_Q: q, _K: k, _V: v}
    for role, array in zip(roles, others):
        if array is not None:
            arrays[role] = array
    return {role: array for role, array in arrays.items() if array is not None} if q is None or k is None or v is None else arrays


def options_of(
    function: str,
    framework: Any,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: Any,
    softcap: float,
    deterministic: bool,
    attention_chunk: int,
    out_dtype: Any,
    num_splits: int,
    q_offset: int | None = None,
    k_offset: int | None = None,
    max_rows: Any = -1,
    max_keys: Any = -1,
) -> Options:
    """The options of a call, as users give them."""
    left, right = _window(function, window_size)
    return Options(
        dropout=number(function, "dropout_p", dropout_p),
        scale=None if softmax_scale is None else number(function, "softmax_scale", softmax_scale),
        causal=flag(function, "causal", causal),
        left=left,
        right=right,
        softcap=number(function, "softcap", softcap),
        deterministic=flag(function, "deterministic", deterministic),
        chunk=integer(function, "attention_chunk", attention_chunk),
        has_offsets=q_offset is not None or k_offset is not None,
        q_offset=0 if q_offset is None else integer(function, "q_offset", q_offset),
        k_offset=0 if k_offset is None else integer(function, "k_offset", k_offset),
        max_rows=framework.length(function, "max_seqlen" if "varlen_qkvpacked" in function else "max_seqlen_q", max_rows),
        max_keys=framework.length(function, "max_seqlen_k", max_keys),
        out_dtype=_dtype(framework, function, out_dtype),
        splits=integer(function, "num_splits", num_splits, bits=32),
    )


def _attend(
    function: str,
    arrays: Arrays,
    dropout_p: float,
    return_attn_probs: bool,
    rng_state: Any,
    softmax_scale: float | None,
    causal: bool,
    window_size: Any,
    softcap: float,
    deterministic: bool,
    attention_chunk: int,
    out_dtype: Any,
    num_splits: int,
    q_offset: int | None = None,
    k_offset: int | None = None,
    max_rows: Any = -1,
    max_keys: Any = -1,
) -> Any:
    q = arrays.get(_Q)
    framework = frameworks.of(q, function, "q")
    if (
        type(window_size) is tuple
        and len(window_size) == 2
        and type(return_attn_probs) is bool
        and (q_offset is k_offset is out_dtype is None)
        and not explaining
    ):
        left, right = window_size
        found = framework.quick(
            function,
            arrays,
            (dropout_p, softmax_scale, causal, left, right, softcap, deterministic, attention_chunk, False, 0, 0, max_rows, max_keys, 0,
             num_splits, None, True, 0),
            return_attn_probs,
        )  # fmt: skip
        if found is not None:
            out, lse = found
            return (out, lse, framework.empty([0], framework.dtype_code(q.dtype), q)) if return_attn_probs else out
    options = options_of(
        function, framework, dropout_p, softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, out_dtype, num_splits,
        q_offset, k_offset, max_rows, max_keys,
    )  # fmt: skip
    return_attn_probs = flag(function, "return_attn_probs", return_attn_probs)
    if options.dropout:
        arrays[Role.SEED] = framework.seed(q) if rng_state is None else rng_state
        if return_attn_probs:
            options = options._replace(wants=1 << Role.PROBABILITIES)
    options = framework.asked(options, return_attn_probs)
    if explaining and threading.get_ident() in explaining:
        return engine.explain(framework, function, arrays, options)
    out, lse, probabilities = framework.attention(function, arrays, options)
    if not return_attn_probs:
        return out
    if probabilities is None:
        probabilities = framework.empty([0], framework.dtype_code(q.dtype), q)
    return out, lse, probabilities


def _dtype(framework: Any, function: str, dtype: Any) -> int:
    if dtype is None:
        return 0
    code = framework.dtype_code(dtype)
    if code is None:
        raise TypeError(f"[{function}] out_dtype: expected a float dtype of {framework.name}, found {said(dtype)}.")
    return code


def _split(function: str, name: str, array: Any, count: int, axis: int) -> tuple[Any, ...]:
    """The parts of a packed array (.., count, heads, dim), as views."""
    framework = frameworks.of(array, function, name)
    shape = tuple(array.shape)
    if len(shape) != axis + 3 or shape[axis] != count:
        layout = "(batch, seqlen, {}, heads, head_dim)" if axis == 2 else "(total, {}, heads, head_dim)"
        raise ValueError(
            f"[{function}] {name}: expected axes {layout.format(count)}: must be {axis + 3}D, found {len(shape)}D (shape {shape})."
        )
    return framework.unpack(array, axis)


@_documented
def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    *,
    attn_bias=None,
    learnable_sink=None,
    s_aux=None,
    q_offset=None,
    k_offset=None,
    seqused_q=None,
    seqused_k=None,
    attention_chunk=0,
    out_dtype=None,
    rng_state=None,
    num_splits=0,
    sm_margin=0,
):
    """softmax(scale q k^T) v for q (b, sq, h, d), k (b, sk, hk, d), v (b, sk, hk, dv) -> (b, sq, h, dv)."""
    function = "flash_attn_func"
    sink = _same(function, "learnable_sink, s_aux", learnable_sink, s_aux)
    arrays = _arrays(q, k, v, _DENSE, alibi_slopes, attn_bias, sink, seqused_q, seqused_k)
    common = (softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, out_dtype, num_splits)
    return _attend(function, arrays, dropout_p, return_attn_probs, rng_state, *common, q_offset, k_offset)


@_documented
def flash_attn_qkvpacked_func(
    qkv,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    *,
    attn_bias=None,
    learnable_sink=None,
    s_aux=None,
    q_offset=None,
    k_offset=None,
    seqused_q=None,
    seqused_k=None,
    attention_chunk=0,
    out_dtype=None,
    rng_state=None,
    num_splits=0,
    sm_margin=0,
):
    """flash_attn_func for self-attention with q, k and v in one array: qkv (b, s, 3, h, d) -> (b, s, h, d)."""
    function = "flash_attn_qkvpacked_func"
    q, k, v = _split(function, "qkv", qkv, 3, 2)
    sink = _same(function, "learnable_sink, s_aux", learnable_sink, s_aux)
    arrays = _arrays(q, k, v, _DENSE, alibi_slopes, attn_bias, sink, seqused_q, seqused_k)
    common = (softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, out_dtype, num_splits)
    return _attend(function, arrays, dropout_p, return_attn_probs, rng_state, *common, q_offset, k_offset)


@_documented
def flash_attn_kvpacked_func(
    q,
    kv,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    *,
    attn_bias=None,
    learnable_sink=None,
    s_aux=None,
    q_offset=None,
    k_offset=None,
    seqused_q=None,
    seqused_k=None,
    attention_chunk=0,
    out_dtype=None,
    rng_state=None,
    num_splits=0,
    sm_margin=0,
):
    """flash_attn_func with k and v in one array: q (b, sq, h, d), kv (b, sk, 2, hk, d) -> (b, sq, h, d)."""
    function = "flash_attn_kvpacked_func"
    k, v = _split(function, "kv", kv, 2, 2)
    sink = _same(function, "learnable_sink, s_aux", learnable_sink, s_aux)
    arrays = _arrays(q, k, v, _DENSE, alibi_slopes, attn_bias, sink, seqused_q, seqused_k)
    common = (softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, out_dtype, num_splits)
    return _attend(function, arrays, dropout_p, return_attn_probs, rng_state, *common, q_offset, k_offset)


@_documented
def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
    *,
    learnable_sink=None,
    s_aux=None,
    seqused_q=None,
    seqused_k=None,
    attention_chunk=0,
    out_dtype=None,
    rng_state=None,
    num_splits=0,
    sm_margin=0,
):
    """Sequences packed end to end: q (total_q, h, d), k (total_k, hk, d), v (total_k, hk, dv) -> (total_q, h, dv).

    cu_seqlens_q, cu_seqlens_k: int32 (b + 1,), starts of the sequences and the end. max_seqlen_q, max_seqlen_k: at least the
    longest. block_table int32 (b, max_pages): k, v are then pages (pages, page_size, hk, d) of any size. lse: (h, total_q).
    """
    function = "flash_attn_varlen_func"
    sink = _same(function, "learnable_sink, s_aux", learnable_sink, s_aux)
    cu_q = _required(function, "cu_seqlens_q", cu_seqlens_q)
    arrays = _arrays(q, k, v, _PACKED, cu_q, cu_seqlens_k, alibi_slopes, sink, seqused_q, seqused_k, block_table)
    common = (softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, out_dtype, num_splits)
    return _attend(function, arrays, dropout_p, return_attn_probs, rng_state, *common, max_rows=max_seqlen_q, max_keys=max_seqlen_k)


def _required(function: str, name: str, array: Any) -> Any:
    if array is None:
        frameworks.of(array, function, name)  # raises TypeError
    return array


@_documented
def flash_attn_varlen_qkvpacked_func(
    qkv,
    cu_seqlens,
    max_seqlen,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    *,
    learnable_sink=None,
    s_aux=None,
    seqused_q=None,
    seqused_k=None,
    attention_chunk=0,
    out_dtype=None,
    rng_state=None,
    num_splits=0,
    sm_margin=0,
):
    """flash_attn_varlen_func for self-attention: qkv (total, 3, h, d), cu_seqlens int32 (b + 1,) -> (total, h, d)."""
    function = "flash_attn_varlen_qkvpacked_func"
    q, k, v = _split(function, "qkv", qkv, 3, 1)
    sink = _same(function, "learnable_sink, s_aux", learnable_sink, s_aux)
    cu = _required(function, "cu_seqlens", cu_seqlens)
    arrays = _arrays(q, k, v, _PACKED, cu, cu, alibi_slopes, sink, seqused_q, seqused_k)
    common = (softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, out_dtype, num_splits)
    return _attend(function, arrays, dropout_p, return_attn_probs, rng_state, *common, max_rows=max_seqlen, max_keys=max_seqlen)


@_documented
def flash_attn_varlen_kvpacked_func(
    q,
    kv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    *,
    learnable_sink=None,
    s_aux=None,
    seqused_q=None,
    seqused_k=None,
    attention_chunk=0,
    out_dtype=None,
    rng_state=None,
    num_splits=0,
    sm_margin=0,
):
    """flash_attn_varlen_func with k and v in one array: q (total_q, h, d), kv (total_k, 2, hk, d) -> (total_q, h, d)."""
    function = "flash_attn_varlen_kvpacked_func"
    k, v = _split(function, "kv", kv, 2, 1)
    sink = _same(function, "learnable_sink, s_aux", learnable_sink, s_aux)
    cu_q = _required(function, "cu_seqlens_q", cu_seqlens_q)
    arrays = _arrays(q, k, v, _PACKED, cu_q, cu_seqlens_k, alibi_slopes, sink, seqused_q, seqused_k)
    common = (softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, out_dtype, num_splits)
    return _attend(function, arrays, dropout_p, return_attn_probs, rng_state, *common, max_rows=max_seqlen_q, max_keys=max_seqlen_k)


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
    *,
    learnable_sink=None,
    s_aux=None,
    attention_chunk=0,
    out_dtype=None,
    sm_margin=0,
):
    """Attention of new queries against a key/value cache, after writing the new keys and values into it IN PLACE.

    Arguments:
        q: (b, sq, h, d).
        k_cache, v_cache: (b, capacity, hk, d), or (rows, capacity, hk, d) with cache_batch_idx, or pages
            (pages, page_size, hk, d) of any size with block_table.
        k, v: (b, new, hk, d): written at cache_seqlens[b].. before attending.
        rotary_cos, rotary_sin: (positions, rotary_dim / 2): new k turns at cache_seqlens + t, q at cache_seqlens + i when causal or
            windowed, else all at cache_seqlens. rotary_interleaved: pairs (2t, 2t + 1), else halves.
        cache_seqlens: int or int32 (b,): keys in the cache before this call; None: all of it. Required with k.
        cache_batch_idx: int32 (b,): cache row of each batch row. cache_leftpad: int32 (b,): entries to skip at the start.
        block_table: int32 (b, max_pages), unused entries anything.
        softmax_scale, causal, window_size, softcap, alibi_slopes, learnable_sink, attention_chunk, out_dtype: as flash_attn_func, with
            sk = cache_seqlens + new - leftpad.
        num_splits: over how many parts the keys are split, 0: chosen here.
    Returns:
        out (b, sq, h, dv), or (out, lse (b, h, sq)) with return_softmax_lse. No gradients.
    Raises:
        TypeError, ValueError: "[function] argument: expected ..., found ..."; caches are then untouched.
    """
    function = "flash_attn_with_kvcache"
    framework = frameworks.of(q, function, "q")
    sink = _same(function, "learnable_sink, s_aux", learnable_sink, s_aux)
    length = integer(function, "cache_seqlens", cache_seqlens) if isinstance(cache_seqlens, numbers.Integral) else None
    lengths = None if length is not None else cache_seqlens
    others = (k, v, rotary_cos, rotary_sin, lengths, cache_batch_idx, cache_leftpad, block_table, alibi_slopes, sink)
    arrays = _arrays(q, k_cache, v_cache, _CACHED, *others)
    left, right = _window(function, window_size)
    options = Options(
        scale=None if softmax_scale is None else number(function, "softmax_scale", softmax_scale),
        causal=flag(function, "causal", causal),
        left=left,
        right=right,
        softcap=number(function, "softcap", softcap),
        chunk=integer(function, "attention_chunk", attention_chunk),
        out_dtype=_dtype(framework, function, out_dtype),
        splits=integer(function, "num_splits", num_splits, bits=32),
        cache_length=length,
        rotary_interleaved=flag(function, "rotary_interleaved", rotary_interleaved),
    )
    return_softmax_lse = flag(function, "return_softmax_lse", return_softmax_lse)
    if explaining and threading.get_ident() in explaining:
        return engine.explain(framework, function, arrays, options)
    out, lse = framework.with_kvcache(function, arrays, options)
    return (out, lse) if return_softmax_lse else out
