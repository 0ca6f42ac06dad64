"""Names, argument names, defaults and return arity that other projects rely on; the tables are FlashAttention 2.8.3's and 3's."""

from __future__ import annotations

import importlib
import inspect
import itertools

import pytest

torch = pytest.importorskip("torch")

MASK = (
    "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
    "return_attn_probs=False"
)
PRIVATE = "dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes"
LENGTHS = "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k"
GRADIENTS = "dout, q, k, v, out, softmax_lse, dq, dk, dv"
KVCACHE = (
    "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, "
    "block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, "
    "num_splits=0, return_softmax_lse=False"
)
FA3 = (
    "qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, "
    "pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False"
)
NORM = (
    "x0, residual, weight, bias, dropout_p, epsilon, rowscale=None, layerscale=None, prenorm=False, residual_in_fp32=False, "
    "return_dropout_mask=False"
)
C_WINDOW = "is_causal, window_size_left, window_size_right, softcap"
C_LENGTHS = "max_seqlen_q, max_seqlen_k, p_dropout, softmax_scale, zero_tensors"
C_GRADIENTS = "dout, q, k, v, out, softmax_lse, dq_, dk_, dv_"
APPLY = "dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax"
ROTARY = "interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None"

# positional arguments; keyword-only ones are ours to add
SIGNATURES = {
    "flash_attn": {
        "flash_attn_func": f"q, k, v, {MASK}",
        "flash_attn_qkvpacked_func": f"qkv, {MASK}",
        "flash_attn_kvpacked_func": f"q, kv, {MASK}",
        "flash_attn_varlen_func": f"q, k, v, {LENGTHS}, {MASK}, block_table=None",
        "flash_attn_varlen_qkvpacked_func": f"qkv, cu_seqlens, max_seqlen, {MASK}",
        "flash_attn_varlen_kvpacked_func": f"q, kv, {LENGTHS}, {MASK}",
        "flash_attn_with_kvcache": KVCACHE,
        "flash_attn_combine": "out_partial, lse_partial, out=None, out_dtype=None",
        "merge": "out_a, lse_a, out_b, lse_b",
    },
    "flash_attn.flash_attn_interface": {
        "flash_attn_func": f"q, k, v, {MASK}",
        "flash_attn_varlen_func": f"q, k, v, {LENGTHS}, {MASK}, block_table=None",
        "flash_attn_with_kvcache": KVCACHE,
        "_flash_attn_forward": f"q, k, v, {PRIVATE}, return_softmax",
        "_flash_attn_varlen_forward": f"q, k, v, {LENGTHS}, dropout_p, softmax_scale, causal, window_size_left=-1, window_size_right=-1, "
        "softcap=0.0, alibi_slopes=None, return_softmax=False, block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False, "
        "num_splits=0",
        "_flash_attn_backward": f"{GRADIENTS}, {PRIVATE}, deterministic, rng_state=None",
        "_flash_attn_varlen_backward": f"{GRADIENTS}, {LENGTHS}, {PRIVATE}, deterministic, rng_state=None, zero_tensors=False",
        "FlashAttnFunc.apply": f"q, k, v, {APPLY}, is_grad_enabled=True",
        "FlashAttnQKVPackedFunc.apply": f"qkv, {APPLY}, is_grad_enabled=True",
        "FlashAttnKVPackedFunc.apply": f"q, kv, {APPLY}, is_grad_enabled=True",
        "FlashAttnVarlenFunc.apply": f"q, k, v, {LENGTHS}, {APPLY}, block_table, is_grad_enabled=True",
        "FlashAttnVarlenQKVPackedFunc.apply": f"qkv, cu_seqlens, max_seqlen, {APPLY}, is_grad_enabled=True",
        "FlashAttnVarlenKVPackedFunc.apply": f"q, kv, {LENGTHS}, {APPLY}, is_grad_enabled=True",
    },
    "flash_attn.bert_padding": {
        "unpad_input": "hidden_states, attention_mask, unused_mask=None",
        "unpad_input_for_concatenated_sequences": "hidden_states, attention_mask_in_length",
        "pad_input": "hidden_states, indices, batch, seqlen",
    },
    "flash_attn.layers.rotary": {
        "apply_rotary_emb": f"x, cos, sin, {ROTARY}",
        "apply_rotary_emb_func": f"x, cos, sin, {ROTARY}",
        "apply_rotary_emb_torch": "x, cos, sin, interleaved=False",
        "apply_rotary_emb_qkv_": "qkv, cos, sin, cos_k=None, sin_k=None, interleaved=False, seqlen_offsets=0, num_heads_q=None",
        "apply_rotary_emb_kv_": "kv, cos, sin, interleaved=False, seqlen_offsets=0",
        "RotaryEmbedding": "dim, base=10000.0, interleaved=False, scale_base=None, device=None",
        "RotaryEmbedding.forward": "self, qkv, kv=None, seqlen_offset=0, max_seqlen=None, num_heads_q=None",
    },
    "flash_attn.losses.cross_entropy": {
        "CrossEntropyLoss": "ignore_index=-100, reduction='mean', label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0, "
        "inplace_backward=False, process_group=None, return_z_loss=False"
    },
    "flash_attn.ops.triton.cross_entropy": {
        "cross_entropy_loss": "logits, labels, precomputed_lse=None, label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0, "
        "ignore_index=-100, inplace_backward=False, process_group=None"
    },
    "flash_attn.ops.triton.rotary": {
        "apply_rotary": "x, cos, sin, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None, interleaved=False, inplace=False, conjugate=False"
    },
    "flash_attn.ops.triton.layer_norm": {
        "layer_norm_fn": "x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-06, dropout_p=0.0, rowscale=None, "
        "prenorm=False, residual_in_fp32=False, zero_centered_weight=False, is_rms_norm=False, return_dropout_mask=False, out_dtype=None, "
        "out=None, residual_out=None",
        "rms_norm_fn": "x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-06, dropout_p=0.0, rowscale=None, "
        "prenorm=False, residual_in_fp32=False, zero_centered_weight=False, return_dropout_mask=False, out_dtype=None, out=None, "
        "residual_out=None",
        "RMSNorm": "hidden_size, eps=1e-05, dropout_p=0.0, zero_centered_weight=False, device=None, dtype=None",
    },
    "flash_attn.ops.rms_norm": {
        "rms_norm": "x, weight, epsilon",
        "dropout_add_rms_norm": NORM,
        "RMSNorm": "hidden_size, eps=1e-05, device=None, dtype=None",
    },
    "flash_attn.ops.layer_norm": {"dropout_add_layer_norm": NORM, "layer_norm": "x, weight, bias, epsilon"},
    "flash_attn_interface": {
        "flash_attn_func": f"q, k, v, softmax_scale=None, causal=False, {FA3}",
        "flash_attn_varlen_func": f"q, k, v, {LENGTHS}, seqused_q=None, seqused_k=None, softmax_scale=None, causal=False, {FA3}",
        "flash_attn_qkvpacked_func": "qkv, softmax_scale=None, causal=False, q_descale=None, k_descale=None, v_descale=None, "
        "window_size=(-1, -1), attention_chunk=0, softcap=0.0, deterministic=False, num_heads_q=None, sm_margin=0, return_attn_probs=False",
        "flash_attn_with_kvcache": "q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, "
        "cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, "
        "rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False, window_size=(-1, -1), "
        "attention_chunk=0, softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, "
        "return_softmax_lse=False",
        "flash_attn_combine": "out_partial, lse_partial, out=None, out_dtype=None",
        "get_scheduler_metadata": "batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, cache_seqlens, "
        "qkv_dtype=torch.bfloat16, headdim_v=None, cu_seqlens_q=None, cu_seqlens_k_new=None, cache_leftpad=None, page_size=None, "
        "max_seqlen_k_new=0, causal=False, window_size=(-1, -1), attention_chunk=0, has_softcap=False, num_splits=0, pack_gqa=None, "
        "sm_margin=0",
        "_flash_attn_forward": "q, k, v, k_new=None, v_new=None, qv=None, out_=None, cu_seqlens_q=None, cu_seqlens_k=None, "
        "cu_seqlens_k_new=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None, page_table=None, kv_batch_idx=None, "
        "leftpad_k=None, rotary_cos=None, rotary_sin=None, seqlens_rotary=None, q_descale=None, k_descale=None, v_descale=None, "
        "softmax_scale=None, causal=False, window_size_left=-1, window_size_right=-1, attention_chunk=0, softcap=0.0, "
        "rotary_interleaved=True, scheduler_metadata=None, num_splits=1, pack_gqa=None, sm_margin=0",
        "_flash_attn_backward": "dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None, "
        "max_seqlen_q=None, max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False, window_size_left=-1, "
        "window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0",
    },
    "flash_attn_2_cuda": {
        "fwd": f"q, k, v, out_, alibi_slopes_, p_dropout, softmax_scale, {C_WINDOW}, return_softmax, gen_",
        "varlen_fwd": "q, k, v, out_, cu_seqlens_q, cu_seqlens_k, seqused_k, leftpad_k_, block_table_, alibi_slopes_, "
        f"{C_LENGTHS}, {C_WINDOW}, return_softmax, gen_, num_splits=0",
        "bwd": f"{C_GRADIENTS}, alibi_slopes_, p_dropout, softmax_scale, {C_WINDOW}, deterministic, gen_, rng_state",
        "varlen_bwd": f"{C_GRADIENTS}, cu_seqlens_q, cu_seqlens_k, alibi_slopes_, {C_LENGTHS}, {C_WINDOW}, deterministic, gen_, rng_state",
        "fwd_kvcache": "q, kcache, vcache, k_, v_, seqlens_k_, rotary_cos_, rotary_sin_, cache_batch_idx_, leftpad_k_, block_table_, "
        "alibi_slopes_, out_, softmax_scale, is_causal, window_size_left, window_size_right, softcap, is_rotary_interleaved, num_splits",
    },
    "flash_attn.cute": {
        "flash_attn_func": "q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None), "
        "learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, "
        "mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None, block_sparse_tensors_bwd=None, return_lse=False"
    },
    "flash_attn.cute.interface": {"_validate_head_dims": "head_dim, head_dim_v, compute_capability, alignment"},
}
NAMES = {
    "flash_attn": "__version__ bert_padding flash_attn_interface",
    "flash_attn.flash_attn_interface": "flash_attn_gpu flash_attn_cuda _wrapped_flash_attn_forward _wrapped_flash_attn_backward "
    "_wrapped_flash_attn_varlen_forward _wrapped_flash_attn_varlen_backward FlashAttnFunc FlashAttnVarlenFunc FlashAttnQKVPackedFunc "
    "FlashAttnKVPackedFunc FlashAttnVarlenQKVPackedFunc FlashAttnVarlenKVPackedFunc flash_attn_kvpacked_func",
    "flash_attn.bert_padding": "IndexFirstAxis IndexPutFirstAxis index_first_axis index_put_first_axis rearrange",
    "flash_attn.ops.activations": "swiglu",
    "flash_attn.cute": "flash_attn_varlen_func",
    "flash_attn.flash_attn_mlx": "flash_attn_func flash_attn_qkvpacked_func flash_attn_kvpacked_func flash_attn_varlen_func "
    "flash_attn_varlen_qkvpacked_func flash_attn_varlen_kvpacked_func flash_attn_with_kvcache is_mlx_available",
    "flash_attn.flash_attn_mlx.paged_cache": "update_paged_kv_cache",
    "flash_attn.flash_attn_mlx.device": "check_mlx_requirements",
    "flash_attn_interface": "maybe_contiguous",
}


