"""Bad input, through the public functions: the kind of error, its words, and that nothing was written."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import flash_attn
from bad_calls import (
    BATCH,
    CALLS,
    DIM,
    HEADS,
    KEYS,
    KV_HEADS,
    ROWS,
    RULES,
    SCALARS,
    SHAPES,
    VALUES,
    broken,
    cache,
    check_message,
    check_rule,
    dense,
    function_of,
    growing,
    ints,
    kvpacked,
    odd_strides,
    ones,
    paged_varlen,
    read_only,
    strided,
    varlen,
)

# ---- signatures ------------------------------------------------------------------------------------------------------

COMMON = (
    "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, "
    "deterministic=False, return_attn_probs=False"
)
DENSE = "attn_bias learnable_sink s_aux q_offset k_offset seqused_q seqused_k attention_chunk out_dtype rng_state num_splits sm_margin"
PACKED = "learnable_sink s_aux seqused_q seqused_k attention_chunk out_dtype rng_state num_splits sm_margin"
SIGNATURES = {
    "flash_attn_func": ("q, k, v, " + COMMON, DENSE),
    "flash_attn_qkvpacked_func": ("qkv, " + COMMON, DENSE),
    "flash_attn_kvpacked_func": ("q, kv, " + COMMON, DENSE),
    "flash_attn_varlen_func": (f"q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, {COMMON}, block_table=None", PACKED),
    "flash_attn_varlen_qkvpacked_func": ("qkv, cu_seqlens, max_seqlen, " + COMMON, PACKED),
    "flash_attn_varlen_kvpacked_func": ("q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, " + COMMON, PACKED),
    "flash_attn_with_kvcache": (
        "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None, "
        "cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
        "rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False",
        "learnable_sink s_aux attention_chunk out_dtype sm_margin",
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    """What callers look at: names, order and defaults of upstream, then our extras by keyword only, switched off."""
    function, (positional, extras) = getattr(flash_attn, name), SIGNATURES[name]
    assert inspect.isfunction(function)
    spec = inspect.getfullargspec(function)
    found = [
        argument if default is inspect.Parameter.empty else f"{argument}={default}"
        for argument, default in ((a, inspect.signature(function).parameters[a].default) for a in spec.args)
    ]
    assert ", ".join(found) == positional
    assert " ".join(spec.kwonlyargs) == extras
    assert spec.varargs is None and spec.varkw is None
    off = {"attention_chunk": 0, "num_splits": 0, "sm_margin": 0}
    assert spec.kwonlydefaults == {extra: off.get(extra) for extra in extras.split()}


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_the_calls_are_right_before_they_are_broken(make):
    function_of(make)(**make())


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rule(rule):
    check_rule(rule)


def test_mixed_frameworks_are_refused():
    mx = pytest.importorskip("mlx.core")
    call = dense()
    call["k"] = mx.array(call["k"])
    with pytest.raises(TypeError) as raised:
        flash_attn.flash_attn_func(**call)
    check_message(raised.value, "flash_attn_func", "k")
    assert "expected a NumPy array like the others, found mlx.core.array" in str(raised.value)


def test_no_kernel_is_another_error_than_a_wrong_argument():
    pages = paged_varlen()
    out, lse, _ = flash_attn.flash_attn_varlen_func(**pages, return_attn_probs=True)
    from flash_attn import engine, interface
    from flash_attn.call import Role
    from flash_attn.frameworks.numpy import FRAMEWORK

    options = interface.options_of("varlen_backward", FRAMEWORK, 0.0, None, False, (-1, -1), 0.0, False, 0, None, 0, max_rows=3, max_keys=4)
    names = {"Q": "q", "K": "k", "V": "v", "CU_ROWS": "cu_seqlens_q", "CU_KEYS": "cu_seqlens_k", "PAGES": "block_table"}
    arrays = {getattr(Role, role): pages[name] for role, name in names.items()}
    arrays |= {Role.DOUT: out, Role.OUT: out, Role.LSE: lse}
    with pytest.raises(NotImplementedError, match=r"\[varlen_backward\] k: expected plain keys and values, found a cache"):
        engine.backward(FRAMEWORK, "varlen_backward", arrays, options)


# ---- what real callers pass is taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window",
    [[3, 0], np.array([3, 0]), (np.int64(3), np.int32(0)), (np.array(3), 0), (True * 3, False)],
    ids=lambda window: type(window).__name__,
)
def test_window_size_as_callers_pass_it(window):
    call = dense()
    call["q"][...] = np.arange(DIM)
    expected = flash_attn.flash_attn_func(**call, window_size=(3, 0))
    np.testing.assert_array_equal(flash_attn.flash_attn_func(**call, window_size=window), expected)


@pytest.mark.parametrize("change", [strided, odd_strides, read_only, lambda x: x[::-1][::-1], lambda x: np.asfortranarray(x)])
def test_memory_that_can_be_copied_is(change):
    random = np.random.default_rng(0)
    call = {name: random.standard_normal(x.shape, np.float32) for name, x in dense().items()}
    extras = {"attn_bias": random.standard_normal((ROWS, KEYS), np.float32), "alibi_slopes": ones(BATCH, HEADS), "seqused_k": ints(5, 7)}
    expected = flash_attn.flash_attn_func(**call, **extras)
    changed = {name: change(x) for name, x in (call | extras).items()}
    np.testing.assert_array_equal(flash_attn.flash_attn_func(**changed), expected)


def test_misaligned_memory_is_copied():
    call = dense()
    expected = flash_attn.flash_attn_func(**call)
    for name, x in call.items():
        raw = np.zeros(x.nbytes + 1, np.uint8)
        raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
        call[name] = np.frombuffer(raw.data[1:], np.float32).reshape(x.shape)
        assert call[name].ctypes.data % 4 != 0
    np.testing.assert_array_equal(flash_attn.flash_attn_func(**call), expected)


def test_integers_of_every_kind():
    expected = flash_attn.flash_attn_varlen_func(**varlen())
    for kind in (np.int64, np.int32, np.uint8, np.array):
        call = varlen()
        call["max_seqlen_q"], call["max_seqlen_k"] = kind(call["max_seqlen_q"]), kind(call["max_seqlen_k"])
        np.testing.assert_array_equal(flash_attn.flash_attn_varlen_func(**call), expected)
    call = cache()
    expected = flash_attn.flash_attn_with_kvcache(**dict(call, cache_seqlens=ints(3, 3)))
    for length in (3, np.int64(3), np.int32(3)):
        np.testing.assert_array_equal(flash_attn.flash_attn_with_kvcache(**dict(call, cache_seqlens=length)), expected)


def test_one_array_as_both_cu_seqlens():
    call = varlen()
    del call["cu_seqlens_k"], call["max_seqlen_k"]
    call["k"], call["v"] = ones(ROWS, KV_HEADS, DIM), ones(ROWS, KV_HEADS, DIM)
    out = flash_attn.flash_attn_varlen_func(**call, cu_seqlens_k=call["cu_seqlens_q"], max_seqlen_k=3)
    np.testing.assert_array_equal(out, np.ones_like(out))


# ---- MLX -------------------------------------------------------------------------------------------------------------

MLX_RULES = [
    rule
    for rule in SHAPES + VALUES + SCALARS
    if rule.make in (dense, kvpacked, varlen, cache, growing)
    and not any(value is change for value in rule.change.values() for change in (read_only, strided, odd_strides))
    and rule.words not in ("expected", "its own", "expected at most 5 axes")
][::4]


@pytest.mark.parametrize("rule", MLX_RULES, ids=str)
def test_rule_with_mlx_arrays(rule):
    mx = pytest.importorskip("mlx.core")
    call = broken(rule)
    arrays = {id(x): mx.array(x) for x in call.values() if isinstance(x, np.ndarray)}  # the same array given twice stays one
    call = {name: arrays.get(id(x), x) for name, x in call.items()}
    before = {name: np.array(x) for name, x in call.items() if isinstance(x, mx.array)}
    with pytest.raises(rule.kind) as raised:
        mx.eval(function_of(rule.make)(**call))
    check_message(raised.value, CALLS[rule.make], rule.argument)
    assert rule.words in str(raised.value)
    for name, content in before.items():
        np.testing.assert_array_equal(np.array(call[name]), content, err_msg=f"a call that failed has written into {name}")
