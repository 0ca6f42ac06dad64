"""Writes the complete Metal text of every kernel variant that the self-test runs into a folder, for a compiler to look at.

    python tools/metal_variants.py FOLDER [--quick]
    for text in FOLDER/{torch,mlx}_*.metal; do xcrun -sdk macosx metal -std=metal3.1 -c "$text" -o /dev/null || echo "$text"; done

torch_*.metal are the texts that PyTorch compiles. With MLX 0.32 or newer installed, mlx_*.metal are what MLX makes of the same kernels,
behind its own header, and metal4_*.metal what it makes of those that only GPUs with tensor operations run: they need -std=metal4.0. Prints
how many there are.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from flash_attn import _core, engine, selftest
from flash_attn.call import DTYPES, METAL, Options, Pass, Role
from flash_attn.runners import metal
from flash_attn.small_calls import Shape

TENSORS = 17  # a generation of GPUs with tensor operations


def calls(quick: bool, generation: int) -> Iterator[tuple[_core.Prepared, dict[int, int]]]:
    """(plan, dtypes of the caller's arrays) of all cases, by our kernel and the plain one; and of appending, which has only one."""
    for case in selftest.cases(quick):
        codes = {role: array.code for role, array in case.call.arrays.items()}
        codes |= {Role.OUT: codes[Role.Q], Role.LSE: DTYPES["float32"]}
        for plain in (False, True):
            yield selftest.plan(case.call, plain=plain, index=generation), codes
    for name in selftest.DTYPE_WORDS:
        code = DTYPES[name]
        cache, new, table = Shape(code, (2, 64, 2, 64)), Shape(code, (2, 3, 2, 64)), Shape(code, (64, 16))
        shapes = {Role.Q: Shape(code, (2, 3, 4, 64)), Role.K: cache, Role.V: cache, Role.NEW_K: new, Role.NEW_V: new}
        shapes |= {Role.COS: table, Role.SIN: table, Role.LENGTHS: Shape(DTYPES["int32"], (2,))}
        views = [(role, engine.shape_of(x.code, x.sizes, METAL)) for role, x in shapes.items()]
        prepared = _core.prepare("flash_attn_with_kvcache", Pass.APPEND, views, Options(wants=1 << Role.ROTATED_Q))
        yield prepared, {role: shape.code for role, shape in shapes.items()}


def launches(quick: bool, generation: int = 0) -> Iterator[tuple[_core.Prepared, metal.Launch, dict[str, int]]]:
    """(plan, launch, dtypes of its arrays by name) of every launch of our kernels."""
    for prepared, codes in calls(quick, generation):
        for launch in metal.launches_of(prepared):
            if launch.source:
                yield prepared, launch, metal.codes_of(launch, prepared, codes)


def texts(quick: bool = False) -> dict[str, str]:
    """What PyTorch's runner compiles, by file name: each variant, with and without words of 16 bytes."""
    found: dict[str, str] = {}
    for prepared, launch, codes in launches(quick):
        for vector in (None, metal.NONE):
            text = metal.complete_text(launch.variant(prepared.pass_, False, vector), codes)
            found[f"torch_{launch.kernel}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"] = text
    return found


def texts_of_mlx(quick: bool = False) -> dict[str, str]:
    """What MLX compiles, with its header before it."""
    known = {launch.kernel for _, launch, _ in launches(quick)}
    new = [one for one in launches(quick, TENSORS) if one[1].kernel not in known]
    return _captured("mlx", launches(quick)) | _captured("metal4", new)


def _captured(prefix: str, launched: Iterable[tuple[_core.Prepared, metal.Launch, dict[str, int]]]) -> dict[str, str]:
    import numpy as np

    from flash_attn.runners import metal_mlx
    from metal_emulator.capture import capture, mlx_utils, numpy_dtype

    found: dict[str, str] = {}
    for prepared, launch, codes in launched:
        variant = metal_mlx.variant_of(launch, prepared)
        name = f"{prefix}_{launch.kernel}_{hashlib.sha256(repr((variant, codes)).encode()).hexdigest()[:16]}"
        if name in found or prepared.pass_ == Pass.APPEND:  # MLX writes into caches in its own way
            continue
        dtypes = {array: metal_mlx.DTYPE_OF[code] for array, code in codes.items()}
        captured = capture(
            metal_mlx.kernel_of(variant),
            [*(np.zeros((2, 2, 2, 2), numpy_dtype(dtypes[array])) for array in variant.inputs[:-1]), np.zeros(64, np.int32)],
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(16,)] * len(variant.outputs),
            output_dtypes=[dtypes[array] for array in variant.outputs],
        )
        found[name] = captured.text
        assert captured.text.startswith(mlx_utils())
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer head dims and dtypes")
    given = parser.parse_args(arguments)
    found = texts(given.quick)
    if importlib.util.find_spec("mlx") is not None:
        found |= texts_of_mlx(given.quick)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, text in found.items():
        (given.folder / f"{name}.metal").write_text(text, encoding="ascii")
    print(f"{len(found)} texts in {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