def find(module: str, name: str):
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("module, name", [(m, n) for m, table in SIGNATURES.items() for n in table])
def test_signature(module, name):
    parameters = inspect.signature(find(module, name)).parameters.values()
    positional = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert ", ".join(positional) == SIGNATURES[module][name]


@pytest.mark.parametrize("module, name", [(m, n) for m, names in NAMES.items() for n in names.split()])
def test_name_exists(module, name):
    if name == "rearrange":
        pytest.importorskip("einops")
    assert find(module, name) is not None


@pytest.mark.parametrize("name", ["forward", "backward", "varlen_forward", "varlen_backward"])
def test_operators_take_what_the_functions_take(name):
    function, operator = (find("flash_attn.flash_attn_interface", f"{prefix}flash_attn_{name}") for prefix in ("_", "_wrapped_"))
    expected = {p.name: None if p.default is p.empty else p.default for p in inspect.signature(function).parameters.values()}
    found = {a.name: a.default_value if a.has_default_value() else None for a in operator.default._schema.arguments}
    assert list(found.items()) == list(expected.items())


def test_callers_find_arguments_by_inspection():
    """As ring-flash-attn does: a real function, whose getfullargspec names every argument."""
    from flash_attn.flash_attn_interface import _flash_attn_forward

    assert inspect.isfunction(_flash_attn_forward)
    spec = inspect.getfullargspec(_flash_attn_forward)
    q, k, v = (torch.randn(1, 5, 2, 4) for _ in range(3))
    given = dict.fromkeys(spec.args) | {"softcap": 0.0, "dropout_p": 0, "causal": True, "return_softmax": False}
    given |= {"q": q, "k": k, "v": v, "window_size_left": -1, "window_size_right": -1}
    assert len(_flash_attn_forward(**given)) == 4


