"""Who is measured: ours on NumPy, MLX and PyTorch arrays, the plain NumPy formula, MLX's and PyTorch's scaled_dot_product_attention.

PyTorch has three ways for sequences of different lengths: a call for each (torch), one batch padded to the longest with the padding
masked (torch-padded), and nested tensors (torch-nested).

make(contender, job, case, arrays, threads) gives a function that does the job once, or None where the contender cannot. Each gets
its arrays in the layout and dtype it likes best, before the clock starts. Outputs are allocated inside, as users' calls do.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import flash_attn
import flash_attn.numpy

NEEDS = {"ours-mlx": "mlx", "mlx": "mlx"} | dict.fromkeys(("ours-torch", "torch", "torch-padded", "torch-nested"), "torch")


def installed(contender: str) -> bool:
    return contender not in NEEDS or importlib.util.find_spec(NEEDS[contender]) is not None


def share(contender: str, job: str) -> float:
    """The part of a contender's time that the job is. mx.vjp includes the forward, which does 2 of its 7 products."""
    return 5 / 7 if job == "backward" and NEEDS.get(contender) == "mlx" else 1.0


def make(contender: str, job: str, case: Any, arrays: Any, threads: int) -> Callable[[], Any] | None:
    factory, name = CONTENDERS[contender], "forward" if job in ("forward", "short") else job
    return getattr(factory(case, arrays, threads), name)() if getattr(factory, name, None) else None


class Contender:
    def __init__(self, case: Any, arrays: Any, threads: int):
        self.case, self.arrays, self.threads = case, arrays, threads

    def sequences(self, *names: str):
        """The arrays of each sequence of a varlen case, with a batch of one."""
        cu_q, cu_k, _, _ = self.arrays.varlen
        for b in range(len(cu_q) - 1):
            ends = {"q": slice(cu_q[b], cu_q[b + 1]), "k": slice(cu_k[b], cu_k[b + 1]), "v": slice(cu_k[b], cu_k[b + 1])}
            yield [getattr(self.arrays, name)[None, ends[name]] for name in names]

    def caches(self):
        """What a peer without caches attends to: the keys and values that are there."""
        length = int(self.arrays.options["cache_seqlens"][0])
        return self.arrays.k_cache[:, :length], self.arrays.v_cache[:, :length]


class Ours(Contender):
    def forward(self):
        a, causal = self.arrays, self.case.causal
        return lambda: flash_attn.flash_attn_func(a.q, a.k, a.v, causal=causal)

    def backward(self):
        a, causal = self.arrays, self.case.causal
        out, lse, _ = flash_attn.flash_attn_func(a.q, a.k, a.v, causal=causal, return_attn_probs=True)
        return lambda: flash_attn.numpy.backward(a.dout, a.q, a.k, a.v, out, lse, causal=causal)

    def varlen(self):
        a, causal = self.arrays, self.case.causal
        return lambda: flash_attn.flash_attn_varlen_func(a.q, a.k, a.v, *a.varlen, causal=causal)

    def decode(self):
        a = self.arrays
        lengths = a.options["cache_seqlens"]
        return lambda: flash_attn.flash_attn_with_kvcache(a.q, a.k_cache, a.v_cache, cache_seqlens=lengths)


class OursMLX(Contender):
    """The same on MLX arrays: what the way through MLX costs. Its backward includes the forward, as mx.vjp does."""

    def _arrays(self, *names: str):
        return to_mlx(*(getattr(self.arrays, name) for name in names))

    def forward(self):
        import mlx.core as mx

        causal = self.case.causal
        q, k, v = self._arrays("q", "k", "v")
        return lambda: mx.eval(flash_attn.flash_attn_func(q, k, v, causal=causal))

    def backward(self):
        import mlx.core as mx

        causal = self.case.causal
        *qkv, dout = self._arrays("q", "k", "v", "dout")
        return lambda: mx.eval(mx.vjp(lambda q, k, v: flash_attn.flash_attn_func(q, k, v, causal=causal), qkv, [dout])[1])

    def varlen(self):
        import mlx.core as mx

        q, k, v = self._arrays("q", "k", "v")
        cu_q, cu_k = to_mlx(*self.arrays.varlen[:2])
        longest, causal = self.arrays.varlen[2:], self.case.causal
        return lambda: mx.eval(flash_attn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, *longest, causal=causal))

    def decode(self):
        import mlx.core as mx

        q, k_cache, v_cache = self._arrays("q", "k_cache", "v_cache")
        (lengths,) = to_mlx(self.arrays.options["cache_seqlens"])
        return lambda: mx.eval(flash_attn.flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=lengths))


