"""out, lse and the dropout mask of every target, over the tables of cases."""

import functools

import numpy as np
import pytest

import cases
import flash_attn
import reference
from cases import Case
from judge import try_forward
from targets import expected_forward, on_targets
from tolerance import DTYPES, check


@on_targets(cases.single)
def test_single(target, case):
    try_forward(target, case)


@on_targets(cases.pairs)
def test_pairs(target, case):
    try_forward(target, case)


@on_targets(cases.mixed)
def test_mixed(target, case):
    try_forward(target, case)


@on_targets(cases.edges)
def test_edges(target, case):
    try_forward(target, case)


@on_targets(cases.dims)
def test_dims(target, case):
    try_forward(target, case)


@on_targets(cases.dtypes)
def test_dtypes(target, case):
    try_forward(target, case)


@on_targets(cases.varlen + cases.paged_varlen)
def test_varlen(target, case):
    try_forward(target, case)


@on_targets(cases.strides)
def test_strides(target, case):
    try_forward(target, case)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_parts_merge_to_the_whole(dtype):
    """Attention over parts of the keys, merged by merge() and by flash_attn_combine(); one part sees nothing."""
    case = Case(dtype=dtype, causal=True, alibi="h")
    arrays, exact = cases.inputs(case), expected_forward(case).exact
    partial = "float64" if dtype == "float64" else "float32"
    arithmetic = reference.plain(partial)  # partial results are not rounded to 16 bits
    plain = reference.forward(arrays.q, arrays.k, arrays.v, arithmetic=arithmetic, **arrays.options)
    parts = []
    for first, end in ((0, 40), (40, 41), (41, 41), (41, case.keys)):
        keys = slice(first, end)
        out, lse, _ = flash_attn.flash_attn_func(
            *(arrays.q, arrays.k[:, keys], arrays.v[:, keys]),
            **arrays.options,
            q_offset=case.keys - case.rows,
            k_offset=first,
            out_dtype=DTYPES[partial],
            return_attn_probs=True,
        )
        assert out.dtype == DTYPES[partial]
        parts.append((out, lse))
    merged = functools.reduce(lambda one, other: flash_attn.merge(*one, *other), parts)
    outs, lses = np.stack([out for out, _ in parts]), np.stack([lse for _, lse in parts])
    combined, combined_lse = flash_attn.flash_attn_combine(outs, lses.swapaxes(-1, -2))
    for name, out, lse in (("merge", *merged), ("flash_attn_combine", combined, combined_lse.swapaxes(-1, -2))):
        check(out, exact[0], plain[0], partial, f"{name}: out")
        check(lse, exact[1], plain[1], partial, f"{name}: lse")


def test_forms_of_the_dropout_state():
    """int64 (seed, offset) and uint32 (low, high, offset, 0) are the same; another seed or offset is another mask."""
    arrays = cases.inputs(Case(dropout=0.5))

    def mask(state):
        options = {"dropout_p": 0.5, "rng_state": state, "return_attn_probs": True}
        return np.signbit(flash_attn.flash_attn_func(arrays.q, arrays.k, arrays.v, **options)[2])

    seed = -0x123456789ABCDEF
    one = mask(np.array([seed, 9], np.int64))
    words = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, 9, 0], np.uint32)
    np.testing.assert_array_equal(one, mask(words))
    np.testing.assert_array_equal(one, mask(np.array([seed, 9 + 2**32], np.int64)))  # 32 bits of the offset count
    assert (one != mask(np.array([seed, 10], np.int64))).any()
    assert (one != mask(np.array([seed ^ (1 << 40), 9], np.int64))).any()


def test_seed_repeats_dropout():
    import flash_attn.numpy

    arrays = cases.inputs(Case())
    results = []
    for _ in range(2):
        flash_attn.numpy.seed(3)
        for _ in range(2):
            results.append(flash_attn.flash_attn_func(arrays.q, arrays.k, arrays.v, dropout_p=0.5))
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[3])
    assert (results[0] != results[1]).any()


def test_long_products_are_summed_in_short_chains():
    """One key a row: the lse is the score itself. A sum of 512 products, one after the other, would be four times as far off."""
    random = np.random.default_rng(0)
    q, k = random.standard_normal((64, 1, 64, 512), np.float32), random.standard_normal((64, 1, 1, 512), np.float32)
    explained = flash_attn.explain(flash_attn.flash_attn_func, q, k, k, softmax_scale=1.0)
    assert "runs forward " in explained
    _, lse, _ = flash_attn.flash_attn_func(q, k, k, softmax_scale=1.0, return_attn_probs=True)
    exact = (q[:, 0].astype(np.float64) * k[:, 0]).sum(-1)
    chain = np.zeros(exact.shape, np.float32)
    for t in range(512):
        chain += q[:, 0, :, t] * k[:, 0, :, t]
    error, error_of_chain = (np.sqrt(np.square(found - exact).mean()) for found in (lse[:, :, 0], chain))
    assert error < error_of_chain / 2, (error, error_of_chain)
