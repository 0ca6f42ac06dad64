"""bert_padding, rotary, losses and normalisation against plain PyTorch."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from flash_attn import bert_padding, flash_attn_interface, flash_attn_qkvpacked_func  # noqa: E402
from flash_attn.layers.rotary import RotaryEmbedding, apply_rotary_emb, apply_rotary_emb_kv_, apply_rotary_emb_qkv_, apply_rotary_emb_torch  # noqa: E402
from flash_attn.losses.cross_entropy import CrossEntropyLoss  # noqa: E402
from flash_attn.ops import layer_norm, rms_norm  # noqa: E402
from flash_attn.ops.activations import sqrelu_bwd, sqrelu_fwd, swiglu  # noqa: E402
from flash_attn.ops.triton.cross_entropy import cross_entropy_loss  # noqa: E402
from flash_attn.ops.triton.layer_norm import RMSNorm, layer_norm_fn  # noqa: E402

# ---- padding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_unpad_and_pad(dtype):
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]]).to(dtype)
    x = torch.randn(3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    packed, indices, cu, longest, used = bert_padding.unpad_input(x, mask)
    assert cu.tolist() == [0, 3, 4, 8] and cu.dtype == torch.int32 and longest == 4 and used.tolist() == [3, 1, 4]
    assert torch.equal(packed, x[mask.bool()]) and indices.tolist() == [0, 1, 2, 5, 8, 9, 10, 11]
    for index in (indices, indices.int()):
        padded = bert_padding.pad_input(packed, index, 3, 4)
        assert torch.equal(padded, x * mask[..., None, None])
    assert torch.autograd.gradgradcheck(lambda x: bert_padding.pad_input(bert_padding.unpad_input(x, mask)[0], indices, 3, 4), (x,))


def test_unused_tokens_are_packed_but_not_counted():
    mask, unused = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]), torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0]])
    packed, _, cu, longest, used = bert_padding.unpad_input(torch.randn(2, 4, 3), mask, unused)
    assert packed.shape == (5, 3) and cu.tolist() == [0, 3, 5] and longest == 3 and used.tolist() == [2, 1]


def test_concatenated_sequences():
    lengths = torch.tensor([[2, 1, 0, 0], [4, 0, 0, 0]])
    x = torch.randn(2, 4, 3)
    packed, indices, cu, longest = bert_padding.unpad_input_for_concatenated_sequences(x, lengths)
    assert cu.tolist() == [0, 2, 3, 7] and longest == 4 and indices.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(packed, x.flatten(0, 1)[indices])


def test_residual_joins_the_gradients():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, 1])
    assert torch.autograd.gradcheck(lambda x: bert_padding.index_first_axis_residual(x, index), (x,))


# ---- rotary ------------------------------------------------------------------------------------------------------------


def turned(x, cos, sin, interleaved, offsets):
    parts = []
    for row, first in zip(x, offsets):
        at = slice(first, first + x.shape[1])
        parts.append(apply_rotary_emb_torch(row[None], cos[at], sin[at], interleaved))
    return torch.cat(parts)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offset", [0, 3, torch.tensor([1, 7], dtype=torch.int32), torch.tensor([1, 7])], ids=["0", "3", "int32", "int64"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rotary(interleaved, offset, dtype):
    x = torch.randn(2, 9, 3, 16, dtype=torch.float64).to(dtype)
    angle = torch.rand(20, 6, dtype=torch.float64) * 6
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    offsets = [offset] * 2 if isinstance(offset, int) else offset.tolist()
    expected = turned(x.double(), cos.double(), sin.double(), interleaved, offsets)
    tolerance = {"atol": 0.03, "rtol": 0.01} if dtype == torch.bfloat16 else {"atol": 1e-12, "rtol": 1e-12}
    found = apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=offset)
    torch.testing.assert_close(found.double(), expected, **tolerance)
    part = torch.randn(2, 9, 5, 3, 16).to(dtype)
    part[:, :, 2] = x
    before = part.clone()
    assert apply_rotary_emb(part[:, :, 2], cos, sin, interleaved, True, offset).data_ptr() == part[:, :, 2].data_ptr()
    assert torch.equal(part[:, :, 2], found)
    part[:, :, 2] = before[:, :, 2]
    assert torch.equal(part, before), "something else was written"


@pytest.mark.parametrize("offsets", [0, torch.tensor([2, 0, 5], dtype=torch.int32)], ids=["0", "each"])
def test_rotary_of_packed_sequences(offsets):
    cu = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    x, angle = torch.randn(9, 2, 8), torch.rand(12, 4)
    expected = []
    for i in range(3):
        first = offsets if isinstance(offsets, int) else int(offsets[i])
        part = x[cu[i] : cu[i + 1]]
        at = slice(first, first + len(part))
        expected.append(apply_rotary_emb_torch(part[None], angle.cos()[at], angle.sin()[at])[0])
    given = {"seqlen_offsets": offsets, "cu_seqlens": cu, "max_seqlen": 5}
    torch.testing.assert_close(apply_rotary_emb(x, angle.cos(), angle.sin(), **given), torch.cat(expected))
    torch.testing.assert_close(apply_rotary_emb(x, angle.cos().double(), angle.sin().double(), **given), torch.cat(expected))


def test_rotary_gradients():
    x = torch.randn(2, 5, 2, 6, dtype=torch.float64, requires_grad=True)
    angle = torch.rand(8, 2, dtype=torch.float64)

    def function(x):
        return apply_rotary_emb(x, angle.cos(), angle.sin(), seqlen_offsets=torch.tensor([0, 2], dtype=torch.int32))

    assert torch.autograd.gradcheck(function, (x,)) and torch.autograd.gradgradcheck(function, (x,))


def test_rotary_in_place_of_a_leaf_that_requires_grad():
    leaf = torch.randn(1, 4, 2, 8, requires_grad=True)
    before, angle = leaf.detach().clone(), torch.rand(4, 4)
    out = apply_rotary_emb(leaf, angle.cos(), angle.sin(), inplace=True)
    expected = apply_rotary_emb_torch(before, angle.cos(), angle.sin())
    torch.testing.assert_close(leaf.detach(), expected)
    out.sum().backward()
    torch.testing.assert_close(leaf.grad, apply_rotary_emb_torch(torch.ones_like(before), angle.cos(), -angle.sin()))


@pytest.mark.parametrize("form", ["qkv", "grouped", "kv"])
def test_rotary_of_packed_arrays(form):
    angle = torch.rand(5, 4, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    shape = {"qkv": (2, 5, 3, 2, 8), "grouped": (2, 5, 4 + 2 * 2, 8), "kv": (2, 5, 2, 2, 8)}[form]
    x = torch.randn(*shape, dtype=torch.float64)

    def ours(x):
        x = x.clone()
        if form == "kv":
            return apply_rotary_emb_kv_(x, cos, sin)
        return apply_rotary_emb_qkv_(x, cos, sin, num_heads_q=4 if form == "grouped" else None)

    def theirs(x):
        if form == "kv":
            return torch.stack((apply_rotary_emb_torch(x[:, :, 0], cos, sin), x[:, :, 1]), 2)
        if form == "grouped":
            return torch.cat((apply_rotary_emb_torch(x[:, :, :6], cos, sin), x[:, :, 6:]), 2)
        return torch.stack([*(apply_rotary_emb_torch(x[:, :, i], cos, sin) for i in (0, 1)), x[:, :, 2]], 2)

    torch.testing.assert_close(ours(x), theirs(x))
    leaf = x.clone().requires_grad_()
    found, expected = (torch.autograd.grad(f(leaf).sin().sum(), leaf)[0] for f in (ours, theirs))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale_base", [None, 512])
def test_rotary_module(scale_base):
    module = RotaryEmbedding(8, scale_base=scale_base)
    qkv = torch.randn(2, 6, 3, 2, 12)
    q, kv = qkv[:, :, 0].clone(), qkv[:, :, 1:].clone()
    whole = module(qkv.clone())
    apart = module(q, kv)
    torch.testing.assert_close(torch.cat((apart[0][:, :, None], apart[1]), 2), whole)
    later = module(qkv[:, 4:].clone(), seqlen_offset=4)
    if scale_base is None:
        torch.testing.assert_close(later, whole[:, 4:])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(qkv.clone()), whole)
    assert not module.state_dict()
    if scale_base is None:
        angle = torch.arange(6.0)[:, None] * 10000 ** -(torch.arange(0, 8, 2) / 8)
        torch.testing.assert_close(apply_rotary_emb_torch(qkv[:, :, 0], angle.cos(), angle.sin()), whole[:, :, 0])


def test_rotary_says_what_is_wrong():
    x, table = torch.randn(1, 5, 2, 8), torch.rand(4, 4)
    with pytest.raises(ValueError, match=r"\[apply_rotary_emb\] cos: expected at least 5 positions"):
        apply_rotary_emb(x, table, table)
    with pytest.raises(ValueError, match=r"\[apply_rotary_emb\] cos: expected at most head_dim / 2 = 4 columns, found 5"):
        apply_rotary_emb(x, torch.rand(5, 5), torch.rand(5, 5))


def test_rotary_compiles():
    x, angle = torch.randn(2, 5, 2, 8), torch.rand(5, 4)
    compiled = torch.compile(lambda x: apply_rotary_emb(x, angle.cos(), angle.sin()), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), apply_rotary_emb(x, angle.cos(), angle.sin()))


# ---- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(smoothing, reduction):
    logits = torch.randn(7, 11, requires_grad=True)
    labels = torch.randint(0, 11, (7,))
    labels[2] = -100
    module = CrossEntropyLoss(label_smoothing=smoothing, reduction=reduction, logit_scale=1.5)
    found = module(logits, labels)
    expected = functional.cross_entropy(logits * 1.5, labels, label_smoothing=smoothing, reduction=reduction)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad((x * weight).sum(), logits, retain_graph=True)[0] for x in (found, expected)))
    assert isinstance(copy.deepcopy(module), CrossEntropyLoss)


def test_second_derivative_of_cross_entropy():
    logits, labels, weight = torch.randn(7, 11), torch.randint(0, 11, (7,)), torch.randn(7, 11)
    labels[2] = -100

    def twice(function):
        x = logits.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x * 1).sin(), x, create_graph=True)
        return torch.autograd.grad((first * weight).sum() + x.square().sum(), x)[0]

    def expected(x):
        z = (x * 1.5).logsumexp(-1).square()[labels >= 0].mean()
        return functional.cross_entropy(x * 1.5, labels, label_smoothing=0.2) + 0.1 * z

    given = {"logit_scale": 1.5, "label_smoothing": 0.2, "lse_square_scale": 0.1}
    torch.testing.assert_close(twice(lambda x: CrossEntropyLoss(**given)(x, labels)), twice(expected), atol=1e-5, rtol=1e-4)
    with pytest.raises(NotImplementedError, match=r"\[cross_entropy_loss\] has a second derivative only without inplace_backward"):
        twice(lambda x: CrossEntropyLoss(inplace_backward=True)(x, labels))


class Model(torch.nn.Module):
    """Everything of ours that a model may hold, one of the functions among it."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.rotary = RMSNorm(16), torch.nn.Linear(16, 48), RotaryEmbedding(8)
        self.attend, self.loss = flash_attn_qkvpacked_func, CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x, labels):
        qkv = self.rotary(self.qkv(self.norm(x)).unflatten(-1, (3, 2, 8)))
        return self.loss(self.attend(qkv, causal=True).flatten(2).flatten(0, 1), labels)


