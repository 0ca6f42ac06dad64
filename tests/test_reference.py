"""The reference on its own: against scalar loops, central differences, known answers and identities."""

import itertools
import math

import numpy as np
import pytest

import reference
from arrays import arrange
from cases import CacheCase, Case, inputs
from targets import Formula
from tolerance import DTYPES, check

exact = Formula("exact", exact=True)
SMALL = Case(batch=2, heads=2, rows=3, keys=5, dim=4, dtype="float64")


def close(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance)


# ---- dropout -------------------------------------------------------------------------------------


def philox_scalar(counter, key, rounds):
    """Philox4x32 on Python integers: one 128-bit counter number, 64-bit products split by divmod."""
    words = list(counter)
    for number in range(rounds):
        keys = [(key[0] + number * 0x9E3779B9) % 2**32, (key[1] + number * 0xBB67AE85) % 2**32]
        high_a, low_a = divmod(words[0] * 0xD2511F53, 2**32)
        high_b, low_b = divmod(words[2] * 0xCD9E8D57, 2**32)
        words = [high_b ^ words[1] ^ keys[0], low_b, high_a ^ words[3] ^ keys[1], low_a]
    return words


def keeps_scalar(row, key, stream, p, seed, offset):
    words = philox_scalar([(row // 16) * 8 + row % 8, (key // 32) * 8 + key % 8, stream, offset % 2**32], [seed % 2**32, seed // 2**32], 7)
    halves = [half for word in words for half in (word % 65536, word // 65536)]
    return halves[((row // 8) % 2) * 4 + (key // 8) % 4] < math.floor((1 - p) * 65536 + 0.5)


ONES = 0xFFFFFFFF
KNOWN = [  # Random123's known answers for philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize("counter, key, answer", KNOWN)
def test_philox_known_answers(counter, key, answer):
    assert tuple(int(word) for word in reference.philox4x32(counter, key, rounds=10)) == answer
    assert tuple(philox_scalar(counter, key, 10)) == answer


def test_philox_seven_rounds_against_scalar():
    random = np.random.default_rng(1)
    counters = random.integers(0, 2**32, (4, 50), dtype=np.uint64)
    key = (0xDEADBEEF, 0x01234567)
    found = reference.philox4x32(counters, key)
    for n in range(counters.shape[1]):
        assert [int(word[n]) for word in found] == philox_scalar([int(c) for c in counters[:, n]], key, 7)


def test_kept_against_scalar():
    seed, offset = 0x0123456789ABCDEF, 2**32 + 77  # only the low half of the offset counts
    rows, keys = np.arange(5, 40), np.arange(13, 90)
    found = reference.kept(rows, keys, 6, 0.3, np.array([seed, offset], np.int64))
    expected = [[keeps_scalar(int(i), int(j), 6, 0.3, seed, offset) for j in keys] for i in rows]
    np.testing.assert_array_equal(found, expected)


def test_kept_takes_both_forms_of_the_state():
    rows = keys = np.arange(64)
    seed = -0x123456789ABCDEF  # a negative int64 is a seed, too
    as_words = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, 9, 0], np.uint32)
    one = reference.kept(rows, keys, 0, 0.5, np.array([seed, 9], np.int64))
    np.testing.assert_array_equal(one, reference.kept(rows, keys, 0, 0.5, as_words))
    assert (one != reference.kept(rows, keys, 1, 0.5, as_words)).any()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_rate(p):
    kept = reference.kept(np.arange(512), np.arange(512), 3, p, np.array([42, 0], np.int64))
    sigma = math.sqrt(p * (1 - p) / kept.size)
    assert abs(kept.mean() - (1 - p)) < 4 * sigma
    # neighbours are independent: rows and keys that share a call of Philox, and those that do not
    for rows, keys in ((1, 0), (0, 1), (8, 0), (0, 8), (16, 0), (0, 32)):
        a, b = kept[: 512 - rows, : 512 - keys], kept[rows:, keys:]
        assert abs((a & b).mean() - (1 - p) ** 2) < 5 * math.sqrt(p * (1 - p) / a.size)


def test_dropout_is_a_function_of_the_absolute_position():
    state = np.array([7, 3], np.int64)
    whole = reference.kept(np.arange(100), np.arange(100), 2, 0.4, state)
    part = reference.kept(np.arange(33, 60), np.arange(5, 71), 2, 0.4, state)
    np.testing.assert_array_equal(part, whole[33:60, 5:71])
    case = Case(batch=1, heads=1, rows=9, keys=11, dim=2, dropout=0.4, offsets=(33, 5), dtype="float64")
    arrays = inputs(case)
    arrays.options["rng_state"] = state
    kept = ~np.signbit(exact.forward(case, arrays)[2][0, 0])
    np.testing.assert_array_equal(kept, reference.kept(np.arange(33, 42), np.arange(5, 16), 0, 0.4, state))


# ---- against scalar loops ------------------------------------------------------------------------


def sees(i, j, rows, keys, case):
    """Visibility of API.md, asked of one pair."""
    q_offset, k_offset = case.offsets
    if q_offset is None and k_offset is None:
        diagonal = i + keys - rows
    else:
        diagonal = i + (q_offset or 0) - (k_offset or 0)
    left, right = case.window
    if case.causal:
        right = 0
    if left != -1 and j < diagonal - left:
        return False
    if right != -1 and j > diagonal + right:
        return False
    return not (case.chunk and math.floor(j / case.chunk) != math.floor(diagonal / case.chunk))


MASKS = [
    Case(causal=True),
    Case(window=(2, 1)),
    Case(window=(-1, 1)),
    Case(window=(1, -1)),
    Case(window=(0, 0)),
    Case(causal=True, window=(2, 5)),
    Case(chunk=3),
    Case(chunk=3, causal=True),
    Case(chunk=4, window=(2, 1)),
    Case(offsets=(4, None), causal=True),
    Case(offsets=(None, 2), window=(2, 1)),
    Case(offsets=(1, 9), chunk=3),
    Case(offsets=(0, 0), causal=True),
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("rows, keys", [(1, 1), (4, 9), (9, 4), (7, 7), (0, 3), (3, 0)])
def test_visible_keys(mask, rows, keys):
    options = reference.Options(
        causal=mask.causal, window_size=mask.window, attention_chunk=mask.chunk, q_offset=mask.offsets[0], k_offset=mask.offsets[1]
    )
    found = reference.visible_keys(rows, keys, options)
    expected = np.array([[sees(i, j, rows, keys, mask) for j in range(keys)] for i in range(rows)], bool)
    np.testing.assert_array_equal(found, expected.reshape(rows, keys))


def test_causal_is_aligned_at_the_bottom_right():
    wide = reference.visible_keys(2, 5, reference.Options(causal=True))
    np.testing.assert_array_equal(wide, [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    tall = reference.visible_keys(5, 2, reference.Options(causal=True))
    np.testing.assert_array_equal(tall, [[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]])


def scalar_forward(case, arrays):
    """Dense attention by loops over elements, with math functions and Python floats."""
    q, k, v, options = arrays.q, arrays.k, arrays.v, arrays.options
    out = np.zeros((case.batch, case.rows, case.heads, case.v_dim))
    lse = np.full((case.batch, case.heads, case.rows), -math.inf)
    scale = 1 / math.sqrt(case.dim) if case.scale is None else case.scale
    slopes, bias, sink = (options.get(name) for name in ("alibi_slopes", "attn_bias", "learnable_sink"))
    if bias is not None:
        bias = np.broadcast_to(bias, (case.batch, case.heads, case.rows, case.keys))
    for b, h in itertools.product(range(case.batch), range(case.heads)):
        kv = h // (case.heads // case.kv)
        rows = int(options.get("seqused_q", {b: case.rows})[b])
        keys = int(options.get("seqused_k", {b: case.keys})[b])
        for i in range(rows):
            weights = {}
            for j in range(keys):
                if not sees(i, j, rows, keys, case):
                    continue
                s = scale * sum(float(q[b, i, h, c]) * float(k[b, j, kv, c]) for c in range(case.dim))
                if case.softcap:
                    s = case.softcap * math.tanh(s / case.softcap)
                if slopes is not None:
                    distance = i + keys - rows - j
                    if case.offsets != (None, None):
                        distance = i + (case.offsets[0] or 0) - (case.offsets[1] or 0) - j
                    s -= float(slopes[b][h] if case.alibi == "bh" else slopes[h]) * abs(distance)
                if bias is not None and bias.dtype == bool:
                    if not bias[b, h, i, j]:
                        continue
                elif bias is not None:
                    if bias[b, h, i, j] < -1e20:
                        continue
                    s += float(bias[b, h, i, j])
                weights[j] = math.exp(s)
            total = sum(weights.values()) + (math.exp(float(sink[h])) if sink is not None else 0)
            if total > 0:
                lse[b, h, i] = math.log(total)
            for j, weight in weights.items():
                if case.dropout:
                    seed, offset = (int(word) for word in options["rng_state"])
                    row, key = i + (case.offsets[0] or 0), j + (case.offsets[1] or 0)
                    if not keeps_scalar(row, key, b * case.heads + h, case.dropout, seed, offset):
                        continue
                    weight /= 1 - case.dropout
                out[b, i, h] += weight / total * v[b, j, kv]
    return out, lse


FEATURES = [
    Case(causal=True),
    Case(window=(1, 2)),
    Case(chunk=2),
    Case(softcap=0.7),
    Case(alibi="h"),
    Case(alibi="bh"),
    Case(dropout=0.4),
    Case(bias="bhqk"),
    Case(bias="b11k"),
    Case(bias="bool:b1qk"),
    Case(sink=True),
    Case(scale=-0.4),
    Case(heads=4, kv_heads=2),
    Case(value_dim=3),
    Case(offsets=(3, 1)),
    Case(used_rows=(2, 3), used_keys=(5, 2)),
    Case(rows=6),
]
COMBINED = [
    SMALL,
    *(SMALL | one for one in FEATURES),
    *(SMALL | a | b for a, b in itertools.combinations(FEATURES, 2) if not a.conflicts(b)),
    SMALL | Case(causal=True, softcap=0.7, alibi="bh", dropout=0.4, bias="bhqk", sink=True, heads=4, kv_heads=2),
]


@pytest.mark.parametrize("case", COMBINED, ids=str)
def test_forward_against_scalar_loops(case):
    arrays = inputs(case)
    out, lse, _ = exact.forward(case, arrays)
    expected_out, expected_lse = scalar_forward(case, arrays)
    close(out, expected_out)
    close(lse, expected_lse)


# ---- gradients -----------------------------------------------------------------------------------


def central_difference(function, array, direction, step=1e-5):
    """The derivative of function() along `direction` in `array`, which it reads."""
    value = array.copy()
    array += step * direction
    above = function()
    array[...] = value - step * direction
    below = function()
    array[...] = value
    return (above - below) / (2 * step)


def directions(array, every_element: bool):
    """All unit directions, or a few random ones: enough to see any wrong element, in a fraction of the time."""
    if not every_element:
        yield from np.random.default_rng(3).standard_normal((4, *array.shape))
        return
    for at in np.ndindex(array.shape):
        unit = np.zeros(array.shape)
        unit[at] = 1
        yield unit


def loss(case, arrays):
    out, lse, _ = exact.forward(case, arrays)
    dout = np.nan_to_num(arrays.dout)  # absent rows hold NaN
    return np.sum(out * dout) + np.sum(np.where(np.isinf(lse), 0, lse * np.nan_to_num(arrays.dlse)))


VARLEN = Case(lengths=((2, 3), (0, 2), (3, 0), (4, 2)))
ELEMENTWISE = [SMALL, SMALL | VARLEN, *(SMALL | one for one in FEATURES)]
DIFFERENTIATED = [
    *COMBINED,
    *(SMALL | VARLEN | one for one in FEATURES if (SMALL | VARLEN | one).meaningful()),
    *(SMALL | Case(bias=axes) for axes in ("1hqk", "bhq1", "1h11", "1111", "hqk", "qk")),
    SMALL | Case(rows=6, causal=True, sink=True),
]


@pytest.mark.parametrize("case", DIFFERENTIATED, ids=str)
def test_gradients_by_central_differences(case):
    arrays = inputs(case)
    found = exact.backward(case, arrays, arrays.dout, arrays.dlse)
    inexact = {"dq": arrays.q, "dk": arrays.k, "dv": arrays.v}
    for name, option in (("dbias", "attn_bias"), ("dsink", "learnable_sink")):
        array = arrays.options.get(option)
        if array is None or array.dtype == bool:
            assert found[name] is None
        else:
            inexact[name] = array
    for name, array in inexact.items():
        assert found[name].shape == array.shape
        for direction in directions(array, case in ELEMENTWISE):
            difference = central_difference(lambda: loss(case, arrays), array, direction)
            close(np.sum(found[name] * direction), difference, 1e-7)


# ---- identities ----------------------------------------------------------------------------------


def test_rows_without_keys():
    case = SMALL | Case(rows=6, causal=True)
    arrays = inputs(case)
    out, lse, _ = exact.forward(case, arrays)
    assert (out[:, 0] == 0).all() and np.isneginf(lse[:, :, 0]).all() and np.isfinite(lse[:, :, 1:]).all()
    gradients = exact.backward(case, arrays, arrays.dout, arrays.dlse)
    assert (gradients["dq"][:, 0] == 0).all()
    with_sink = SMALL | Case(rows=6, causal=True, sink=True)
    arrays = inputs(with_sink)
    out, lse, _ = exact.forward(with_sink, arrays)
    assert (out[:, 0] == 0).all()
    close(lse[:, :, 0], np.broadcast_to(arrays.options["learnable_sink"], (2, 2)))


def test_absent_rows_have_lse_minus_infinity_even_with_a_sink():
    case = SMALL | Case(used_rows=(1, 3), sink=True)
    arrays = inputs(case)
    out, lse, _ = exact.forward(case, arrays)
    assert np.isneginf(lse[0, :, 1:]).all() and (out[0, 1:] == 0).all() and np.isfinite(lse[1]).all()


def test_a_sink_is_a_key_with_value_zero():
    case = SMALL | Case(sink=True)
    arrays = inputs(case)
    out, lse, _ = exact.forward(case, arrays)
    sink = arrays.options["learnable_sink"].astype(np.float64)
    bias = np.zeros((1, case.heads, 1, case.keys + 1))
    bias[0, :, 0, -1] = sink
    k, v = (np.concatenate([x, np.zeros_like(x[:, :1])], axis=1) for x in (arrays.k, arrays.v))
    same = reference.forward(arrays.q, k, v, attn_bias=bias)
    close(out, same.out)
    close(lse, same.lse)


def test_gqa_repeats_heads():
    case = SMALL | Case(heads=6, kv_heads=2, causal=True)
    arrays = inputs(case)
    repeated = reference.forward(arrays.q, arrays.k.repeat(3, axis=2), arrays.v.repeat(3, axis=2), causal=True)
    close(exact.forward(case, arrays)[0], repeated.out)


def test_varlen_is_dense_for_each_sequence():
    case = SMALL | Case(lengths=((3, 7), (0, 4), (5, 5), (2, 0)), window=(3, 1), alibi="bh", dropout=0.3)
    arrays = inputs(case)
    out, lse, probabilities = exact.forward(case, arrays)
    starts_q, starts_k = arrays.varlen[:2]
    assert probabilities.shape == (4, case.heads, 5, 7)
    for b in range(4):
        rows, keys = slice(starts_q[b], starts_q[b + 1]), slice(starts_k[b], starts_k[b + 1])
        # b dummy batch entries in front, so that dropout and slopes see the same batch index
        own = arrays.q[rows], arrays.k[keys], arrays.v[keys]
        padded = [np.concatenate([np.zeros((b, *x.shape)), x[None]]) for x in own]
        dense = reference.forward(*padded, **arrays.options)
        close(out[rows], dense.out[b])
        close(lse[:, rows], dense.lse[b])
        close(probabilities[b, :, : rows.stop - rows.start, : keys.stop - keys.start], dense.probabilities[b])


def test_paged_varlen_is_varlen():
    plain = SMALL | Case(lengths=((3, 7), (1, 1), (5, 12)), causal=True)
    arrays = inputs(plain)
    for page in (1, 3, 16):
        table = np.arange(3 * 12).reshape(3, 12)[:, : -(-12 // page)]
        pages = [np.full((36, page, *x.shape[1:]), np.nan) for x in (arrays.k, arrays.v)]
        for flat, paged in zip((arrays.k, arrays.v), pages, strict=True):
            for b in range(3):
                for t in range(plain.lengths[b][1]):
                    paged[table[b, t // page], t % page] = flat[arrays.varlen[1][b] + t]
        found = reference.varlen_forward(arrays.q, *pages, *arrays.varlen, block_table=table, causal=True)
        close(found.out, exact.forward(plain, arrays)[0])


def test_leftpad_of_varlen_skips_keys():
    case = SMALL | Case(lengths=((3, 7), (2, 6)), causal=True)
    arrays = inputs(case)
    found = reference.varlen_forward(arrays.q, arrays.k, arrays.v, *arrays.varlen, leftpad_k=[2, 0], causal=True)
    first = reference.forward(arrays.q[None, :3], arrays.k[None, 2:7], arrays.v[None, 2:7], causal=True)
    close(found.out[:3], first.out[0])
    close(found.out[3:], exact.forward(case, arrays)[0][3:])


def test_parts_merge_to_the_whole():
    case = SMALL | Case(rows=4, keys=9, causal=True)
    arrays = inputs(case)
    q, k, v, dout, dlse = arrays.q, arrays.k, arrays.v, arrays.dout, arrays.dlse
    whole = reference.forward(q, k, v, causal=True)
    cuts = [(0, 0), (0, 4), (4, 9)]  # an empty part, too
    parts = [reference.forward(q, k[:, a:b], v[:, a:b], causal=True, q_offset=5, k_offset=a) for a, b in cuts]
    out, lse = parts[0].out, parts[0].lse
    for part in parts[1:]:
        out, lse = reference.merge(out, lse, part.out, part.lse)
    close(out, whole.out)
    close(lse, whole.lse)
    combined, combined_lse = reference.combine([p.out for p in parts], [p.lse.swapaxes(1, 2) for p in parts])
    close(combined, whole.out)
    close(combined_lse, whole.lse.swapaxes(1, 2))
    # the backward of a part takes the out and lse of the whole, as ring attention does
    gradients = reference.backward(dout, q, k, v, dlse=dlse, causal=True)
    dq = np.zeros_like(q)
    for a, b in cuts:
        part = reference.backward(*(dout, q, k[:, a:b], v[:, a:b], whole.out, whole.lse), dlse=dlse, causal=True, q_offset=5, k_offset=a)
        close(part.dk, gradients.dk[:, a:b])
        close(part.dv, gradients.dv[:, a:b])
        dq += part.dq
    close(dq, gradients.dq)


def test_merge_of_nothing_with_nothing():
    out, lse = np.full((1, 2, 1, 3), np.nan), np.full((1, 1, 2), -np.inf)
    merged_out, merged_lse = reference.merge(out, lse, out, lse)
    assert (merged_out == 0).all() and np.isneginf(merged_lse).all()


# ---- kv cache ------------------------------------------------------------------------------------


def rotate_complex(x, cos, sin, position, interleaved):
    """Rotary embedding of one vector as a product of complex numbers."""
    half = cos.shape[1]
    turn = cos[position] + 1j * sin[position]
    rest = x[2 * half :]
    if interleaved:
        turned = (x[0 : 2 * half : 2] + 1j * x[1 : 2 * half : 2]) * turn
        return np.concatenate([np.stack([turned.real, turned.imag], axis=1).ravel(), rest])
    turned = (x[:half] + 1j * x[half : 2 * half]) * turn
    return np.concatenate([turned.real, turned.imag, rest])


CACHES = [
    CacheCase(batch=3, rows=rows, new=new, dim=6, capacity=20, cached=(0, 7, 13), dtype="float64") | change
    for rows, new in ((1, 1), (3, 3), (2, 5), (4, 0))
    for change in (
        CacheCase(),
        CacheCase(causal=True),
        CacheCase(window=(4, 1), alibi="bh"),
        CacheCase(sink=True, softcap=2.0),
        CacheCase(page=1),
        CacheCase(page=3, causal=True),
        CacheCase(page=16),
        CacheCase(batch_index=True, leftpad=(0, 2, 13), causal=True),
        CacheCase(rotary="interleaved", causal=True),
        CacheCase(rotary="interleaved"),
        CacheCase(rotary="halves", rotary_dim=4, window=(3, 0)),
        CacheCase(rotary="halves", page=3, leftpad=(0, 2, 1)),
        CacheCase(cached=5),
        CacheCase(cached=5, value_dim=3),
    )
]


@pytest.mark.parametrize("case", CACHES, ids=str)
def test_cache_is_dense_attention_on_the_concatenation(case):
    arrays = inputs(case)
    options = arrays.options
    found = exact.with_kvcache(case, arrays)
    cos, sin = options.get("rotary_cos"), options.get("rotary_sin")
    index = options.get("cache_batch_idx", np.arange(case.batch))
    lengths = np.broadcast_to(options["cache_seqlens"], (case.batch,))
    names = ("causal", "window_size", "softcap", "alibi_slopes", "learnable_sink")
    shared = {name: options[name] for name in names if name in options}
    for b in range(case.batch):
        length, skipped = int(lengths[b]), int(options.get("cache_leftpad", [0] * 3)[b])
        if case.page:
            numbers = options["block_table"][b]
            numbers = numbers[numbers >= 0]
            caches = arrays.k_cache[numbers], arrays.v_cache[numbers]
            old_k, old_v = (cache.reshape(-1, *cache.shape[2:])[:length] for cache in caches)
        else:
            old_k, old_v = arrays.k_cache[index[b], :length], arrays.v_cache[index[b], :length]
        q, new_k, new_v = arrays.q[b].copy(), old_k[:0], old_v[:0]
        if case.new:
            new_k, new_v = arrays.k[b].copy(), arrays.v[b]
        if case.rotary:
            interleaved = case.rotary == "interleaved"
            follow = case.causal or case.window != (-1, -1)
            for t, h in np.ndindex(new_k.shape[:2]):
                new_k[t, h] = rotate_complex(new_k[t, h], cos, sin, length + t, interleaved)
            for i, h in np.ndindex(q.shape[:2]):
                q[i, h] = rotate_complex(q[i, h], cos, sin, length + (i if follow else 0), interleaved)
        k, v = np.concatenate([old_k, new_k])[skipped:], np.concatenate([old_v, new_v])[skipped:]
        mine = dict(shared)
        if case.alibi == "bh":
            mine["alibi_slopes"] = options["alibi_slopes"][b]
        expected = reference.forward(q[None], k[None], v[None], **mine)
        close(found.out[b], expected.out[0])
        close(found.lse[b], expected.lse[0])
        # the caches hold the new tokens behind the old ones, and nothing else has moved
        for cache, new in ((found.k_cache, new_k), (found.v_cache, new_v)):
            for t in range(case.new):
                place = length + t
                if case.page:
                    close(cache[options["block_table"][b][place // case.page], place % case.page], new[t])
                else:
                    close(cache[index[b], place], new[t])
    untouched = ~arrays.written
    np.testing.assert_array_equal(found.k_cache[untouched], arrays.k_cache[untouched])
    np.testing.assert_array_equal(found.v_cache[untouched], arrays.v_cache[untouched])
    assert arrays.written.sum() == case.batch * case.new


# ---- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, least, most", [("float32", 1e-8, 1e-5), ("float16", 1e-5, 1e-2), ("bfloat16", 1e-4, 1e-1)])
def test_plain_arithmetic_has_the_error_of_its_dtype(dtype, least, most):
    case = Case(dtype=dtype, causal=True, bias="bhqk", sink=True)
    arrays = inputs(case)
    plain = Formula("plain", exact=False)
    true, rough = (target.backward(case, arrays, arrays.dout, arrays.dlse) for target in (exact, plain))
    pairs = [(exact.forward(case, arrays)[0], plain.forward(case, arrays)[0]), *((true[n], rough[n]) for n in true)]
    for expected, found in pairs:
        assert least < np.abs(found - expected).max() / np.abs(expected).max() < most


def test_tolerance_can_fail():
    expected = np.linspace(-1, 1, 100)
    plain = expected.astype(np.float32)
    check(plain, expected, plain, "float32", "itself")
    bad = plain.copy()
    bad[17] += 3e-6
    with pytest.raises(AssertionError, match=r"out: error .* at \(17,\)"):
        check(bad, expected, plain, "float32", "out")
    bad[17] = np.nan
    with pytest.raises(AssertionError, match="NaN at"):
        check(bad, expected, plain, "float32", "out")
    infinite = np.array([-np.inf, 0.0])
    check(infinite, infinite, infinite, "float32", "lse")
    for wrong in ([np.inf, 0.0], [-1e30, 0.0], [-np.inf, -np.inf]):
        with pytest.raises(AssertionError, match="expected"):
            check(np.array(wrong), infinite, infinite, "float32", "lse")
    with pytest.raises(AssertionError, match="shape"):
        check(expected[:50], expected, plain, "float32", "out")


def test_tolerance_takes_the_worst_of_both_over_all_draws():
    expected = np.linspace(-1, 1, 100)
    rough, bad = expected + 2e-6, expected + 5e-6
    check(rough, expected, expected, "float32", "out", [[(expected, expected, rough)]])  # luck was the other's
    with pytest.raises(AssertionError, match=r"error 5\.000e-06"):
        check(rough, expected, expected, "float32", "out", [[(bad, expected, expected)], [(bad, expected, expected)]])
    with pytest.raises(AssertionError, match="error nan"):
        check(rough, expected, expected, "float32", "out", [[(np.full(100, np.nan), expected, rough)]])
    never = (pytest.fail("drawn though the first comparison holds") for _ in range(1))
    check(expected, expected, expected, "float32", "out", [never])


@pytest.mark.parametrize("layout", ["heads_first", "sliced", "reversed", "strided"])
def test_layouts_hold_the_same_elements(layout):
    array = inputs(Case(dtype="bfloat16", dim=33)).k
    moved = arrange(array, layout)
    assert moved.dtype == DTYPES["bfloat16"] and not moved.flags.c_contiguous
    assert (moved.strides[-1] == moved.itemsize) == (layout != "strided")
    np.testing.assert_array_equal(moved, array)