def test_return_arity():
    import flash_attn
    import flash_attn_2_cuda
    import flash_attn_interface
    from flash_attn import cute
    from flash_attn.flash_attn_interface import FlashAttnFunc

    q, k, v = (torch.randn(1, 5, 2, 4) for _ in range(3))
    mask = (0.0, 0.5, True, -1, -1, 0.0, None)
    out = flash_attn.flash_attn_func(q, k, v, 0.0, 0.5, True)
    assert isinstance(out, torch.Tensor)
    assert len(flash_attn.flash_attn_func(q, k, v, return_attn_probs=True)) == 3
    c = flash_attn_2_cuda.fwd(q, k, v, None, None, 0.0, 0.5, True, -1, -1, 0.0, False, None)
    assert [type(c), len(c)] == [list, 4] and torch.equal(c[0], out)
    gradients = flash_attn_2_cuda.bwd(out, q, k, v, c[0], c[1], None, None, None, None, 0.0, 0.5, True, -1, -1, 0.0, False, None, c[3])
    assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape, c[1].shape]
    packed, cu = [x[0] for x in (q, k, v)], torch.tensor([0, 5], dtype=torch.int32)
    tail = (0.0, 0.5, False, True, -1, -1, 0.0)
    c = flash_attn_2_cuda.varlen_fwd(*packed, None, cu, cu, None, None, None, None, 5, 5, *tail, False, None)
    assert len(c) == 4 and torch.equal(c[0], out[0])
    given = (out[0], *packed, *c[:2], None, None, None, cu, cu, None, 5, 5, *tail, False, None, c[3])
    for found, expected in zip(flash_attn_2_cuda.varlen_bwd(*given), gradients, strict=True):
        torch.testing.assert_close(found, expected[0])
    caches = k.clone(), v.clone()
    c = flash_attn_2_cuda.fwd_kvcache(q, *caches, None, None, None, *(None,) * 7, 0.5, True, -1, -1, 0.0, True, 0)
    assert len(c) == 2 and torch.equal(c[0], out)
    assert len(find("flash_attn.flash_attn_interface", "_wrapped_flash_attn_forward")(q, k, v, *mask, False)) == 4
    assert torch.equal(FlashAttnFunc.apply(q, k, v, 0.0, 0.5, True, (-1, -1), 0.0, None, False, False, True), out)
    assert torch.equal(flash_attn_interface.flash_attn_func(q, k, v, 0.5, True), out)
    assert len(flash_attn_interface.flash_attn_func(q, k, v, return_attn_probs=True)) == 2
    assert len(flash_attn_interface._flash_attn_forward(q, k, v)) == 4
    found, lse = cute.flash_attn_func(q, k, v, softmax_scale=0.5, causal=True)
    assert torch.equal(found, out) and lse is None
    assert flash_attn.__version__ == "2.8.3"


