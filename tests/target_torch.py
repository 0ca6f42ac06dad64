"""The package on PyTorch tensors, as a target of the shared tables: public functions, and torch.autograd for gradients."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def to_torch(array):
    """A CPU tensor on the same memory, with the same strides where torch has such (it has no negative ones)."""
    if not isinstance(array, np.ndarray):
        return array
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    if not array.flags.writeable:  # broadcast along the first axis
        return to_torch(array[:1].copy()).expand(array.shape)
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor):
    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    return tensor.view(torch.uint16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


class TorchTarget:
    """Tensors of one device."""

    def __init__(self, device: str = "cpu"):
        self.device, self.name = device, "torch" if device == "cpu" else f"torch-{device}"

    def tensor(self, array):
        """A tensor on the device with the same strides, or what is no array as it is."""
        tensor = to_torch(array)
        if self.device == "cpu" or not isinstance(tensor, torch.Tensor):
            return tensor
        memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).to(self.device)
        return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def converted(self, options):
        return {name: self.tensor(value) for name, value in options.items()}

    def takes(self, case) -> bool:
        return True

    def _call(self, case, q, k, v, packed, varlen, options):
        import flash_attn

        options = dict(options, return_attn_probs=True)
        if case.packed == "qkv":
            return flash_attn.flash_attn_qkvpacked_func(packed, **options)
        if case.packed == "kv":
            function = flash_attn.flash_attn_kvpacked_func if case.lengths is None else flash_attn.flash_attn_varlen_kvpacked_func
            return function(q, packed, *varlen, **options)
        function = flash_attn.flash_attn_func if case.lengths is None else flash_attn.flash_attn_varlen_func
        return function(q, k, v, *varlen, **options)

    def _tensors(self, arrays):
        return [self.tensor(x) for x in (arrays.q, arrays.k, arrays.v, arrays.packed)], [self.tensor(x) for x in arrays.varlen]

    def forward(self, case, arrays):
        tensors, varlen = self._tensors(arrays)
        out, lse, probabilities = self._call(case, *tensors, varlen, self.converted(arrays.options))
        if not case.dropout:
            assert probabilities.shape == (0,), f"S_dmask without dropout: expected (0,), found {tuple(probabilities.shape)}"
            probabilities = None
        return to_numpy(out), to_numpy(lse), to_numpy(probabilities)

    def backward(self, case, arrays, dout, dlse):
        (q, k, v, packed), varlen = self._tensors(arrays)
        options = self.converted(arrays.options)
        names = {"dq": q, "dk": k, "dv": v}
        bias, sink = options.get("attn_bias"), options.get("learnable_sink")
        if bias is not None and bias.is_floating_point():
            names["dbias"] = bias
        if sink is not None:
            names["dsink"] = sink
        if packed is not None:  # its gradient, taken apart as q, k and v were
            names = {name: x for name, x in names.items() if name not in (("dk", "dv") if case.packed == "kv" else ("dq", "dk", "dv"))}
            names["packed"] = packed
        leaves = [x.detach().requires_grad_() for x in names.values()]
        given = dict(zip(names, leaves))
        options.update({option: given[name] for option, name in (("attn_bias", "dbias"), ("learnable_sink", "dsink")) if name in given})
        q, k, v = (given.get(name, x) for name, x in (("dq", q), ("dk", k), ("dv", v)))
        out, lse, _ = self._call(case, q, k, v, given.get("packed"), varlen, options)
        outputs, gradients = [out], [self.tensor(dout)]
        if dlse is not None:
            outputs.append(lse)
            gradients.append(self.tensor(dlse))
        found = dict(zip(names, torch.autograd.grad(outputs, leaves, gradients)))
        if packed is not None:
            parts = found.pop("packed").unbind(-3)
            found.update(zip(("dk", "dv") if case.packed == "kv" else ("dq", "dk", "dv"), parts))
        return {name: to_numpy(found.get(name)) for name in ("dq", "dk", "dv", "dbias", "dsink")}

    def with_kvcache(self, case, arrays):
        import flash_attn

        caches = []
        for cache in (arrays.k_cache, arrays.v_cache):
            caches.append(self.tensor(cache))
        out, lse = flash_attn.flash_attn_with_kvcache(
            self.tensor(arrays.q),
            *caches,
            self.tensor(arrays.k),
            self.tensor(arrays.v),
            return_softmax_lse=True,
            **self.converted(arrays.options),
        )
        return to_numpy(out), to_numpy(lse), *(to_numpy(cache) for cache in caches)
