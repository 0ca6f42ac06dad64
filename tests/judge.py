"""Judges what a target returned for a case: tolerance.check on each array, and equality where it must be exact."""

from __future__ import annotations

import itertools
import math

import numpy as np

from cases import CacheCase, Case, inputs
from targets import expected_backward, expected_forward, expected_kvcache
from tolerance import DTYPES, check

DRAWS = 12  # further inputs of a case from which the straightforward error is taken, see tolerance.py


def _others(expected, case, seed: int, part):
    def others():
        for results in (expected(case, seed + 1 + draw) for draw in range(DRAWS)):
            yield part(results.exact), part(results.plain)

    return others


def lse_dtype(case) -> str:
    return "float64" if case.dtype == "float64" else "float32"


def judge_forward(case: Case, result, seed: int = 0) -> None:
    out, lse, probabilities = result
    exact, plain = expected_forward(case, seed)
    assert out.dtype == DTYPES[case.dtype], f"out: expected {case.dtype}, found {out.dtype}"
    assert lse.dtype == DTYPES[lse_dtype(case)], f"lse: expected {lse_dtype(case)}, found {lse.dtype}"
    for part, (name, dtype) in enumerate((("out", case.dtype), ("lse", lse_dtype(case)))):
        others = _others(expected_forward, case, seed, lambda result, part=part: result[part])
        check(result[part], exact[part], plain[part], dtype, name, others)
    _exactly_zero(out, exact[0], "out of a row that sees no key")
    if case.dropout:
        found = np.asarray(probabilities).astype(np.float64)
        dtype = next(name for name, dtype in DTYPES.items() if dtype == probabilities.dtype)
        # S_dmask is exp(score - lse) with the lse that was returned, whose error has been judged above
        from_lse = np.abs(exact[2]) * np.exp(_by_sequence(case, _difference(exact[1], lse)))[..., None]
        others = _others(expected_forward, case, seed, lambda result: np.abs(result[2]))
        check(np.abs(found), np.abs(exact[2]), from_lse, dtype, "S_dmask", others)
        wrong = _exists(case, exact[2].shape) & (np.signbit(found) != np.signbit(exact[2]))
        assert not wrong.any(), f"dropout mask: {wrong.sum()} elements differ, first {np.argwhere(wrong)[0]}"
    else:
        assert probabilities is None


def judge_backward(case: Case, gradients: dict, seed: int = 0) -> None:
    exact, plain = expected_backward(case, seed)
    lse = expected_forward(case, seed).exact[1]
    for name in ("dq", "dk", "dv", "dbias", "dsink"):
        if exact[name] is None:
            assert gradients[name] is None, f"{name}: expected None, found {type(gradients[name])}"
            continue
        dtype = lse_dtype(case) if name == "dsink" else case.dtype
        if name in ("dq", "dk", "dv"):
            assert gradients[name].dtype == DTYPES[dtype], f"{name}: expected {dtype}, found {gradients[name].dtype}"
        others = _others(expected_backward, case, seed, lambda result, name=name: result[name])
        check(gradients[name], exact[name], plain[name], dtype, name, others, _summed_rows(case, name))
    _exactly_zero(gradients["dv"], exact["dv"], "dv of a key that no row sees")
    sees_nothing = np.isneginf(lse if case.lengths is not None else lse.swapaxes(1, 2))
    sees_nothing = sees_nothing.T if case.lengths is not None else sees_nothing
    assert not gradients["dq"][sees_nothing].any(), "dq of a row that sees no key: expected exactly 0"


def judge_kvcache(case: CacheCase, result, seed: int = 0) -> None:
    out, lse, k_cache, v_cache = result
    exact, plain = expected_kvcache(case, seed)
    assert out.dtype == DTYPES[case.dtype], f"out: expected {case.dtype}, found {out.dtype}"
    assert lse.dtype == DTYPES[lse_dtype(case)], f"lse: expected {lse_dtype(case)}, found {lse.dtype}"
    for part, (name, dtype) in enumerate((("out", case.dtype), ("lse", lse_dtype(case)))):
        others = _others(expected_kvcache, case, seed, lambda result, part=part: result[part])
        check(result[part], exact[part], plain[part], dtype, name, others)
    _exactly_zero(out, exact.out, "out of a row that sees no key")
    before = inputs(case, seed)
    new = before.written
    for name, cache, old, wanted, rough in (
        ("k_cache", k_cache, before.k_cache, exact.k_cache, plain.k_cache),
        ("v_cache", v_cache, before.v_cache, exact.v_cache, plain.v_cache),
    ):
        assert _bytes(cache[~new]) == _bytes(old[~new]), f"{name}: changed outside of the new tokens"
        if name == "k_cache" and case.rotary is not None:
            check(cache[new], wanted[new], rough[new], case.dtype, f"{name}, new tokens")
        else:
            assert _bytes(cache[new]) == _bytes(wanted[new].astype(DTYPES[case.dtype])), f"{name}: new tokens differ"


def _summed_rows(case: Case, name: str) -> int:
    """How many rows are summed into one element of dbias or dsink."""
    if name == "dsink":
        return case.batch * case.rows if case.lengths is None else sum(rows for rows, _ in case.lengths)
    if name != "dbias":
        return 1
    axes = case.bias.rjust(4, "1")
    sizes = (case.batch, case.heads, case.rows)
    return math.prod(size for axis, size in zip(axes, sizes, strict=False) if axis == "1")


def _exactly_zero(found, exact, what: str) -> None:
    rows = (exact == 0).all(axis=-1)
    assert not np.asarray(found)[rows].any(), f"{what}: expected exactly 0"


def _difference(one, other):
    finite = np.isfinite(one)
    return np.where(finite, one, 0) - np.where(finite, other, 0)


def _by_sequence(case: Case, rows):
    """(h, total_q) of a varlen call as (b, h, max_seqlen_q); dense ones are (b, h, sq) already."""
    if case.lengths is None:
        return rows
    starts, _, longest, _ = inputs(case).varlen
    parts = [rows[:, first:end] for first, end in itertools.pairwise(starts)]
    return np.stack([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])


def _exists(case: Case, shape) -> np.ndarray:
    """Which elements of S_dmask belong to a row and a key that exist."""
    options, exists = inputs(case).options, np.zeros(shape, dtype=bool)
    for b in range(case.sequences):
        rows, keys = (case.rows, case.keys) if case.lengths is None else case.lengths[b]
        rows, keys = int(options.get("seqused_q", {b: rows})[b]), int(options.get("seqused_k", {b: keys})[b])
        exists[b, :, :rows, :keys] = True
    return exists


def _bytes(array) -> bytes:
    return np.ascontiguousarray(array).tobytes()
