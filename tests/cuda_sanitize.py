"""A small list of cases on the GPU under compute-sanitizer: memcheck, racecheck, initcheck, synccheck. All must be clean.

python tests/cuda_sanitize.py [tool ...]     on a machine with an NVIDIA GPU, torch and compute-sanitizer (`make test-cuda` runs it)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SEARCHED = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


def run_cases() -> None:
    """The cases, in this process: every kernel, every layout, ragged tiles; results are compared with the reference, too."""
    import torch

    from cases import CacheCase, Case
    from judge import try_backward, try_forward, try_kvcache
    from target_torch import TorchTarget

    target = TorchTarget("cuda")
    attention = [
        Case(dtype="bfloat16", rows=70, keys=133, dim=64, causal=True, heads=4, kv_heads=2),
        Case(dtype="float16", rows=130, keys=65, dim=128, window=(20, 3), dropout=0.2),
        Case(dtype="bfloat16", rows=33, keys=40, dim=256, softcap=5.0, alibi="h"),
        Case(dtype="bfloat16", rows=33, keys=40, dim=40, value_dim=72, bias="bhqk", sink=True),
        Case(dtype="bfloat16", lengths=((37, 50), (0, 3), (64, 64), (5, 0)), causal=True, dim=64),
        Case(dtype="float32", rows=20, keys=35, dim=24, dropout=0.2, causal=True),
    ]
    caches = [
        CacheCase(dtype="bfloat16", dim=64, heads=8, kv_heads=2),
        CacheCase(dtype="float16", dim=128, new=3, rotary="interleaved", causal=True),
        CacheCase(dtype="bfloat16", dim=64, page=7, new=1, num_splits=3, leftpad=(4, 0)),
        CacheCase(dtype="bfloat16", dim=96, rows=5, causal=True, batch_index=True, alibi="h", sink=True),
    ]
    for case in attention:
        try_forward(target, case)
        try_backward(target, case)
    for case in caches:
        try_kvcache(target, case)
    torch.cuda.synchronize()
    print(f"{len(attention)} forward and backward, {len(caches)} caches: right")


def main(tools: list[str]) -> int:
    sanitizer = next((found for name in SEARCHED if (found := shutil.which(name))), None)
    if sanitizer is None:
        print("compute-sanitizer: not on this machine, skipped")
        return 0
    # torch's allocator would hide what lies behind an array
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    failed = 0
    for tool in tools:
        # torch's own kernels are not our business
        only = ["--kernel-regex-exclude", "kns=at::"] if tool in ("initcheck", "racecheck") else []
        command = [sanitizer, "--tool", tool, *only, "--error-exitcode", "9", sys.executable, str(Path(__file__).resolve()), "--cases"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", said)
        print(f"{tool}: {summary[-1] if summary else 'no summary'}", flush=True)
        if done.returncode != 0 or not summary:
            failed += 1
            print(said[-6000:])
    return failed


if __name__ == "__main__":
    if sys.argv[1:] == ["--cases"]:
        run_cases()
    else:
        sys.exit(main(sys.argv[1:] or list(TOOLS)))
