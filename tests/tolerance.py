"""The one rule by which a result is judged.

    max |ours - exact|  <=  2 * max |straightforward - exact|  +  floor

"Straightforward" is the unfused computation in the same dtype (reference.plain), "exact" the float64 reference: an
implementation that costs no more than twice the error of the obvious one has lost nothing that its user had.

In a small array the maximum is a matter of luck: where a row has one key, the straightforward result is even exact. So
if the first comparison fails, the same case is drawn again, and the maximum over all draws of one is compared with that
of the other: a better measurement of both sides. (About one comparison in a thousand needs it.)

A backward pass starts from the saved out and lse, as the interface hands them over: rounded to their dtypes. The
straightforward one starts from those that the straightforward forward pass saved, whose scores it repeats bit by bit.
Where all sequences have one row, forward is a product of a vector and a matrix and backward is not: there the
straightforward forward pass sums its products in another order than the backward pass, too.

The floor covers what no draw shows, because terms cancel exactly in one order of operations and not in another:
* one rounding of the result to its dtype, at the size of the largest expected element: nothing that ends with a store
  in that dtype can promise less;
* 16 roundings of the dtype in which sums are held, at the size of the largest expected element but at least 1: the
  intermediate values (scores, probabilities) are of order 1 also where the result is small or cancels. The gradients
  start from exp(score - lse), and an lse of 100 is rounded by as much as 100 roundings of that exponential, which is 1
  in a row with one large score: where straightforward code computes the score twice in the same way it cancels exactly,
  where the two are fused with other operations, or lse comes from elsewhere (ring attention), it does not. So there,
  and for S_dmask: as many roundings as the largest lse, if that is more than 16. For scores of thousands (spread=30)
  this is what decides: gradients have there 2 to 3 times the error of straightforward code that starts from its own
  lse, and a third of its error when it starts from the exact lse, rounded.
Where no type of NumPy is wider than float64 (macOS), float64 results can only be compared with another float64 result.
Then the straightforward computation has no error by definition, and WITHOUT_YARDSTICK roundings stand in its place: the
largest error that float64 cases showed where it could be measured was 330.
Infinities and signs of infinity must agree exactly; a NaN is always wrong.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
# half of the distance between 1 and the next number: the largest relative error of one rounding
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
SUM_ROUNDINGS = 16
WITHOUT_YARDSTICK = 512


def floor(dtype: str, expected, roundings: float = SUM_ROUNDINGS) -> float:
    size = largest(_wide(expected))
    sums = ROUNDING["float64" if dtype == "float64" else "float32"]
    has_yardstick = dtype != "float64" or np.finfo(np.longdouble).eps < np.finfo(np.float64).eps
    roundings = roundings if has_yardstick else WITHOUT_YARDSTICK
    return ROUNDING[dtype] * size + roundings * sums * max(1.0, size)


def check(actual, expected, plain, dtype: str, what: str, draws=(), roundings: float = SUM_ROUNDINGS) -> None:
    """Raise AssertionError unless `actual` is as close to `expected` as the rule asks.

    dtype: that of `actual`. draws: further triples (actual, expected, plain) from other inputs of the same kind, in
    batches, which are looked at one after the other while the comparison fails.
    roundings: in the floor.
    """
    assert actual is not None, f"{what}: nothing was returned"
    actual, expected, plain = (_wide(array) for array in (actual, expected, plain))
    assert actual.shape == expected.shape, f"{what}: expected shape {expected.shape}, found {actual.shape}"
    if expected.size == 0:
        return
    assert not np.isnan(actual).any(), f"{what}: NaN at {_first(np.isnan(actual))}"
    infinite = np.isinf(expected)
    wrong = (np.isinf(actual) != infinite) | (infinite & (actual != expected))
    if wrong.any():
        at = _first(wrong)
        raise AssertionError(f"{what}: expected {expected[at]}, found {actual[at]} at {at}; {wrong.sum()} such elements")
    error = _error(actual, expected)
    worst, plain_error = error.max(), _error(plain, expected).max()
    allowed = 2 * plain_error + floor(dtype, expected, roundings)
    for batch in draws:
        if worst <= allowed:
            break
        for found, true, rough in (map(_wide, draw) for draw in batch):
            worst, plain_error = np.maximum(worst, _error(found, true).max()), max(plain_error, _error(rough, true).max())
        allowed = 2 * plain_error + floor(dtype, expected, roundings)
    if not worst <= allowed:
        at = np.unravel_index(int(error.argmax()), error.shape)
        raise AssertionError(
            f"{what}: error {worst:.3e} > allowed {allowed:.3e}, here {error.max():.3e} at {tuple(int(i) for i in at)}: "
            f"expected {expected[at]:.9g}, found {actual[at]:.9g}; {(error > allowed).sum()} of {error.size} elements "
            f"are off; the straightforward computation in {dtype} has error {plain_error:.3e}"
        )


def _error(array, expected):
    finite = np.isfinite(expected)
    return np.abs(np.where(finite, array, 0) - np.where(finite, expected, 0))


def _wide(array):
    array = np.asarray(array)
    return (array if array.dtype == np.longdouble else array.astype(np.float64)).astype(np.longdouble)


def largest(array) -> float:
    array = np.abs(array)
    return float(np.max(array, where=np.isfinite(array), initial=0.0))


def _first(where):
    return tuple(int(i) for i in np.argwhere(where)[0])
