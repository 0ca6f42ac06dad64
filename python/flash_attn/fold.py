"""Attention over a mapped axis (vmap): the axis is folded into the batch, so one call serves all of it.

What cannot be folded, because one array serves the whole batch or because sequences are packed, is called entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flash_attn import formula
from flash_attn.call import Arrays, Options, Role

Operation = Callable[[Arrays, Options], Arrays]

_WHOLE = (Role.SEED, Role.SINK)  # no batch axis: folded only if not mapped
_BATCHED = (Role.Q, Role.K, Role.V, Role.USED_ROWS, Role.USED_KEYS, Role.DOUT, Role.OUT, Role.LSE, Role.DLSE)


def mapped(xp: Any, arrays: Arrays, axes: dict[int, int | None], options: Options, operation: Operation) -> Arrays:
    """operation(arrays, options), which returns arrays by role, for each entry along `axes`; results have that axis first."""
    arrays = {role: x if axes.get(role) is None else xp.moveaxis(x, axes[role], 0) for role, x in arrays.items()}
    sizes = {role: arrays[role].shape[0] for role in arrays if axes.get(role) is not None}
    count = next(iter(sizes.values()))
    if _folds(arrays, sizes, options):
        return _folded(xp, arrays, sizes, count, options, operation)
    results = [operation({role: x[n] if role in sizes else x for role, x in arrays.items()}, options) for n in range(count)]
    return {role: xp.stack([result[role] for result in results]) for role in results[0]}


def _folds(arrays: Arrays, sizes: dict[int, int], options: Options) -> bool:
    if Role.CU_ROWS in arrays or any(role in sizes for role in _WHOLE):
        return False
    # dropout depends on the batch index: a backward folds iff its forward did, for which these arrays were not there
    return not options.dropout or any(role not in (Role.DOUT, Role.OUT, Role.LSE, Role.DLSE) for role in sizes)


def _folded(xp: Any, arrays: Arrays, sizes: dict[int, int], count: int, options: Options, operation: Operation) -> Arrays:
    batch = arrays[Role.Q].shape[1 if Role.Q in sizes else 0]
    backward = Role.DOUT in arrays

    def fold(role: int, x: Any) -> Any:
        if role not in sizes:
            x = xp.broadcast_to(x[None], (count, *x.shape))
        return xp.reshape(x, (count * batch, *x.shape[2:]))

    folded: Arrays = {}
    for role, x in arrays.items():
        if role in _BATCHED:
            folded[role] = fold(role, x)
        elif role == Role.SLOPES and (role in sizes or len(x.shape) == 2):
            if len(x.shape) == 2 and role in sizes:  # a slope for each head and entry
                x = xp.broadcast_to(x[:, None], (count, batch, x.shape[1]))
            folded[role] = fold(role, x)
        elif role == Role.BIAS:
            folded[role] = _folded_bias(xp, x, role in sizes, count, batch, fold, backward)
        else:
            folded[role] = x
    sink_wanted = bool(options.wants >> Role.DSINK & 1)
    results = operation(folded, options._replace(wants=options.wants & ~(1 << Role.DSINK)))
    unfolded = {role: xp.reshape(x, (count, batch, *x.shape[1:])) for role, x in results.items()}
    if Role.DBIAS in unfolded:
        unfolded[Role.DBIAS] = _unfolded_bias(xp, unfolded[Role.DBIAS], arrays[Role.BIAS], Role.BIAS in sizes)
    if sink_wanted:  # the core's is summed over the whole batch
        shares = formula.sink_gradient(xp, folded)
        shares = xp.reshape(shares, (count, batch, *shares.shape[1:]))
        unfolded[Role.DSINK] = xp.astype(xp.sum(shares, axis=1), arrays[Role.SINK].dtype)
    return unfolded


def _folded_bias(xp: Any, bias: Any, is_mapped: bool, count: int, batch: int, fold: Callable, backward: bool) -> Any:
    own = bias.shape[1:] if is_mapped else bias.shape
    ones = (1,) * (4 - len(own))
    if not is_mapped and not backward and (ones or own[0] == 1):
        return bias  # one for the whole batch
    bias = xp.reshape(bias, (count, *ones, *own) if is_mapped else (*ones, *own))
    lead = (count,) if is_mapped else ()
    bias = fold(Role.BIAS, xp.broadcast_to(bias, (*lead, batch, *bias.shape[-3:])))
    is_narrow = backward and bias.dtype not in (xp.bool_, xp.float64)
    return xp.astype(bias, xp.float32) if is_narrow else bias  # its gradient is summed over the batch afterwards


def _unfolded_bias(xp: Any, gradient: Any, bias: Any, is_mapped: bool) -> Any:
    own = bias.shape[1:] if is_mapped else bias.shape
    if len(own) < 4 or own[0] == 1:
        gradient = xp.sum(gradient, axis=1, keepdims=True)
    return xp.astype(xp.reshape(gradient, (gradient.shape[0], *own)), bias.dtype)