def test_models_are_copied_pickled_and_compiled():
    model, x, labels = Model(), torch.randn(2, 5, 16), torch.randint(0, 16, (10,))
    expected = model(x, labels)
    expected.backward()
    copies = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True),
    )
    for other in copies:
        other.zero_grad()
        found = other(x, labels)
        found.backward()
        torch.testing.assert_close(found, expected)
        for a, b in zip(other.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    names = ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache", "_flash_attn_forward", "_flash_attn_varlen_backward")
    for function in (getattr(flash_attn_interface, name) for name in names):
        assert pickle.loads(pickle.dumps(function)) is function


def test_z_loss_and_what_is_given():
    logits, labels = torch.randn(7, 11, requires_grad=True), torch.randint(0, 11, (7,))
    lse = logits.logsumexp(-1)
    losses, z = cross_entropy_loss(logits, labels, precomputed_lse=lse.detach(), lse_square_scale=0.1)
    expected = functional.cross_entropy(logits, labels, reduction="none") + 0.1 * lse.square()
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(z, 0.1 * lse.square().detach())
    assert not z.requires_grad
    gradients = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (losses, expected)]
    torch.testing.assert_close(*gradients)
    copied = logits.detach().clone().requires_grad_()
    through = copied * 1
    cross_entropy_loss(through, labels, lse_square_scale=0.1, inplace_backward=True)[0].sum().backward()
    torch.testing.assert_close(copied.grad, gradients[0])
    torch.testing.assert_close(through.detach(), gradients[0])


