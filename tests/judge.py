"""Judges what a target returned for a case: tolerance.check on each array, and equality where it must be exact."""

from __future__ import annotations

import itertools

import numpy as np

from cases import CacheCase, Case, inputs
from targets import expected_backward, expected_forward, expected_kvcache
from tolerance import DTYPES, SUM_ROUNDINGS, check, largest

DRAWS = (12, 48)  # further inputs of a case for close calls, and as many more for those that stay close; see tolerance.py


def try_forward(target, case: Case) -> None:
    """Runs a case on a target and judges it; so do the next two."""

    def run(seed):
        return target.forward(case, inputs(case, seed))

    judge_forward(case, run(0), again=run)


def try_backward(target, case: Case) -> None:
    def run(seed):
        arrays = inputs(case, seed)
        return target.backward(case, arrays, arrays.dout, arrays.dlse)

    judge_backward(case, run(0), again=run)


def try_kvcache(target, case: CacheCase) -> None:
    def run(seed):
        return target.with_kvcache(case, inputs(case, seed))

    judge_kvcache(case, run(0), again=run)


def _draws(again, expected, case, part):
    """Further draws of a case for tolerance.check, lazily; again(seed): the target's result, None for no draws."""

    def drawn(seed):
        exact, plain = expected(case, seed)
        return part(again(seed)), part(exact), part(plain)

    ends = itertools.accumulate((1, *DRAWS))
    return [map(drawn, range(first, end)) for first, end in itertools.pairwise(ends)] if again else []


def lse_dtype(case) -> str:
    return "float64" if case.dtype == "float64" else "float32"


def judge_forward(case: Case, result, again=None) -> None:
    out, lse, probabilities = result
    exact, plain = expected_forward(case)
    assert out.dtype == DTYPES[case.dtype], f"out: expected {case.dtype}, found {out.dtype}"
    assert lse.dtype == DTYPES[lse_dtype(case)], f"lse: expected {lse_dtype(case)}, found {lse.dtype}"
    for part, (name, dtype) in enumerate((("out", case.dtype), ("lse", lse_dtype(case)))):
        draws = _draws(again, expected_forward, case, lambda result, part=part: result[part])
        check(result[part], exact[part], plain[part], dtype, name, draws)
    _exactly_zero(out, exact[0], "out of a row that sees no key")
    if case.dropout:
        found = np.asarray(probabilities).astype(np.float64)
        dtype = next(name for name, dtype in DTYPES.items() if dtype == probabilities.dtype)
        draws = _draws(again, expected_forward, case, lambda result: np.abs(np.asarray(result[2]).astype(np.float64)))
        check(np.abs(found), np.abs(exact[2]), np.abs(plain[2]), dtype, "S_dmask", draws, _roundings(exact[1]))
        wrong = _exists(case, exact[2].shape) & (np.signbit(found) != np.signbit(exact[2]))
        assert not wrong.any(), f"dropout mask: {wrong.sum()} elements differ, first {np.argwhere(wrong)[0]}"
    else:
        assert probabilities is None


def judge_backward(case: Case, gradients: dict, again=None) -> None:
    exact, plain = expected_backward(case)
    lse = expected_forward(case).exact[1]
    for name in ("dq", "dk", "dv", "dbias", "dsink"):
        if exact[name] is None:
            assert gradients[name] is None, f"{name}: expected None, found {type(gradients[name])}"
            continue
        dtype = lse_dtype(case) if name == "dsink" else case.dtype
        if name in ("dq", "dk", "dv"):
            assert gradients[name].dtype == DTYPES[dtype], f"{name}: expected {dtype}, found {gradients[name].dtype}"
        draws = _draws(again, expected_backward, case, lambda result, name=name: result[name])
        check(gradients[name], exact[name], plain[name], dtype, name, draws, _roundings(lse))
    _exactly_zero(gradients["dv"], exact["dv"], "dv of a key that no row sees")
    sees_nothing = np.isneginf(lse if case.lengths is not None else lse.swapaxes(1, 2))
    sees_nothing = sees_nothing.T if case.lengths is not None else sees_nothing
    assert not gradients["dq"][sees_nothing].any(), "dq of a row that sees no key: expected exactly 0"


def judge_kvcache(case: CacheCase, result, again=None) -> None:
    out, lse, k_cache, v_cache = result
    exact, plain = expected_kvcache(case)
    assert out.dtype == DTYPES[case.dtype], f"out: expected {case.dtype}, found {out.dtype}"
    assert lse.dtype == DTYPES[lse_dtype(case)], f"lse: expected {lse_dtype(case)}, found {lse.dtype}"
    for part, (name, dtype) in enumerate((("out", case.dtype), ("lse", lse_dtype(case)))):
        draws = _draws(again, expected_kvcache, case, lambda result, part=part: result[part])
        check(result[part], exact[part], plain[part], dtype, name, draws)
    _exactly_zero(out, exact.out, "out of a row that sees no key")
    before = inputs(case)
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


def _roundings(lse) -> float:
    return max(SUM_ROUNDINGS, largest(lse))


def _exactly_zero(found, exact, what: str) -> None:
    rows = (exact == 0).all(axis=-1)
    assert not np.asarray(found)[rows].any(), f"{what}: expected exactly 0"


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