def test_what_has_no_kernel_is_refused():
    import flash_attn_2_cuda
    import flash_attn_interface
    from flash_attn import cute

    q, k, v = (torch.randn(1, 5, 2, 4) for _ in range(3))
    cu, ones = torch.tensor([0, 5], dtype=torch.int32), torch.ones(1, 2)
    calls = {
        "flash_attn_func": (q, k, v),
        "flash_attn_qkvpacked_func": (torch.stack((q, k, v), 2),),
        "flash_attn_varlen_func": (q[0], k[0], v[0], cu, cu, 5, 5),
        "flash_attn_with_kvcache": (q, k, v),
        "_flash_attn_forward": (q, k, v),
    }
    for (name, arguments), descale in itertools.product(calls.items(), ("q_descale", "k_descale", "v_descale")):
        with pytest.raises(NotImplementedError, match=rf"\[{name}\] {descale}: expected None, for there is no such kernel, found Tensor"):
            getattr(flash_attn_interface, name)(*arguments, **{descale: ones})
    with pytest.raises(NotImplementedError, match=r"\[fwd\] gen_: expected None .*default generator.*, found a generator"):
        flash_attn_2_cuda.fwd(q, k, v, None, None, 0.5, 0.5, True, -1, -1, 0.0, False, torch.Generator())
    with pytest.raises(NotImplementedError, match=r"\[flash_attn_func\] mask_mod: expected None"):
        cute.flash_attn_func(q, k, v, mask_mod=lambda *_: True)