# ---- normalisation, activations ----------------------------------------------------------------------------------------


def test_layer_norm_and_rms_norm():
    x, weight, bias = torch.randn(3, 5, 8), torch.randn(8), torch.randn(8)
    torch.testing.assert_close(layer_norm.layer_norm(x, weight, bias, 1e-5), functional.layer_norm(x, (8,), weight, bias, 1e-5))
    torch.testing.assert_close(rms_norm.rms_norm(x, weight, 1e-5), functional.rms_norm(x, (8,), weight, 1e-5))
    for module in (rms_norm.RMSNorm(8), RMSNorm(8), RMSNorm(8, zero_centered_weight=True)):
        torch.testing.assert_close(module(x), functional.rms_norm(x, (8,), None, 1e-5))
        saved = io.BytesIO()
        torch.save(module.state_dict(), saved)
        assert list(module.state_dict()) == ["weight"]


def test_residual_branches():
    x, x1, residual = (torch.randn(3, 5, 8, requires_grad=True) for _ in range(3))
    weight, weight1, rowscale = torch.randn(8), torch.randn(8), torch.rand(3, 5)
    y, y1, h = layer_norm_fn(
        x, weight, None, residual, x1, weight1, rowscale=rowscale, prenorm=True, residual_in_fp32=True, is_rms_norm=True
    )
    total = x * rowscale[..., None] + x1 + residual
    torch.testing.assert_close(h, total)
    torch.testing.assert_close(y, functional.rms_norm(total, (8,), weight, 1e-6))
    torch.testing.assert_close(y1, functional.rms_norm(total, (8,), weight1, 1e-6))
    out, h = layer_norm.dropout_add_layer_norm(x, residual, weight, weight1, 0.0, 1e-5, layerscale=weight, prenorm=True)
    torch.testing.assert_close(h, x * weight + residual)
    torch.testing.assert_close(out, functional.layer_norm(h, (8,), weight, weight1, 1e-5))
    out0, out1, h = rms_norm.dropout_add_rms_norm_parallel_residual(x, x1, residual, weight, None, weight1, None, 0.0, 1e-5, prenorm=True)
    torch.testing.assert_close(out0, functional.rms_norm(x + x1 + residual, (8,), weight, 1e-5))
    torch.testing.assert_close(out1, functional.rms_norm(x + x1 + residual, (8,), weight1, 1e-5))


def test_dropout_is_what_its_mask_says():
    x, residual, weight = torch.randn(30, 64), torch.randn(30, 64), torch.ones(64)
    _out, h, mask = rms_norm.dropout_add_rms_norm(x, residual, weight, None, 0.25, 1e-5, prenorm=True, return_dropout_mask=True)
    torch.testing.assert_close(h, torch.where(mask.bool(), x / 0.75, 0.0) + residual)
    assert 0.7 < mask.float().mean() < 0.8
    module = rms_norm.DropoutAddRMSNorm(64, p=0.5).eval()
    torch.testing.assert_close(module(x, residual), functional.rms_norm(x + residual, (64,), None, 1e-5))


def test_activations():
    x, y = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a, b = x.float(), y.float()
    torch.testing.assert_close(swiglu(a, b), functional.silu(a) * b)
    found, expected = (torch.autograd.grad(f(a, b).sin().sum(), (x, y)) for f in (swiglu, lambda a, b: functional.silu(a) * b))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sqrelu_fwd(a), functional.relu(a).square())
    torch.testing.assert_close(sqrelu_bwd(b, a), 2 * b * functional.relu(a))
