"""The package on MLX arrays, on a CPU device: public functions, gradients by mx.vjp. Eager, or as if values could not be had."""

from __future__ import annotations

import dataclasses
from unittest import mock

import mlx.core as mx
import numpy as np

import flash_attn
from flash_attn.frameworks.mlx import MLX
from tolerance import DTYPES


def to_mlx(value):
    """NumPy arrays as MLX arrays of the same memory layout; other things as they are."""
    if not isinstance(value, np.ndarray):
        return value
    owner = value
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    dtype = mx.bfloat16 if value.dtype == DTYPES["bfloat16"] else getattr(mx, value.dtype.name if value.dtype != bool else "bool_")
    flat = owner.reshape(-1)
    with mx.stream(mx.cpu):
        flat = mx.array(flat.view(np.uint16)).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(flat, dtype=dtype)
        if value.flags.c_contiguous and value.size == owner.size:
            made = flat.reshape(value.shape)
        else:
            offset = (value.__array_interface__["data"][0] - owner.__array_interface__["data"][0]) // value.itemsize
            made = mx.as_strided(flat, value.shape, [stride // value.itemsize for stride in value.strides], offset)
        mx.eval(made)
    return made


def to_numpy(array) -> np.ndarray:
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(DTYPES["bfloat16"])
    return np.array(array)


def attend(case, arrays, options):
    """(out, lse, probabilities) of the public function that the case names."""
    if case.packed == "qkv":
        return flash_attn.flash_attn_qkvpacked_func(arrays.packed, return_attn_probs=True, **options)
    if case.packed == "kv" and case.lengths is None:
        return flash_attn.flash_attn_kvpacked_func(arrays.q, arrays.packed, return_attn_probs=True, **options)
    if case.packed == "kv":
        return flash_attn.flash_attn_varlen_kvpacked_func(arrays.q, arrays.packed, *arrays.varlen, return_attn_probs=True, **options)
    if case.lengths is None:
        return flash_attn.flash_attn_func(arrays.q, arrays.k, arrays.v, return_attn_probs=True, **options)
    return flash_attn.flash_attn_varlen_func(arrays.q, arrays.k, arrays.v, *arrays.varlen, return_attn_probs=True, **options)


class MLXTarget:
    name = "mlx"

    def takes(self, case) -> bool:
        return True

    def _run(self, function, values):
        return function(*values)

    def forward(self, case, arrays):
        made, names, options = _inputs(arrays, ("q", "k", "v", "packed"))

        def function(*values):
            some, keywords = _with(made, options, names, values)
            out, lse, probabilities = attend(case, some, keywords)
            if not case.dropout:
                assert probabilities.shape == (0,), f"S_dmask without dropout: expected (0,), found {probabilities.shape}"
            return [out, lse, probabilities]

        out, lse, probabilities = self._run(function, _values(made, options, names))
        return to_numpy(out), to_numpy(lse), to_numpy(probabilities) if case.dropout else None

    def backward(self, case, arrays, dout, dlse):
        made, names, options = _inputs(arrays, ("packed",) if case.packed == "qkv" else ("q", "packed" if case.packed else "k", "v"))
        inputs = [name for name in names if name in ("q", "k", "v", "packed", "attn_bias", "learnable_sink")]
        inputs = [name for name in inputs if name not in options or options[name].dtype != mx.bool_]
        cotangents = [to_mlx(dout)] + ([] if dlse is None else [to_mlx(dlse)])

        def function(*values):
            def outputs(*inputs_):
                some, keywords = _with(made, options, [*names, *inputs], [*values, *inputs_])
                return list(attend(case, some, keywords)[: len(cotangents)])

            return mx.vjp(outputs, [value for name, value in zip(names, values, strict=True) if name in inputs], cotangents)[1]

        found = dict(zip(inputs, self._run(function, _values(made, options, names)), strict=True))
        if "packed" in found:
            packed = found.pop("packed")
            parts = ("q", "k", "v") if case.packed == "qkv" else ("k", "v")
            found |= {name: packed[..., i, :, :] for i, name in enumerate(parts)}
        found = {name: to_numpy(x) for name, x in found.items()}
        results = {"d" + name: found[name] for name in ("q", "k", "v")}
        return results | {"dbias": found.get("attn_bias"), "dsink": found.get("learnable_sink")}

    def with_kvcache(self, case, arrays):
        made, names, options = _inputs(arrays, ("q", "k", "v", "k_cache", "v_cache"))

        def function(*values):
            some, keywords = _with(made, options, names, values)
            out, lse = flash_attn.flash_attn_with_kvcache(
                some.q, some.k_cache, some.v_cache, some.k, some.v, return_softmax_lse=True, **keywords
            )
            return [out, lse, some.k_cache, some.v_cache]

        return tuple(to_numpy(x) for x in self._run(function, _values(made, options, names)))


class TracedMLXTarget(MLXTarget):
    """What runs in compiled functions, without MLX's compiler, which calls g++ for every new kernel."""

    name = "mlx_traced"

    def _run(self, function, values):
        with mock.patch.object(MLX, "traced", lambda self, arrays: True):
            return function(*values)


def _inputs(arrays, fields):
    """The inputs as MLX arrays, the names of those that a compiled function takes as arguments, and the options."""
    made = dataclasses.replace(
        arrays, **{f.name: to_mlx(getattr(arrays, f.name)) for f in dataclasses.fields(arrays) if f.name != "options"}
    )
    made.varlen = tuple(to_mlx(x) for x in arrays.varlen)
    options = {name: to_mlx(value) for name, value in arrays.options.items()}
    names = [name for name in fields if getattr(made, name) is not None]
    names += [name for name, value in options.items() if isinstance(value, mx.array)]
    return made, names, options


def _values(made, options, names):
    return [options[name] if name in options else getattr(made, name) for name in names]


def _with(made, options, names, values):
    given = dict(zip(names, values, strict=True))
    some = dataclasses.replace(made, **{name: value for name, value in given.items() if name not in options})
    return some, options | {name: value for name, value in given.items() if name in options}