def test_qv_is_a_second_product():
    import flash_attn_interface

    q, k, v, qv = (torch.randn(1, 5, 2, 4, dtype=torch.float64) for _ in range(4))
    scores = (torch.einsum("bihd,bjhd->bhij", q, k) + torch.einsum("bihd,bjhd->bhij", qv, v)) * 8**-0.5
    expected = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
    torch.testing.assert_close(flash_attn_interface.flash_attn_func(q, k, v, qv=qv), expected)


def test_packed_queries_on_a_cache():
    import flash_attn
    import flash_attn_interface

    q, k_cache, v_cache = torch.randn(7, 4, 8), torch.randn(3, 20, 2, 8), torch.randn(3, 20, 2, 8)
    cu, lengths = torch.tensor([0, 3, 7], dtype=torch.int32), torch.tensor([9, 20], dtype=torch.int32)
    rows = torch.tensor([2, 0], dtype=torch.int32)
    out = flash_attn_interface.flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=lengths, cache_batch_idx=rows, cu_seqlens_q=cu, max_seqlen_q=4, causal=True
    )
    for i, row in enumerate(rows.tolist()):
        part, n = slice(int(cu[i]), int(cu[i + 1])), int(lengths[i])
        expected = flash_attn.flash_attn_func(q[None, part], k_cache[None, row, :n], v_cache[None, row, :n], causal=True)[0]
        torch.testing.assert_close(out[part], expected)