def to_mlx(*arrays: np.ndarray) -> list:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    made = []
    for array in arrays:
        wide = array.dtype.itemsize == 2
        made.append(mx.array(array.astype(np.float32)).astype(getattr(mx, array.dtype.name)) if wide else mx.array(array))
    mx.eval(*made)
    return made


def heads_first(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    return np.ascontiguousarray(array.swapaxes(1, 2), dtype=dtype)


class Formula(Contender):
    """softmax(scale q k^T) v in float32, written with NumPy as anybody would; 16-bit inputs are widened before the clock starts."""

    def _arrays(self, q, k, v):
        q, k, v = (heads_first(x, np.float32) for x in (q, k, v))
        group = q.shape[1] // k.shape[1]
        return q, np.repeat(k, group, 1), np.repeat(v, group, 1)

    def _attend(self, q, k, v):
        scale = np.float32(q.shape[-1] ** -0.5)
        hidden = None
        if self.case.causal:
            rows, keys = q.shape[2], k.shape[2]
            hidden = np.triu(np.full((rows, keys), -np.inf, np.float32), 1 + keys - rows)

        def probabilities():
            s = (q @ k.swapaxes(-1, -2)) * scale
            if hidden is not None:
                s += hidden
            p = np.exp(s - s.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            return p

        return probabilities

    def forward(self):
        q, k, v = self._arrays(self.arrays.q, self.arrays.k, self.arrays.v)
        probabilities = self._attend(q, k, v)
        return lambda: probabilities() @ v

    def backward(self):
        q, k, v = self._arrays(self.arrays.q, self.arrays.k, self.arrays.v)
        dout = heads_first(self.arrays.dout, np.float32)
        probabilities, scale = self._attend(q, k, v), np.float32(q.shape[-1] ** -0.5)
        out = probabilities() @ v

        def run():
            p = probabilities()
            dv = p.swapaxes(-1, -2) @ dout
            ds = p * (dout @ v.swapaxes(-1, -2) - (dout * out).sum(-1, keepdims=True)) * scale
            return ds @ k, ds.swapaxes(-1, -2) @ q, dv

        return run

    def varlen(self):
        parts = []
        for q, k, v in self.sequences("q", "k", "v"):
            q, k, v = self._arrays(q, k, v)
            parts.append((self._attend(q, k, v), v))
        return lambda: [probabilities() @ v for probabilities, v in parts]

    def decode(self):
        q, k, v = self._arrays(self.arrays.q, *self.caches())
        probabilities = self._attend(q, k, v)
        return lambda: probabilities() @ v


class MLX(Contender):
    """mx.fast.scaled_dot_product_attention on the CPU. Its backward includes the forward, as mx.vjp does."""

    def _attend(self):
        import mlx.core as mx

        scale, mask = self.arrays.q.shape[-1] ** -0.5, "causal" if self.case.causal else None
        return lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    def forward(self):
        import mlx.core as mx

        q, k, v = to_mlx(*(heads_first(x) for x in (self.arrays.q, self.arrays.k, self.arrays.v)))
        attend = self._attend()
        return lambda: mx.eval(attend(q, k, v))

    def backward(self):
        import mlx.core as mx

        *qkv, dout = to_mlx(*(heads_first(x) for x in (self.arrays.q, self.arrays.k, self.arrays.v, self.arrays.dout)))
        attend = self._attend()
        return lambda: mx.eval(mx.vjp(attend, qkv, [dout])[1])

    def varlen(self):
        import mlx.core as mx

        parts = [to_mlx(*(heads_first(x) for x in part)) for part in self.sequences("q", "k", "v")]
        attend = self._attend()
        return lambda: mx.eval([attend(*part) for part in parts])

    def decode(self):
        import mlx.core as mx

        q, k, v = to_mlx(*(heads_first(x) for x in (self.arrays.q, *self.caches())))
        attend = self._attend()
        return lambda: mx.eval(attend(q, k, v))


class Torch(Contender):
    """torch.nn.functional.scaled_dot_product_attention, (b, h, s, d) in memory as it likes it."""

    layout = staticmethod(heads_first)

    def __init__(self, case: Any, arrays: Any, threads: int):
        super().__init__(case, arrays, threads)
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    def _tensor(self, array: np.ndarray):
        array = self.layout(array)
        wide = array.astype(np.float32) if array.dtype.itemsize == 2 else array
        return self.torch.from_numpy(wide).to(getattr(self.torch, array.dtype.name))

    def _attend(self, q, k, v):
        options = {"is_causal": True} if self.case.causal else {}
        if q.shape[1] != k.shape[1]:
            options["enable_gqa"] = True
        return self.torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    def forward(self):
        q, k, v = (self._tensor(x) for x in (self.arrays.q, self.arrays.k, self.arrays.v))
        return lambda: self._attend(q, k, v)

    def backward(self):
        inputs = [self._tensor(x).requires_grad_() for x in (self.arrays.q, self.arrays.k, self.arrays.v)]
        dout, out = self._tensor(self.arrays.dout), self._attend(*inputs)
        return lambda: self.torch.autograd.grad(out, inputs, dout, retain_graph=True)

    def varlen(self):
        parts = [[self._tensor(x) for x in part] for part in self.sequences("q", "k", "v")]
        return lambda: [self._attend(*part) for part in parts]

    def decode(self):
        q, k, v = (self._tensor(x) for x in (self.arrays.q, *self.caches()))
        return lambda: self._attend(q, k, v)


class OursTorch(Torch):
    """Ours on PyTorch's tensors: what the way through PyTorch costs, and what its attention is to be compared with."""

    layout = staticmethod(np.ascontiguousarray)

    def _attend(self, q, k, v):
        return flash_attn.flash_attn_func(q, k, v, causal=self.case.causal)

    def varlen(self):
        q, k, v = (self._tensor(x) for x in (self.arrays.q, self.arrays.k, self.arrays.v))
        cu_q, cu_k = (self.torch.from_numpy(x) for x in self.arrays.varlen[:2])
        longest, causal = self.arrays.varlen[2:], self.case.causal
        return lambda: flash_attn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, *longest, causal=causal)

    def decode(self):
        q, k, v = (self._tensor(x) for x in (self.arrays.q, self.arrays.k_cache, self.arrays.v_cache))
        lengths = self.torch.from_numpy(self.arrays.options["cache_seqlens"])
        return lambda: flash_attn.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)


