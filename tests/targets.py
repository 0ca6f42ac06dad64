"""Everything that computes attention and is held to the tables of cases.py: each framework on each device.

A target takes the NumPy arrays of a case and gives NumPy arrays back. To add one, write a class with these methods and
its line in TARGETS.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import pytest

import reference
from arrays import Inputs
from cases import CacheCase, Case, inputs
from tolerance import DTYPES


class Target(Protocol):
    name: str

    def takes(self, case) -> bool:
        """False where the target lacks what the case needs by its nature (a GPU without float64), never for a bug."""
        ...

    def forward(self, case: Case, arrays: Inputs):
        """(out, lse, probabilities): the last is S_dmask, or None without dropout."""
        ...

    def backward(self, case: Case, arrays: Inputs, dout, dlse) -> dict:
        """dq, dk, dv, dbias, dsink; None for what the case does not have. dlse may be None."""
        ...

    def with_kvcache(self, case: CacheCase, arrays: Inputs):
        """(out, lse, k_cache, v_cache): the caches are the caller's own, after the call."""
        ...


class NumPyTarget:
    """The package on NumPy arrays: public functions, and explicit gradients."""

    name = "numpy"

    def takes(self, case) -> bool:
        return True

    def forward(self, case, arrays):
        import flash_attn

        options = dict(arrays.options, return_attn_probs=True)
        if case.packed == "qkv":
            out, lse, probabilities = flash_attn.flash_attn_qkvpacked_func(arrays.packed, **options)
        elif case.packed == "kv" and case.lengths is None:
            out, lse, probabilities = flash_attn.flash_attn_kvpacked_func(arrays.q, arrays.packed, **options)
        elif case.packed == "kv":
            out, lse, probabilities = flash_attn.flash_attn_varlen_kvpacked_func(arrays.q, arrays.packed, *arrays.varlen, **options)
        elif case.lengths is None:
            out, lse, probabilities = flash_attn.flash_attn_func(arrays.q, arrays.k, arrays.v, **options)
        else:
            out, lse, probabilities = flash_attn.flash_attn_varlen_func(arrays.q, arrays.k, arrays.v, *arrays.varlen, **options)
        if not case.dropout:
            assert probabilities.shape == (0,), f"S_dmask without dropout: expected (0,), found {probabilities.shape}"
            probabilities = None
        return out, lse, probabilities

    def backward(self, case, arrays, dout, dlse):
        import flash_attn.numpy

        out, lse, _ = self.forward(case, arrays)
        if case.lengths is None:
            function = flash_attn.numpy.backward
        else:
            function = flash_attn.numpy.varlen_backward
        gradients = function(dout, arrays.q, arrays.k, arrays.v, out, lse, *arrays.varlen, dlse=dlse, **arrays.options)
        return gradients._asdict()

    def with_kvcache(self, case, arrays):
        import flash_attn

        out, lse = flash_attn.flash_attn_with_kvcache(
            arrays.q, arrays.k_cache, arrays.v_cache, arrays.k, arrays.v, return_softmax_lse=True, **arrays.options
        )
        return out, lse, arrays.k_cache, arrays.v_cache


TARGETS: list[Target] = [NumPyTarget()]
if importlib.util.find_spec("mlx") is not None:
    from target_metal import MetalTarget
    from target_mlx import MLXTarget

    TARGETS += [MLXTarget(), MetalTarget()]
if importlib.util.find_spec("torch") is not None:
    import torch

    from target_torch import TorchTarget

    TARGETS.append(TorchTarget())
    if torch.cuda.is_available():
        TARGETS.append(TorchTarget("cuda"))


def on_targets(cases):
    """pytest parameters (target, case): every case for every target that takes it."""
    return pytest.mark.parametrize(
        "target, case",
        [
            pytest.param(target, case, id=f"{target.name}:{case}")
            for case in dict.fromkeys(cases)
            for target in TARGETS
            if target.takes(case)
        ],
    )


class Formula:
    """The reference as a target: exact, or the straightforward computation in the dtype of the case."""

    def __init__(self, name: str, exact: bool):
        self.name, self.exact = name, exact

    def takes(self, case) -> bool:
        return True

    def _arithmetic(self, case):
        return (reference.exact if self.exact else reference.plain)(DTYPES[case.dtype])

    def forward(self, case, arrays):
        function = reference.forward if case.lengths is None else reference.varlen_forward
        out, lse, probabilities = function(
            arrays.q, arrays.k, arrays.v, *arrays.varlen, arithmetic=self._arithmetic(case), **arrays.options
        )
        return out, lse, probabilities if case.dropout else None

    def backward(self, case, arrays, dout, dlse):
        options = dict(arrays.options, dlse=dlse, arithmetic=self._arithmetic(case))
        saved = (None, None) if self.exact else self._saved(case, arrays)
        function = reference.backward if case.lengths is None else reference.varlen_backward
        gradients = function(dout, arrays.q, arrays.k, arrays.v, *saved, *arrays.varlen, **options)
        return gradients._asdict()

    def _saved(self, case, arrays):
        """out and lse for the backward pass, rounded as the interface hands them over; see tolerance.py."""
        rows = case.rows if case.lengths is None else max(rows for rows, _ in case.lengths)
        if rows == 1:  # the same products, summed in another order
            arrays = replace(arrays, q=arrays.q[..., ::-1], k=arrays.k[..., ::-1])
        return self.forward(case, arrays)[:2]

    def with_kvcache(self, case, arrays):
        options = {name: value for name, value in arrays.options.items() if name != "num_splits"}
        return reference.with_kvcache(
            arrays.q, arrays.k_cache, arrays.v_cache, arrays.k, arrays.v, arithmetic=self._arithmetic(case), **options
        )


class Expected(NamedTuple):
    exact: object
    plain: object


_FORMULAS = (Formula("exact", exact=True), Formula("plain", exact=False))


# All targets of a case run one after the other, so a handful of results is enough to compute each only once.
@functools.lru_cache(maxsize=32)
def expected_forward(case: Case, seed: int = 0) -> Expected:
    return _expected(case, seed, lambda formula, arrays: formula.forward(case, arrays))


@functools.lru_cache(maxsize=32)
def expected_backward(case: Case, seed: int = 0) -> Expected:
    return _expected(case, seed, lambda formula, arrays: formula.backward(case, arrays, arrays.dout, arrays.dlse))


@functools.lru_cache(maxsize=32)
def expected_kvcache(case: CacheCase, seed: int = 0) -> Expected:
    return _expected(case, seed, lambda formula, arrays: formula.with_kvcache(case, arrays))


def _expected(case, seed: int, compute) -> Expected:
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):  # NaN and infinities are there on purpose
        return Expected(*(compute(formula, inputs(case, seed)) for formula in _FORMULAS))
