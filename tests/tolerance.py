"""The one rule by which a result is judged.

    max |ours - exact|  <=  2 * max |straightforward - exact|  +  floor

"Straightforward" is the unfused computation in the same dtype (reference.plain), "exact" the float64 reference: an
implementation that costs no more than twice the error of the obvious one has lost nothing that its user had.

In a small array the maximum is a matter of luck: where a row has one key, the straightforward result is even exact. So
if the first comparison fails, the straightforward error is taken from more draws of the same case (`others`), and its
maximum counts. That is a better measurement of the same quantity, and it decides only close calls.

The floor covers what no draw shows, because terms cancel exactly in one order of operations and not in another:
* one rounding of the result to its dtype, at the size of the largest expected element: nothing that ends with a store
  in that dtype can promise less;
* 16 roundings of the dtype in which sums are held, at the size of the largest expected element but at least 1: the
  intermediate values (scores, probabilities) are of order 1 also where the result is small or cancels. The gradients of
  a broadcast bias and of a sink are sums over `rows` rows, each of order 1, which may cancel: at least `rows` then.
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


def floor(dtype: str, expected, rows: int = 1) -> float:
    largest = _largest(_wide(expected))
    sums = ROUNDING["float64" if dtype == "float64" else "float32"]
    has_yardstick = dtype != "float64" or np.finfo(np.longdouble).eps < np.finfo(np.float64).eps
    roundings = SUM_ROUNDINGS if has_yardstick else WITHOUT_YARDSTICK
    return ROUNDING[dtype] * largest + roundings * sums * max(rows, largest)


def check(actual, expected, plain, dtype: str, what: str, others=tuple, rows: int = 1) -> None:
    """Raise AssertionError unless `actual` is as close to `expected` as the rule asks.

    dtype: that of `actual`. others(): further pairs (expected, plain) from other inputs of the same kind. rows: how many
    rows of attention each element is summed over, where that is what its size depends on.
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
    plain_error = _error(plain, expected).max()
    allowed = 2 * plain_error + floor(dtype, expected, rows)
    if error.max() > allowed:
        plain_error = max([plain_error, *(_error(_wide(rough), _wide(true)).max() for true, rough in others())])
        allowed = 2 * plain_error + floor(dtype, expected, rows)
    if error.max() > allowed:
        at = np.unravel_index(int(error.argmax()), error.shape)
        raise AssertionError(
            f"{what}: error {error.max():.3e} > allowed {allowed:.3e} at {tuple(int(i) for i in at)}: "
            f"expected {expected[at]:.9g}, found {actual[at]:.9g}; {(error > allowed).sum()} of {error.size} elements "
            f"are off; the straightforward computation in {dtype} has error {plain_error:.3e}"
        )


def _error(array, expected):
    finite = np.isfinite(expected)
    return np.abs(np.where(finite, array, 0) - np.where(finite, expected, 0))


def _wide(array):
    array = np.asarray(array)
    return (array if array.dtype == np.longdouble else array.astype(np.float64)).astype(np.longdouble)


def _largest(array) -> float:
    array = np.abs(array)
    return float(np.max(array, where=np.isfinite(array), initial=0.0))


def _first(where):
    return tuple(int(i) for i in np.argwhere(where)[0])