class TorchPadded(Torch):
    """Sequences in one batch as long as the longest, with the padding masked."""

    forward = backward = decode = None

    def __init__(self, case: Any, arrays: Any, threads: int):
        super().__init__(case, arrays, threads)
        self.parts = [[self._tensor(x)[0] for x in part] for part in self.sequences("q", "k", "v")]

    def varlen(self):
        rows, keys = (max(part[i].shape[1] for part in self.parts) for i in (0, 1))
        batch = []
        for column, length in zip(zip(*self.parts, strict=True), (rows, keys, keys), strict=True):
            batch.append(self.torch.stack([self.torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[1])) for x in column]))
        lengths = self.torch.tensor([part[1].shape[1] for part in self.parts])
        visible = (self.torch.arange(keys) < lengths[:, None])[:, None, None]
        if self.case.causal:
            visible = visible & self.torch.ones(rows, keys, dtype=self.torch.bool).tril()
        attend = self.torch.nn.functional.scaled_dot_product_attention
        return lambda: attend(*batch, attn_mask=visible)


class TorchNested(TorchPadded):
    """Sequences as a nested tensor."""

    def varlen(self):
        if self.case.causal:  # on the CPU PyTorch has none for nested tensors
            return None
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        jagged = []
        for column in zip(*self.parts, strict=True):
            sequences = [x.transpose(0, 1) for x in column]
            made = self.torch.nested.as_nested_tensor(sequences, layout=self.torch.jagged)
            jagged.append(made.transpose(1, 2))
        return lambda: self._attend(*jagged)


CONTENDERS = {
    "ours": Ours,
    "ours-mlx": OursMLX,
    "ours-torch": OursTorch,
    "numpy": Formula,
    "mlx": MLX,
    "torch": Torch,
    "torch-padded": TorchPadded,
    "torch-nested": TorchNested,
}
