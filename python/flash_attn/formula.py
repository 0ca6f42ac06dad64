"""The plain formula of attention in array code: what the kernels compute, to be read; and what runs where they cannot.

    s = scale q.k;  s = cap tanh(s / cap);  s -= slope |i + shift - j|;  s += bias;  hide what i does not see
    P = softmax(s), a learnable sink being one more key without a value;  lse = log sum exp(s);  out = dropout(P) V
    backward, with D = rowsum(dout out) - dlse:  dS = P (dropout'(dout V^T) - D);  dV = dropout(P)^T dout
    dbias = dS;  dsink = -sum exp(sink - lse) D;  then dS *= 1 - tanh^2;  dQ = scale dS K;  dK = scale dS^T Q

It works on arrays whose values cannot be had (compiled and exported functions): lengths are arrays all along, packed sequences
are padded, pages gathered. And it can be differentiated by the library's own autograd, the backward too: higher derivatives.
Sums are float32 (float64 for float64). Scores exist for one block of rows at a time; what no row of a block sees is skipped
where lengths are known. What nobody sees may hold anything, NaN included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from flash_attn import philox
from flash_attn.call import DTYPE_NAMES, Arrays, Options, Pass, Role
from flash_attn.sequences import Call, gather, of_rows, packed_keys, packed_lse, packed_rows, padded_lse, padded_rows, real_of

HIDING_BIAS = -1e20  # an additive bias below this hides its key
BLOCK_SCORES = 1 << 20  # scores of a block of rows, all heads and keys
MIN_BLOCK_ROWS, MAX_BLOCKS = 32, 128  # else thousands of small operations: a block is then larger


def run(xp: Any, which: int, arrays: Arrays, options: Options) -> Arrays:
    """What a pass of the core writes, by role."""
    return {Pass.FORWARD: forward, Pass.BACKWARD: backward, Pass.APPEND: rotate}[which](xp, arrays, options)


def forward(xp: Any, arrays: Arrays, options: Options) -> Arrays:
    """OUT and LSE, and PROBABILITIES if they are wanted (the sign bit marks what was dropped)."""
    call = gather(xp, arrays, options)
    wanted = bool(options.wants >> Role.PROBABILITIES & 1)
    outs, lses, probabilities, before = [], [], [], ()
    for at in _blocks(call, every_key=wanted):
        block = _score(xp, call, at, before)
        weights, lse = _softmax(xp, call, block)
        kept = _dropout(xp, call, at)
        values = xp.matmul(_grouped(xp, call, _drop(xp, call, weights, kept)), block.v)
        outs.append(_ungrouped(xp, call, values))
        lses.append(lse)
        before = (outs[-1], lse)
        if wanted:
            probabilities.append(weights if kept is None else xp.where(kept, weights, -weights))
    q, dtype = arrays[Role.Q], DTYPE_NAMES.get(options.out_dtype, arrays[Role.Q].dtype)
    out = _joined(xp, outs, (call.batch, call.heads, 0, call.value_dim), call.real)
    lse = of_rows(xp, call, _joined(xp, lses, (call.batch, call.heads, 0), call.real))
    results = {Role.OUT: xp.astype(packed_rows(xp, call, xp.swapaxes(out, 1, 2), 0.0), dtype), Role.LSE: packed_lse(xp, call, lse)}
    if wanted:
        whole = _joined(xp, probabilities, (call.batch, call.heads, 0, max(call.keys, 1)), call.real)
        results[Role.PROBABILITIES] = xp.astype(whole[..., : call.keys], q.dtype)
    return results


def backward(xp: Any, arrays: Arrays, options: Options) -> Arrays:
    """DQ, DK, DV, and DBIAS, DSINK as options.wants says, from OUT, LSE, DOUT and perhaps DLSE of a forward call.

    OUT and LSE may be those of a softmax over more keys: then this is what these keys contribute.
    """
    call = gather(xp, arrays, options)
    dout, out = (padded_rows(xp, call, xp.astype(arrays[role], call.real)) for role in (Role.DOUT, Role.OUT))
    dout, out = xp.swapaxes(dout, 1, 2), xp.swapaxes(out, 1, 2)
    lse = of_rows(xp, call, padded_lse(xp, call, arrays[Role.LSE]))
    dlse = padded_lse(xp, call, arrays[Role.DLSE]) if Role.DLSE in arrays else None
    dk, dv = (xp.zeros((call.batch, call.kv_heads, max(call.keys, 1), x.shape[-1]), call.real) for x in (call.k, call.v))
    dqs, dbiases, dsink, before = [], [], 0.0, ()
    for at in _blocks(call):
        block = _score(xp, call, at, before)
        rows = slice(at.first_row, at.end_row)
        lse_rows = lse[:, :, rows][..., None]
        exists = lse_rows > -math.inf
        reference = xp.where(exists, lse_rows, 0.0)
        visible = exists if block.visible is None else exists & block.visible
        weights = xp.exp(xp.where(visible, block.scores - reference, -math.inf))
        # a row that sees nothing may hold anything in dout and out
        sees = exists if block.sees is None else exists & block.sees
        douts = xp.where(sees, dout[:, :, rows], 0.0)
        delta = xp.sum(douts * xp.where(sees, out[:, :, rows], 0.0), axis=-1, keepdims=True)
        if dlse is not None:
            delta = delta - xp.where(exists, dlse[:, :, rows][..., None], 0.0)
        kept = _dropout(xp, call, at)
        grouped = _grouped(xp, call, douts)
        dweights = xp.reshape(xp.matmul(grouped, xp.swapaxes(block.v, -1, -2)), weights.shape)
        dscores = weights * (_drop(xp, call, dweights, kept) - delta)
        dropped = _grouped(xp, call, _drop(xp, call, weights, kept))
        dproducts = _grouped(xp, call, dscores if block.slope is None else dscores * block.slope)
        keys = slice(at.first_key, at.end_key)
        dk = _add_keys(xp, dk, xp.matmul(xp.swapaxes(dproducts, -1, -2), block.q) * call.scale, keys)
        dv = _add_keys(xp, dv, xp.matmul(xp.swapaxes(dropped, -1, -2), grouped), keys)
        dqs.append(_ungrouped(xp, call, xp.matmul(dproducts, block.k) * call.scale))
        before = (dqs[-1], dk, dv)
        if options.wants >> Role.DBIAS & 1:
            dbiases.append(_bias_gradient(xp, call, dscores, keys))
            before = (*before, dbiases[-1])
        if options.wants >> Role.DSINK & 1:
            share = xp.exp(xp.where(exists, call.sink - reference, -math.inf))
            dsink = dsink - xp.sum(share * delta, axis=(0, 2, 3))
    dq = xp.swapaxes(_joined(xp, dqs, (call.batch, call.heads, 0, call.q.shape[-1]), call.real), 1, 2)
    results = {Role.DQ: xp.astype(packed_rows(xp, call, dq, 0.0), arrays[Role.Q].dtype)}
    for role, source, x in ((Role.DK, Role.K, dk), (Role.DV, Role.V, dv)):
        x = packed_keys(xp, call, xp.swapaxes(x[:, :, : call.keys], 1, 2))
        results[role] = xp.astype(x, arrays[source].dtype)
    if options.wants >> Role.DBIAS & 1:
        results[Role.DBIAS] = _joined_bias(xp, call, dbiases, arrays[Role.BIAS])
    if options.wants >> Role.DSINK & 1:
        sink = arrays[Role.SINK]
        results[Role.DSINK] = xp.astype(xp.zeros(sink.shape, call.real) + dsink, sink.dtype)
    return results


def merge_weights(xp: Any, lse: Any) -> tuple[Any, Any]:
    """(weights exp(lse_i - lse) of each part along axis 0, the lse of all parts together); a part with lse -inf weighs nothing."""
    lse = xp.astype(lse, xp.float64 if lse.dtype == xp.float64 else xp.float32)
    highest = xp.constant(xp.max(lse, axis=0, keepdims=True))
    reference = xp.where(highest > -math.inf, highest, 0.0)
    weights = xp.exp(lse - reference)
    total = xp.sum(weights, axis=0, keepdims=True)
    divisor = xp.where(total > 0, total, 1.0)
    return weights / divisor, xp.where(total > 0, reference + xp.log(divisor), -math.inf)[0]


def sink_gradient(xp: Any, arrays: Arrays) -> Any:
    """What each sequence of a dense call contributes to DSINK, (b, h): sum over rows of exp(sink - lse) (dlse - D)."""
    real = real_of(xp, arrays[Role.Q])
    lse = arrays[Role.LSE]
    exists = lse > -math.inf
    dout, out = (xp.astype(arrays[role], real) for role in (Role.DOUT, Role.OUT))
    delta = xp.swapaxes(xp.sum(dout * out, axis=-1), 1, 2)
    if Role.DLSE in arrays:
        delta = delta - arrays[Role.DLSE]
    share = xp.exp(xp.where(exists, xp.astype(arrays[Role.SINK], real)[None, :, None] - xp.where(exists, lse, 0.0), -math.inf))
    return -xp.sum(share * xp.where(exists, delta, 0.0), axis=-1)


def rotate(xp: Any, arrays: Arrays, options: Options) -> Arrays:
    """ROTATED_Q and ROTATED_K, as options.wants says: pairs (x, y) turn by the angle of their position in the cache."""
    length = arrays[Role.LENGTHS][:, None] if Role.LENGTHS in arrays else options.cache_length
    follows = options.causal or options.left >= 0 or options.right >= 0
    results = {}
    for role, source in ((Role.ROTATED_Q, Role.Q), (Role.ROTATED_K, Role.NEW_K)):
        if options.wants >> role & 1:
            x = arrays[source]
            steps = xp.arange(0, x.shape[1])[None]
            positions = length + (steps if follows or role == Role.ROTATED_K else steps * 0)
            results[role] = _turned(xp, x, arrays, positions, options.rotary_interleaved)
    return results


def _turned(xp: Any, x: Any, arrays: Arrays, positions: Any, interleaved: bool) -> Any:
    """x (b, s, h, d), its first 2 * half elements turned by the angles of positions (b or 1, s)."""
    real = real_of(xp, x)
    half = arrays[Role.COS].shape[1]
    cos, sin = (
        xp.reshape(xp.take(xp.astype(arrays[role], real), xp.reshape(positions, (-1,)), axis=0), (*positions.shape, 1, half))
        for role in (Role.COS, Role.SIN)
    )
    turning, rest = xp.astype(x[..., : 2 * half], real), x[..., 2 * half :]
    if interleaved:
        one, other = turning[..., 0::2], turning[..., 1::2]
    else:
        one, other = turning[..., :half], turning[..., half:]
    one, other = one * cos - other * sin, one * sin + other * cos
    if interleaved:
        turned = xp.reshape(xp.stack([one, other], axis=-1), turning.shape)
    else:
        turned = xp.concatenate([one, other], axis=-1)
    return xp.concatenate([xp.astype(turned, x.dtype), rest], axis=-1)


# ---- blocks of rows, and which keys they see ---------------------------------------------------------------------------


class _At(NamedTuple):
    """Rows [first_row, end_row) against keys [first_key, end_key); all_visible: no mask is needed."""

    first_row: int
    end_row: int
    first_key: int
    end_key: int
    all_visible: bool


class _Integers:
    """The array functions of _visible_keys on plain integers."""

    maximum, minimum = staticmethod(max), staticmethod(min)

    @staticmethod
    def where(condition: bool, one: int, other: int) -> int:
        return one if condition else other


def _visible_keys(xp: Any, call: Call, row: Any, keys: Any) -> tuple[Any, Any]:
    """[first, end) of the keys that `row` sees, of `keys` that there are: numbers with _Integers, or arrays."""
    diagonal = row + call.shift
    first, end = xp.maximum(diagonal - call.left, 0), xp.minimum(diagonal + (call.right + 1), keys)
    if call.chunk:
        below = -((call.chunk - 1 - diagonal) // call.chunk)  # rounds down; either side divides what is not negative
        chunk = xp.where(diagonal < 0, below, diagonal // call.chunk) * call.chunk
        first, end = xp.maximum(first, chunk), xp.minimum(end, chunk + call.chunk)
    return first, end


def _blocks(call: Call, every_key: bool = False) -> Iterator[_At]:
    keys = max(call.keys, 1)
    step = max(BLOCK_SCORES // max(call.batch * call.heads * keys, 1), MIN_BLOCK_ROWS, -(-call.rows // MAX_BLOCKS))
    known = call.row_counts is None and call.key_counts is None and call.bias is None
    for first_row in range(0, call.rows if call.batch else 0, step):
        end_row = min(first_row + step, call.rows)
        first_key, end_key, all_visible = 0, keys, False
        if call.row_counts is None and call.key_counts is None:
            low, high = (_visible_keys(_Integers, call, row, call.keys) for row in (first_row, end_row - 1))
            if not every_key:  # both ends of what a row sees only move right
                first_key = min(max(low[0], 0), keys - 1)
                end_key = max(min(high[1], keys), first_key + 1)
            all_visible = known and high[0] <= first_key and low[1] >= end_key
        yield _At(first_row, end_row, first_key, end_key, all_visible)


class _Block(NamedTuple):
    """One block of rows: q (b, hk, rows of the group, d), k, v (b, hk, keys, d), scores (b, h, rows, keys)."""

    q: Any
    k: Any
    v: Any
    scores: Any
    slope: Any  # d scores / d (scale q.k); None: 1
    visible: Any  # broadcastable to the scores; None: all
    sees: Any  # visible.any(keys): whether a row sees anything, (b or 1, h or 1, rows, 1)


def _score(xp: Any, call: Call, at: _At, before: tuple) -> _Block:
    q = xp.after(call.q[:, :, at.first_row : at.end_row], *before)
    k, v = (x[:, :, at.first_key : at.end_key] for x in (call.k, call.v))
    i = xp.arange(at.first_row, at.end_row)[:, None]
    j = xp.arange(at.first_key, at.end_key)[None]
    bias = _bias_part(call, at)
    visible = sees = None
    if not at.all_visible:
        visible = _visible(xp, call, i, j, bias)
        sees = xp.any(visible, axis=-1, keepdims=True)
        q = xp.where(sees, q, 0.0)
        seen = xp.any(visible, axis=-2)[..., None]
        if seen.shape[1] > 1:
            seen = xp.any(xp.reshape(seen, (seen.shape[0], call.kv_heads, -1, *seen.shape[2:])), axis=2)
        k, v = xp.where(seen, k, 0.0), xp.where(seen, v, 0.0)
    q = _grouped(xp, call, q)
    scores = xp.matmul(q, xp.swapaxes(k, -1, -2)) * call.scale
    scores = xp.reshape(scores, (call.batch, call.heads, at.end_row - at.first_row, at.end_key - at.first_key))
    slope = None
    if call.softcap:
        capped = xp.tanh(scores / call.softcap)
        scores, slope = capped * call.softcap, 1.0 - capped * capped
    if call.slopes is not None:
        scores = scores - call.slopes * xp.astype(xp.abs(i + call.shift - j), call.real)
    if bias is not None and bias.dtype != xp.bool_:
        scores = scores + xp.where(bias < HIDING_BIAS, 0.0, bias)
    return _Block(q, k, v, scores, slope, visible, sees)


def _visible(xp: Any, call: Call, i: Any, j: Any, bias: Any) -> Any:
    """Which of rows i sees which of keys j: bool, four axes, (b or 1, h or 1, rows, keys)."""
    first, end = _visible_keys(xp, call, i, call.keys if call.key_counts is None else call.key_counts)
    visible = (j >= first) & (j < end)
    if len(visible.shape) == 2:
        visible = visible[None, None]
    if call.row_counts is not None:
        visible = visible & (i < call.row_counts)
    if bias is not None:
        visible = visible & (bias if bias.dtype == xp.bool_ else bias >= HIDING_BIAS)
    return visible


def _bias_part(call: Call, at: _At) -> Any:
    if call.bias is None:
        return None
    rows = slice(at.first_row, at.end_row) if call.bias.shape[2] != 1 else slice(None)
    keys = slice(at.first_key, at.end_key) if call.bias.shape[3] != 1 else slice(None)
    return call.bias[:, :, rows, keys]


def _grouped(xp: Any, call: Call, array: Any) -> Any:
    """(b, h, rows, x) as (b, hk, rows of all heads of a group, x): they share keys, so one product serves them."""
    return xp.reshape(array, (call.batch, call.kv_heads, -1, array.shape[-1]))


def _ungrouped(xp: Any, call: Call, array: Any) -> Any:
    return xp.reshape(array, (call.batch, call.heads, -1, array.shape[-1]))


def _softmax(xp: Any, call: Call, block: _Block) -> tuple[Any, Any]:
    """(P, lse); a row that sees nothing has P = 0 and lse = -inf, or its sink alone."""
    scores = block.scores if block.visible is None else xp.where(block.visible, block.scores, -math.inf)
    highest = xp.max(scores, axis=-1, keepdims=True)
    if call.sink is not None:
        highest = xp.maximum(highest, call.sink)
    highest = xp.constant(xp.where(highest > -math.inf, highest, 0.0))
    weights = xp.exp(scores - highest)
    total = xp.sum(weights, axis=-1, keepdims=True)
    if call.sink is not None:
        total = total + xp.exp(call.sink - highest)
    divisor = xp.where(total > 0, total, 1.0)
    lse = xp.where(total > 0, highest + xp.log(divisor), -math.inf)
    return weights / divisor, lse[..., 0]


# ---- dropout, gradients of what was broadcast --------------------------------------------------------------------------


def _dropout(xp: Any, call: Call, at: _At) -> Any:
    """Which elements of a block are kept, (b, h, rows, keys); None without dropout."""
    if call.seed is None:
        return None
    rows, keys = (at.first_row, at.end_row), (at.first_key, at.end_key)
    rows, keys = (tuple(x + offset for x in ends) for ends, offset in ((rows, call.options.q_offset), (keys, call.options.k_offset)))
    threshold = math.floor((1.0 - call.options.dropout) * 65536.0 + 0.5)
    return philox.bits(xp, call.seed, call.batch * call.heads, rows, keys, (call.batch, call.heads)) < threshold


def _drop(xp: Any, call: Call, array: Any, kept: Any) -> Any:
    return array if kept is None else xp.where(kept, array * (1.0 / (1.0 - call.options.dropout)), 0.0)


def _add_keys(xp: Any, total: Any, part: Any, keys: slice) -> Any:
    return total + _placed(xp, part, keys, total.shape[2], 2)


def _placed(xp: Any, part: Any, keys: slice, size: int, axis: int) -> Any:
    """`part` at `keys` of an axis with `size` entries, zeros around it."""
    shapes = ([count if i == axis else n for i, n in enumerate(part.shape)] for count in (keys.start, size - keys.stop))
    before, after = (xp.zeros(tuple(shape), part.dtype) for shape in shapes)
    around = [x for x in (before, part, after) if x.shape[axis]]
    return around[0] if len(around) == 1 else xp.concatenate(around, axis=axis)


def _joined(xp: Any, parts: list, empty: tuple[int, ...], dtype: Any) -> Any:
    """Blocks of rows in one array; without any, one of no rows and the shape `empty`."""
    return xp.concatenate(parts, axis=2) if parts else xp.zeros(empty, dtype)


def _bias_gradient(xp: Any, call: Call, dscores: Any, keys: slice) -> Any:
    """dscores summed along the axes over which the bias was broadcast, the keys that this block skipped included."""
    axes = tuple(axis for axis in range(4) if call.bias.shape[axis] == 1)
    part = xp.sum(dscores, axis=axes, keepdims=True) if axes else dscores
    return part if 3 in axes else _placed(xp, part, keys, call.bias.shape[3], 3)


def _joined_bias(xp: Any, call: Call, parts: list, bias: Any) -> Any:
    if not parts or 0 in bias.shape:
        return xp.zeros(bias.shape, bias.dtype)
    whole = sum(parts[1:], parts[0]) if call.bias.shape[2] == 1 else xp.concatenate(parts, axis=2)
    return xp.astype(xp.reshape(whole, tuple(bias.shape)), bias.dtype)
