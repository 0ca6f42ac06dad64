"""What attention is, once more: plain NumPy in float64, written from API.md and from nothing else.

It shares no text with the package and imports only NumPy, so that the two can only agree by being right. Arguments
carry the public API's names; everything is a loop over sequences and heads around two-dimensional arrays, slow and easy
to read.

Every function takes an `Arithmetic`. `exact(dtype)` gives the expected values for inputs of that dtype: float64
throughout, for float64 itself the widest type that NumPy has. `plain(dtype)` is what an ordinary unfused implementation
does in that dtype - sums and softmax in float32, products rounded to the dtype - and its error is the yardstick of
tolerance.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

HIDING_BIAS = -1e20  # an additive bias below this hides the key


class Arithmetic(NamedTuple):
    """`real`: the dtype sums are held in; `storage`: the dtype to which arrays and products are rounded."""

    real: Any
    storage: Any

    def load(self, array):
        return np.asarray(array).astype(self.real)

    def store(self, array):
        return np.asarray(array).astype(self.storage).astype(self.real)


EXACT = Arithmetic(np.float64, np.float64)


def exact(dtype) -> Arithmetic:
    return Arithmetic(np.longdouble, np.longdouble) if np.dtype(dtype) == np.float64 else EXACT


def plain(dtype) -> Arithmetic:
    dtype = np.dtype(dtype)
    return Arithmetic(np.float64 if dtype == np.float64 else np.float32, dtype)


@dataclass(frozen=True)
class Options:
    """The options of API.md under their public names."""

    dropout_p: float = 0.0
    softmax_scale: float | None = None
    causal: bool = False
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi_slopes: Any = None  # (h,) or (b, h)
    rng_state: Any = None  # int64 (seed, offset) or uint32 (seed low, seed high, offset, 0)
    attn_bias: Any = None  # bool or additive, broadcastable to (b, h, sq, sk)
    learnable_sink: Any = None  # (h,)
    q_offset: int | None = None
    k_offset: int | None = None
    seqused_q: Any = None  # (b,)
    seqused_k: Any = None  # (b,)
    attention_chunk: int = 0

    def shift(self, rows: int, keys: int) -> int:
        """The key that lies on the diagonal of row 0."""
        if self.q_offset is None and self.k_offset is None:
            return keys - rows
        return (self.q_offset or 0) - (self.k_offset or 0)


class Forward(NamedTuple):
    out: np.ndarray
    lse: np.ndarray
    probabilities: np.ndarray  # normalised; the sign bit marks dropped ones


class Gradients(NamedTuple):
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    dbias: np.ndarray | None
    dsink: np.ndarray | None


class Cached(NamedTuple):
    out: np.ndarray
    lse: np.ndarray
    k_cache: np.ndarray
    v_cache: np.ndarray


# ---- dropout -------------------------------------------------------------------------------------


def philox4x32(counter, key, rounds: int = 7):
    """Philox4x32 (Salmon et al., SC11) on arrays: counter of four words, key of two, each uint32 held in uint64."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(rounds):
        product0, product2 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (product2 >> half) ^ c1 ^ k0, product2 & low, (product0 >> half) ^ c3 ^ k1, product0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


def random_words(rng_state) -> tuple[int, int, int]:
    """(seed low, seed high, offset), 32 bits each."""
    words = [int(word) for word in np.asarray(rng_state).ravel()]
    if len(words) == 2:
        return words[0] & 0xFFFFFFFF, (words[0] >> 32) & 0xFFFFFFFF, words[1] & 0xFFFFFFFF
    return words[0], words[1], words[2]


