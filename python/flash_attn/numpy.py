"""What NumPy users need beyond the seven functions: the seed of dropout, and explicit gradients, for NumPy has no autograd.

out, lse, _ = flash_attn.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
gradients = flash_attn.numpy.backward(dout, q, k, v, out, lse, causal=True)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flash_attn import engine, interface
from flash_attn.call import Arrays, Options, Role
from flash_attn.frameworks import numpy as framework


class Gradients(NamedTuple):
    """Gradients of q, k, v, attn_bias and learnable_sink, each of the shape and dtype of its array; None where there is none."""

    dq: Any
    dk: Any
    dv: Any
    dbias: Any = None
    dsink: Any = None


def seed(value: int) -> None:
    """Seeds the generator from which dropout draws when no rng_state is given."""
    framework.generator = np.random.default_rng(value)


def backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    *,
    dlse=None,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    rng_state=None,
    attn_bias=None,
    learnable_sink=None,
    q_offset=None,
    k_offset=None,
    seqused_q=None,
    seqused_k=None,
    attention_chunk=0,
) -> Gradients:
    """Gradients of flash_attn_func at (out, softmax_lse), its results for the same arguments.

    dout (b, sq, h, dv) in q's dtype is the gradient of out; dlse (b, h, sq) float32 that of the lse, if it is used. With dropout,
    rng_state must be the one of the forward call. Formulas: FlashAttention-2, arXiv:2307.08691, section 2.3; API of the masks and
    scores: flash_attn_func.
    """
    common = (softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, None, 0)
    arrays = (q, k, v, dout, out, softmax_lse, dlse, rng_state, alibi_slopes, learnable_sink, seqused_q, seqused_k)
    options = interface.options_of("backward", framework.FRAMEWORK, dropout_p, *common, q_offset, k_offset)
    return _gradients("backward", {**dict(zip(_ROLES, arrays)), Role.BIAS: attn_bias}, options)


def varlen_backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    *,
    dlse=None,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    rng_state=None,
    learnable_sink=None,
    seqused_q=None,
    seqused_k=None,
    attention_chunk=0,
) -> Gradients:
    """Gradients of flash_attn_varlen_func: dout (total_q, h, dv), softmax_lse and dlse (h, total_q); otherwise as backward()."""
    common = (softmax_scale, causal, window_size, softcap, deterministic, attention_chunk, None, 0)
    arrays = (q, k, v, dout, out, softmax_lse, dlse, rng_state, alibi_slopes, learnable_sink, seqused_q, seqused_k)
    options = interface.options_of("varlen_backward", framework.FRAMEWORK, dropout_p, *common, max_rows=max_seqlen_q, max_keys=max_seqlen_k)
    lengths = {Role.CU_ROWS: cu_seqlens_q, Role.CU_KEYS: cu_seqlens_k}
    return _gradients("varlen_backward", {**dict(zip(_ROLES, arrays)), **lengths}, options)


_ROLES = (
    Role.Q, Role.K, Role.V, Role.DOUT, Role.OUT, Role.LSE, Role.DLSE, Role.SEED, Role.SLOPES, Role.SINK, Role.USED_ROWS, Role.USED_KEYS
)  # fmt: skip


def _gradients(function: str, given: Arrays, options: Options) -> Gradients:
    arrays = {role: array for role, array in given.items() if array is not None}
    if not options.dropout:
        arrays.pop(Role.SEED, None)
    bias = arrays.get(Role.BIAS)
    wanted = 0
    if bias is not None and getattr(bias, "dtype", None) != np.bool_:
        wanted |= 1 << Role.DBIAS
    if Role.SINK in arrays:
        wanted |= 1 << Role.DSINK
    results = engine.backward(framework.FRAMEWORK, function, arrays, options._replace(wants=wanted))
    return Gradients(results[Role.DQ], results[Role.DK], results[Role.DV], results.get(Role.DBIAS), results.get(Role.DSINK))
