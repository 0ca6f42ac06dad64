#!/usr/bin/env python3
"""A small language model of Hugging Face transformers with its attention on "eager", "sdpa" and "flash_attn": before and after.

    python benchmarks/models.py                                     Llama of 4 layers, 8 heads of 64 (4 of keys), random weights
    python benchmarks/models.py --jobs prefill,generate --rows 1024 --dtype bfloat16 --threads 2

Jobs: a prefill without gradients, generation of new tokens with a cache after a prompt, and a training step (loss and gradients). In
each round every implementation runs each job once, in a rotating order. Medians in milliseconds; behind them the median over rounds
of its time / that of "flash_attn" (above 1: ours is faster).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

OURS = "flash_attn"
IMPLEMENTATIONS = (OURS, "sdpa", "eager")
JOBS = ("prefill", "generate", "train")


def words(text: str) -> list[str]:
    return text.split(",")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=words, default=list(JOBS))
    parser.add_argument("--rows", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8, help="query heads; half as many for keys and values")
    parser.add_argument("--dim", type=int, default=64, help="head dim")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def models(args: argparse.Namespace) -> dict:
    """The same weights on each implementation."""
    import torch
    import transformers

    import flash_attn.transformers

    flash_attn.transformers.register()
    size = args.heads * args.dim
    config = {
        "vocab_size": 1000,
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.heads // 2,
        "max_position_embeddings": args.rows + args.new,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    made = {}
    for name in IMPLEMENTATIONS:
        torch.manual_seed(0)
        made[name] = transformers.LlamaForCausalLM._from_config(
            transformers.LlamaConfig(**config), attn_implementation=name, dtype=getattr(torch, args.dtype)
        )
    return made


def jobs(model, tokens, new: int) -> dict[str, Callable[[], object]]:
    import torch

    def prefill():
        with torch.no_grad():
            return model.eval()(tokens, logits_to_keep=1)

    def train():
        model.train()
        model(tokens, labels=tokens).loss.backward()
        model.zero_grad()

    def generate():
        mask = torch.ones_like(tokens)
        return model.eval().generate(tokens, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)

    return {"prefill": prefill, "generate": generate, "train": train}


def measure(functions: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):  # the first is not counted
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            functions[name]()
            if turn >= 0:
                times[name].append(clock() - start)
    return times


def main() -> None:
    args = parse()
    os.environ["FLASH_ATTENTION_NUM_THREADS"] = str(args.threads)  # read once
    import machine
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    description = machine.describe()
    print(", ".join(f"{k} {v}" for k, v in description.items() if k not in ("versions", "load")), f"(load {description['load']})")
    print(", ".join(f"{k} {v}" for k, v in (description["versions"] | {"transformers": transformers.__version__}).items()))
    made = models(args)
    tokens = torch.randint(1, 1000, (args.batch, args.rows), generator=torch.Generator().manual_seed(1))
    shape = f"{args.layers} layers, {args.heads} heads of {args.dim}, {args.batch} x {args.rows} tokens, {args.dtype}"
    print(f"Llama, {shape}, {args.threads} threads: milliseconds (its time / ours)")
    print(f"  {'':10s}" + "".join(f"{name:>20s}" for name in IMPLEMENTATIONS))
    for job in args.jobs:
        times = measure({name: jobs(model, tokens, args.new)[job] for name, model in made.items()}, args.rounds, clock)
        cells = []
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, times[OURS], strict=True))
            cells.append(f"{1e3 * statistics.median(seconds):.1f}" + ("" if name == OURS else f" (x{ratio:.2f})"))
        print(f"  {job:10s}" + "".join(f"{cell:>20s}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
