"""Hostile input: every call ends in a result or in an error in the house form, and writes nothing when it fails."""

from __future__ import annotations

import inspect

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_calls import CALLS, check_message, function_of, odd_strides
from tolerance import DTYPES

ODD_INTS = st.sampled_from([0, 1, -1, 2, 3, 7, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**63, 2**200, True])
ODD_NUMBERS = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-320, 1e300, 1e-30]) | ODD_INTS
ODD_THINGS = st.sampled_from(
    [None, "text", b"bytes", [], [1, 2], (), {}, object(), 1j, ..., np.float32, slice(None), np.array(None), np.ma.masked]
)
SIZES = st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 8, 17])
ALL_DTYPES = ["float32"] * 6 + ["float16", "bfloat16", "float64", "int32", "int64", "uint8", "bool", "complex64", "object", ">f4", "S3"]


@st.composite
def odd_arrays(draw) -> np.ndarray:
    dtype = draw(st.sampled_from(ALL_DTYPES))
    shape = draw(st.lists(SIZES, min_size=0, max_size=6))
    array = np.zeros(shape, DTYPES.get(dtype, dtype))
    how = draw(st.sampled_from(["plain", "plain", "plain", "fill", "transposed", "reversed", "broadcast", "strided", "read-only", "odd"]))
    if how == "fill" and dtype not in ("object", "S3"):
        array[...] = draw(st.sampled_from([1, 100])) if array.dtype.kind in "iub" else draw(st.sampled_from([np.nan, np.inf, 3.0]))
    elif how == "transposed":
        array = array.T
    elif how == "reversed" and array.ndim:
        array = array[::-1]
    elif how == "broadcast" and array.ndim < 5:
        array = np.broadcast_to(array, (draw(st.sampled_from([0, 1, 3, 2**20, 2**40])), *array.shape))
    elif how == "strided" and array.ndim:
        array = array[..., ::2]
    elif how == "read-only":
        array.flags.writeable = False
    elif how == "odd" and dtype not in ("object", "S3"):
        array = odd_strides(array)
    return array


ODD_INDICES = st.lists(st.integers(-3, 12) | st.sampled_from([2**31 - 1, -(2**31)]), max_size=5).map(lambda x: np.array(x, np.int32))
ANYTHING = odd_arrays() | ODD_INDICES | ODD_NUMBERS | ODD_THINGS
NAMES = {make: sorted(inspect.signature(function_of(make)).parameters) for make in CALLS}


@st.composite
def hostile_calls(draw):
    """A right call in which one to four arguments are replaced by anything."""
    make = draw(st.sampled_from(list(CALLS)))
    call = make()
    for name in draw(st.lists(st.sampled_from(NAMES[make]), min_size=1, max_size=4, unique=True)):
        array = call.get(name)
        how = draw(st.sampled_from(["anything", "anything", "number", "near"]))
        if how == "near" and isinstance(array, np.ndarray) and array.size:
            # the right array with one size or one value changed
            if array.dtype == np.int32:
                array = array.copy()
                array.flat[draw(st.integers(0, array.size - 1))] = draw(st.integers(-2, 12) | st.sampled_from([2**31 - 1, -(2**31)]))
            else:
                axis = draw(st.integers(0, array.ndim - 1))
                array = array.take(range(draw(st.integers(0, array.shape[axis]))), axis=axis)
            call[name] = array
        else:
            call[name] = draw(ODD_NUMBERS if how == "number" else ANYTHING)
    return make, call


@settings(max_examples=400)
@given(hostile_calls())
def test_hostile_calls_end_in_a_result_or_an_error_in_form(made):
    make, call = made
    arrays = {name: x for name, x in call.items() if type(x) is np.ndarray and x.nbytes < 1 << 20 and x.dtype != object}
    before = {name: x.tobytes() for name, x in arrays.items()}
    try:
        function_of(make)(**call)
    except (TypeError, ValueError, NotImplementedError) as error:
        check_message(error, CALLS[make])
        assert {name: x.tobytes() for name, x in arrays.items()} == before, "a call that failed has written"
    except MemoryError:  # of an array that broadcasting made longer than memory
        assert any(x.size > 1 << 20 for x in call.values() if isinstance(x, np.ndarray))


@settings(max_examples=100)
@given(st.data())
def test_the_core_survives_any_view(data):
    """Past the framework: shapes and strides that no array library would make, without memory."""
    from flash_attn import _core
    from flash_attn.call import Options, Pass

    sizes = st.sampled_from([0, 1, 2, 4, 8, 2**20, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -1, -(2**63)])
    strides = sizes | st.just(3)
    views = []
    for role in data.draw(st.lists(st.sampled_from(range(len(_core.ROLES))), min_size=1, max_size=12, unique=True)):
        rank = data.draw(st.sampled_from([0, 1, 2, 3, 4, 4, 4, 4, 5]))
        shape = data.draw(st.lists(sizes, min_size=rank, max_size=rank))
        stride = data.draw(st.lists(strides, min_size=rank, max_size=rank))
        views.append((role, _core.view_of_address(0, data.draw(st.integers(1, 8)), shape, stride)))
    which = data.draw(st.sampled_from([Pass.FORWARD, Pass.BACKWARD, Pass.APPEND, Pass.MERGE]))
    try:
        _core.describe("fuzz", which, views, Options())
    except (TypeError, ValueError, NotImplementedError) as error:
        check_message(error, "fuzz")