def kept(rows, keys, stream: int, dropout_p: float, rng_state) -> np.ndarray:
    """Which elements survive dropout. `rows`, `keys`: absolute positions; `stream`: batch * heads + head."""
    seed_low, seed_high, offset = random_words(rng_state)
    i = np.asarray(rows, dtype=np.uint64)[:, None]
    j = np.asarray(keys, dtype=np.uint64)[None, :]
    counter = (i // 16 * 8 + i % 8, j // 32 * 8 + j % 8, np.uint64(stream), np.uint64(offset))
    words = np.stack(np.broadcast_arrays(*philox4x32(counter, (seed_low, seed_high))))
    group = i // 8 % 2 * 4 + j // 8 % 4  # eight groups of 16 bits, the low half of each word first
    word = np.take_along_axis(words, (group // 2).astype(np.int64)[None], axis=0)[0]
    bits = word >> (group % 2 * 16) & np.uint64(0xFFFF)
    return bits < np.uint64(np.floor((1.0 - dropout_p) * 65536.0 + 0.5))


# ---- one head ------------------------------------------------------------------------------------


def visible_keys(rows: int, keys: int, options: Options) -> np.ndarray:
    """(rows, keys) bool: causal, window and chunk."""
    left, right = options.window_size
    if options.causal:
        right = 0
    diagonal = np.arange(rows)[:, None] + options.shift(rows, keys)
    j = np.arange(keys)[None, :]
    visible = np.ones((rows, keys), dtype=bool)
    if left >= 0:
        visible &= j >= diagonal - left
    if right >= 0:
        visible &= j <= diagonal + right
    if options.attention_chunk > 0:
        visible &= j // options.attention_chunk == diagonal // options.attention_chunk
    return visible


class _Head:
    """One query head of one sequence: what the forward and the backward both need."""

    def __init__(self, q, k, v, bias, options: Options, batch: int, head: int, heads: int, arithmetic: Arithmetic):
        rows, keys = len(q), len(k)
        self.arithmetic = arithmetic
        visible = visible_keys(rows, keys, options)
        if bias is not None and bias.dtype == bool:
            visible = visible & bias
        elif bias is not None:
            visible = visible & (np.asarray(bias, dtype=np.float64) >= HIDING_BIAS)
        self.visible = visible
        # What nobody sees, and whoever sees nothing, takes no part: not even a NaN of theirs.
        self.rows_see, keys_seen = visible.any(axis=1)[:, None], visible.any(axis=0)[:, None]
        self.q = np.where(self.rows_see, arithmetic.load(q), 0)
        self.k = np.where(keys_seen, arithmetic.load(k), 0)
        self.v = np.where(keys_seen, arithmetic.load(v), 0)

        scale = options.softmax_scale
        self.scale = float(q.shape[-1]) ** -0.5 if scale is None else float(scale)
        scores = self.q @ self.k.T * arithmetic.real(self.scale)
        self.cap_slope = np.ones_like(scores)
        if options.softcap > 0:
            capped = np.tanh(scores / arithmetic.real(options.softcap))
            self.cap_slope = 1 - capped * capped
            scores = arithmetic.real(options.softcap) * capped
        if options.alibi_slopes is not None:
            slopes = arithmetic.load(options.alibi_slopes)
            slope = slopes[batch, head] if slopes.ndim == 2 else slopes[head]
            distance = np.abs(np.arange(rows)[:, None] + options.shift(rows, keys) - np.arange(keys)[None, :])
            scores = scores - slope * arithmetic.load(distance)
        if bias is not None and bias.dtype != bool:
            scores = scores + np.where(visible, arithmetic.load(bias), 0)
        self.scores = np.where(visible, scores, -np.inf)

        sink = options.learnable_sink
        self.sink = None if sink is None else arithmetic.load(sink)[head]
        self.kept, self.kept_scale = np.ones((rows, keys), dtype=bool), arithmetic.real(1)
        if options.dropout_p > 0:
            i, j = np.arange(rows) + (options.q_offset or 0), np.arange(keys) + (options.k_offset or 0)
            self.kept = kept(i, j, batch * heads + head, options.dropout_p, options.rng_state)
            self.kept_scale = arithmetic.real(1.0 / (1.0 - options.dropout_p))

    def softmax(self):
        """(probabilities, lse)."""
        highest = np.max(self.scores, axis=1, initial=-np.inf)
        if self.sink is not None:
            highest = np.maximum(highest, self.sink)
        reference = np.where(np.isneginf(highest), 0, highest)
        weights = np.exp(self.scores - reference[:, None])
        total = weights.sum(axis=1)
        if self.sink is not None:
            total = total + np.exp(self.sink - reference)
        with np.errstate(divide="ignore"):
            lse = reference + np.log(total)
        return weights / np.where(total == 0, 1, total)[:, None], lse

    def probabilities_from(self, lse):
        """exp(score - lse)."""
        return np.where(self.visible & ~np.isneginf(lse)[:, None], np.exp(self.scores - _finite(lse)[:, None]), 0)

    def forward(self):
        probabilities, lse = self.softmax()
        dropped = np.where(self.kept, probabilities, 0) * self.kept_scale
        out = self.arithmetic.store(self.arithmetic.store(dropped) @ self.v)
        probabilities = self.probabilities_from(lse)  # S_dmask is defined by the lse that is returned
        return out, lse, np.where(self.kept, probabilities, -probabilities)

    def backward(self, dout, dlse, out, lse):
        """(dq, dk, dv, dscores, dsink) of this head; out and lse may be those of a larger softmax."""
        a = self.arithmetic
        if lse is None:
            out, lse, signed = self.forward()
            probabilities = np.abs(signed)
        else:
            out, lse = a.load(out), a.load(lse)
            probabilities = self.probabilities_from(lse)
        exists = ~np.isneginf(lse)[:, None]  # a row with lse -inf has no gradient; one with a sink alone has
        dout = np.where(self.rows_see, a.load(dout), 0)
        dlse = np.where(exists[:, 0], a.load(dlse), 0)
        weighted = np.where(self.kept, probabilities, 0) * self.kept_scale
        dv = a.store(a.store(weighted).T @ dout)
        dprobabilities = np.where(self.kept, dout @ self.v.T, 0) * self.kept_scale
        change = dlse - np.sum(dout * np.where(self.rows_see, out, 0), axis=1)  # -D of API.md, dlse included
        dscores = probabilities * (dprobabilities + change[:, None])
        dproducts = a.store(dscores * self.cap_slope)
        dq = a.store(dproducts @ self.k * a.real(self.scale))
        dk = a.store(dproducts.T @ self.q * a.real(self.scale))
        dsink = None
        if self.sink is not None:
            dsink = np.sum(np.where(exists[:, 0], np.exp(self.sink - _finite(lse)), 0) * change)
        return dq, dk, dv, dscores, dsink


def _finite(lse):
    return np.where(np.isneginf(lse), 0, lse)


# ---- one sequence --------------------------------------------------------------------------------


def _heads(q, k, v, bias, options, batch, arithmetic):
    """The query heads of one sequence; q (rows, h, d), k and v (keys, hk, d), bias (h, rows, keys) or None."""
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    for head in range(heads):
        kv = head // group
        head_bias = None if bias is None else bias[head]
        yield head, kv, _Head(q[:, head], k[:, kv], v[:, kv], head_bias, options, batch, head, heads, arithmetic)


def _sequence_forward(q, k, v, bias, options, batch, arithmetic):
    rows, heads, keys = q.shape[0], q.shape[1], k.shape[0]
    out = np.zeros((rows, heads, v.shape[-1]), arithmetic.real)
    lse = np.zeros((heads, rows), arithmetic.real)
    probabilities = np.zeros((heads, rows, keys), arithmetic.real)
    for head, _, one in _heads(q, k, v, bias, options, batch, arithmetic):
        out[:, head], lse[head], probabilities[head] = one.forward()
    return out, lse, probabilities


def _sequence_backward(dout, dlse, q, k, v, bias, out, lse, options, batch, arithmetic):
    dq, dk, dv = (np.zeros(x.shape, arithmetic.real) for x in (q, k, v))
    dbias = np.zeros((q.shape[1], q.shape[0], k.shape[0]), arithmetic.real)
    dsink = np.zeros(q.shape[1], arithmetic.real)
    for head, kv, one in _heads(q, k, v, bias, options, batch, arithmetic):
        given = (None, None) if lse is None else (out[:, head], lse[head])
        dq[:, head], head_dk, head_dv, dbias[head], head_dsink = one.backward(dout[:, head], dlse[head], *given)
        dk[:, kv] += head_dk
        dv[:, kv] += head_dv
        dsink[head] = 0 if head_dsink is None else head_dsink
    return dq, arithmetic.store(dk), arithmetic.store(dv), dbias, dsink


# ---- dense ---------------------------------------------------------------------------------------


def _used(used, batch, full: int) -> int:
    return full if used is None else min(full, int(np.asarray(used)[batch]))


def _bias_of(options, q, k):
    if options.attn_bias is None:
        return None
    bias = np.asarray(options.attn_bias)
    return np.broadcast_to(bias, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))


def forward(q, k, v, *, arithmetic: Arithmetic = EXACT, **options) -> Forward:
    """q (b, sq, h, d), k (b, sk, hk, d), v (b, sk, hk, dv) -> out (b, sq, h, dv), lse (b, h, sq), P (b, h, sq, sk)."""
    options = Options(**options)
    bias = _bias_of(options, q, k)
    batch, rows, heads, _ = q.shape
    keys = k.shape[1]
    out = np.zeros((batch, rows, heads, v.shape[-1]), arithmetic.real)
    lse = np.full((batch, heads, rows), -np.inf, arithmetic.real)
    probabilities = np.zeros((batch, heads, rows, keys), arithmetic.real)
    for b in range(batch):
        m, n = _used(options.seqused_q, b, rows), _used(options.seqused_k, b, keys)
        part = None if bias is None else bias[b, :, :m, :n]
        out[b, :m], lse[b, :, :m], probabilities[b, :, :m, :n] = _sequence_forward(
            q[b, :m], k[b, :n], v[b, :n], part, options, b, arithmetic
        )
    return Forward(out, lse, probabilities)


def backward(dout, q, k, v, out=None, softmax_lse=None, *, dlse=None, arithmetic: Arithmetic = EXACT, **options) -> Gradients:
    """Gradients of sum(out * dout) + sum(lse * dlse). With `out` and `softmax_lse` given they are taken as they are,
    which gives the part that these keys have in the gradient of a larger softmax."""
    options = Options(**options)
    bias = _bias_of(options, q, k)
    batch, rows, heads, _ = q.shape
    dlse = np.zeros((batch, heads, rows)) if dlse is None else dlse
    dq, dk, dv = (np.zeros(x.shape, arithmetic.real) for x in (q, k, v))
    dbias = np.zeros((batch, heads, rows, k.shape[1]), arithmetic.real)
    dsink = np.zeros(heads, arithmetic.real)
    for b in range(batch):
        m, n = _used(options.seqused_q, b, rows), _used(options.seqused_k, b, k.shape[1])
        part = None if bias is None else bias[b, :, :m, :n]
        given = (None, None) if softmax_lse is None else (out[b, :m], softmax_lse[b, :, :m])
        dq[b, :m], dk[b, :n], dv[b, :n], dbias[b, :, :m, :n], head_sink = _sequence_backward(
            dout[b, :m], dlse[b, :, :m], q[b, :m], k[b, :n], v[b, :n], part, *given, options, b, arithmetic
        )
        dsink += head_sink
    has_bias = bias is not None and bias.dtype != bool
    dbias = arithmetic.store(sum_to_shape(dbias, np.shape(options.attn_bias))) if has_bias else None
    return Gradients(dq, dk, dv, dbias, None if options.learnable_sink is None else dsink)


def sum_to_shape(array, shape):
    """The gradient of broadcasting `shape` to array.shape."""
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and array.shape[axis] != 1)
    return array.sum(axis=axes, keepdims=True)


# ---- varlen --------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """Where a sequence lies: `rows` rows of q from first_q on, `keys` keys of k and v from first_k on."""

    first_q: int
    rows: int
    first_k: int
    keys: int


def _spans(q, k, cu_seqlens_q, cu_seqlens_k, options, leftpad):
    for b in range(len(cu_seqlens_q) - 1):
        first_q, first_k = int(cu_seqlens_q[b]), int(cu_seqlens_k[b])
        rows = _used(options.seqused_q, b, int(cu_seqlens_q[b + 1]) - first_q)
        keys = _used(options.seqused_k, b, int(cu_seqlens_k[b + 1]) - first_k)
        skipped = 0 if leftpad is None else int(np.asarray(leftpad)[b])
        yield b, _Span(first_q, rows, first_k + skipped, keys - skipped)


def gather_pages(cache, table, length: int):
    """The first `length` entries of a paged sequence; cache (pages, page_size, hk, d), table (max_pages,)."""
    page = cache.shape[1]
    used = [int(number) for number in table[: -(-length // page)]]
    return np.concatenate([cache[number] for number in used])[:length] if used else cache[0, :0]


def _keys_of(array, span, cu_first, table):
    if table is None:
        return array[span.first_k : span.first_k + span.keys]
    first = span.first_k - cu_first  # pages count from the start of each sequence
    return gather_pages(array, table, first + span.keys)[first:]


def varlen_forward(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    *,
    block_table=None,
    leftpad_k=None,
    arithmetic: Arithmetic = EXACT,
    **options,
) -> Forward:
    """q (total_q, h, d) -> out (total_q, h, dv), lse (h, total_q), P (b, h, max_seqlen_q, max_seqlen_k)."""
    options = Options(**options)
    heads = q.shape[1]
    out = np.zeros((len(q), heads, v.shape[-1]), arithmetic.real)
    lse = np.full((heads, len(q)), -np.inf, arithmetic.real)
    shape = (len(cu_seqlens_q) - 1, heads, int(max_seqlen_q), int(max_seqlen_k))
    probabilities = np.zeros(shape, arithmetic.real)
    for b, span in _spans(q, k, cu_seqlens_q, cu_seqlens_k, options, leftpad_k):
        at = slice(span.first_q, span.first_q + span.rows)
        table = None if block_table is None else block_table[b]
        keys, values = (_keys_of(x, span, int(cu_seqlens_k[b]), table) for x in (k, v))
        out[at], lse[:, at], probabilities[b, :, : span.rows, : span.keys] = _sequence_forward(
            q[at], keys, values, None, options, b, arithmetic
        )
    return Forward(out, lse, probabilities)


def varlen_backward(
    dout,
    q,
    k,
    v,
    out=None,
    softmax_lse=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    *,
    dlse=None,
    arithmetic: Arithmetic = EXACT,
    **options,
) -> Gradients:
    options = Options(**options)
    dlse = np.zeros((q.shape[1], len(q))) if dlse is None else dlse
    dq, dk, dv = (np.zeros(x.shape, arithmetic.real) for x in (q, k, v))
    dsink = np.zeros(q.shape[1], arithmetic.real)
    for b, span in _spans(q, k, cu_seqlens_q, cu_seqlens_k, options, None):
        at, keys = slice(span.first_q, span.first_q + span.rows), slice(span.first_k, span.first_k + span.keys)
        given = (None, None) if softmax_lse is None else (out[at], softmax_lse[:, at])
        dq[at], dk[keys], dv[keys], _, head_sink = _sequence_backward(
            dout[at], dlse[:, at], q[at], k[keys], v[keys], None, *given, options, b, arithmetic
        )
        dsink += head_sink
    return Gradients(dq, dk, dv, None, None if options.learnable_sink is None else dsink)


# ---- kv cache ------------------------------------------------------------------------------------


def rotate(x, cos, sin, positions, interleaved: bool, arithmetic: Arithmetic = EXACT):
    """Rotary embedding of x (s, h, d): its first 2 * cos.shape[1] elements, as pairs (2i, 2i + 1) or halves."""
    x = arithmetic.load(x)
    half = cos.shape[1]
    cos, sin = (arithmetic.load(table)[positions][:, None, :] for table in (cos, sin))
    rotated = x.copy()
    first, second = slice(half), slice(half, 2 * half)
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., first] * sin + x[..., second] * cos
    return arithmetic.store(rotated)


def with_kvcache(
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
    rotary_interleaved=True,
    *,
    arithmetic: Arithmetic = EXACT,
    **options,
) -> Cached:
    """Append k, v to copies of the caches, then attend. out (b, sq, h, dv), lse (b, h, sq), the caches afterwards."""
    options = Options(**options)
    k_cache, v_cache = arithmetic.load(k_cache), arithmetic.load(v_cache)
    batch, rows, heads, _ = q.shape
    capacity = k_cache.shape[1] if block_table is None else k_cache.shape[1] * np.shape(block_table)[1]
    lengths = np.broadcast_to(capacity if cache_seqlens is None else np.asarray(cache_seqlens), (batch,))
    new = 0 if k is None else k.shape[1]
    out = np.zeros((batch, rows, heads, v_cache.shape[-1]), arithmetic.real)
    lse = np.zeros((batch, heads, rows), arithmetic.real)
    for b in range(batch):
        length = int(lengths[b])
        queries = arithmetic.load(q[b])
        if new > 0:
            new_k, new_v = arithmetic.load(k[b]), arithmetic.load(v[b])
            if rotary_cos is not None:
                positions = length + np.arange(new)
                new_k = rotate(new_k, rotary_cos, rotary_sin, positions, rotary_interleaved, arithmetic)
            for t in range(new):
                place = _cache_slot(b, length + t, cache_batch_idx, block_table, k_cache.shape[1])
                k_cache[place], v_cache[place] = new_k[t], new_v[t]
        if rotary_cos is not None:
            follows = options.causal or tuple(options.window_size) != (-1, -1)
            positions = length + (np.arange(rows) if follows else np.zeros(rows, int))
            queries = rotate(queries, rotary_cos, rotary_sin, positions, rotary_interleaved, arithmetic)
        skipped = 0 if cache_leftpad is None else int(np.asarray(cache_leftpad)[b])
        keys, values = (_cached_sequence(x, b, length + new, cache_batch_idx, block_table)[skipped:] for x in (k_cache, v_cache))
        out[b], lse[b], _ = _sequence_forward(queries, keys, values, None, options, b, arithmetic)
    return Cached(out, lse, k_cache, v_cache)


def _cache_row(b, cache_batch_idx):
    return b if cache_batch_idx is None else int(np.asarray(cache_batch_idx)[b])


def _cache_slot(b, t, cache_batch_idx, block_table, page):
    if block_table is None:
        return _cache_row(b, cache_batch_idx), t
    return int(block_table[b][t // page]), t % page


def _cached_sequence(cache, b, length, cache_batch_idx, block_table):
    if block_table is None:
        return cache[_cache_row(b, cache_batch_idx), :length]
    return gather_pages(cache, block_table[b], length)


# ---- partial results -----------------------------------------------------------------------------


def combine(out_partial, lse_partial):
    """out_partial (splits, b, s, h, d), lse_partial (splits, b, s, h) -> out (b, s, h, d), lse (b, s, h)."""
    out_partial, lse_partial = np.asarray(out_partial, np.float64), np.asarray(lse_partial, np.float64)
    highest = _finite(np.max(lse_partial, axis=0))
    weights = np.exp(lse_partial - highest)
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        lse = highest + np.log(total)
    parts = np.where(weights[..., None] > 0, out_partial, 0)  # a part without keys may hold anything
    out = (weights[..., None] * parts).sum(axis=0) / np.where(total == 0, 1, total)[..., None]
    return out, lse


def merge(out_a, lse_a, out_b, lse_b):
    """Two partial results of the same queries, out (b, s, h, d), lse (b, h, s), into the one over all their keys."""
    outs = np.stack([np.asarray(out_a, np.float64), np.asarray(out_b, np.float64)])
    lses = np.stack([np.asarray(lse_a, np.float64), np.asarray(lse_b, np.float64)]).swapaxes(2, 3)
    out, lse = combine(outs, lses)
    return out, lse.swapaxes(1, 2)
