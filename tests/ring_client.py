"""One of two gloo processes that run ring-flash-attn and yunchang on our functions; test_clients.py starts both.

    ring_client.py RANK WORLD FOLDER

Each case shards one attention over the processes, and is compared with the same attention in one process: out, lse, gradients. Rank 0
writes {case: "" or what is wrong} to FOLDER/results.json.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

import flash_attn

BATCH, ROWS, HEADS, KV_HEADS, DIM = 2, 48, 4, 2, 16
# not float32: ring-flash-attn keeps its sums with .to(float32), which would be the buffers themselves
DTYPE, TOLERANCE = torch.float16, 4e-3
LENGTHS = (16, 4, 28)  # multiples of 2 * world: zigzag cuts each sequence into that many chunks


def halves(rank: int, world: int, rows: int) -> list[int]:
    return list(range(rank * rows // world, (rank + 1) * rows // world))


def zigzag(rank: int, world: int, rows: int) -> list[int]:
    chunk = rows // (2 * world)
    both = (rank, 2 * world - 1 - rank)
    return [i for part in both for i in range(part * chunk, (part + 1) * chunk)]


def stripes(rank: int, world: int, rows: int) -> list[int]:
    return list(range(rank, rows, world))


def each_sequence(shard):
    def sharded(rank: int, world: int, rows: int) -> list[int]:
        starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
        return [start + i for start, length in zip(starts, LENGTHS) for i in shard(rank, world, length)]

    return sharded


def cumulative(lengths) -> torch.Tensor:
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)


class Case:
    """Global arrays, the single-process result, and the comparison of a shard with it."""

    def __init__(self, packed: bool, causal: bool, heads_k: int = KV_HEADS):
        torch.manual_seed(3)
        lead = (ROWS,) if packed else (BATCH, ROWS)
        self.axis = 0 if packed else 1
        self.q, self.k, self.v = (torch.randn(*lead, n, DIM).to(DTYPE).requires_grad_() for n in (HEADS, heads_k, heads_k))
        self.dout = torch.randn(*lead, HEADS, DIM).to(DTYPE)
        if packed:
            cu, longest = cumulative(LENGTHS), max(LENGTHS)
            call = flash_attn.flash_attn_varlen_func
            self.out, self.lse, _ = call(self.q, self.k, self.v, cu, cu, longest, longest, causal=causal, return_attn_probs=True)
        else:
            self.out, self.lse, _ = flash_attn.flash_attn_func(self.q, self.k, self.v, causal=causal, return_attn_probs=True)
        self.gradients = torch.autograd.grad(self.out, (self.q, self.k, self.v), self.dout)

    def run(self, shard, rank: int, world: int, function) -> None:
        """function(q, k, v) -> out or (out, lse, ...) of a shard."""
        index = torch.tensor(shard(rank, world, ROWS))
        local = [x.detach().index_select(self.axis, index).requires_grad_() for x in (self.q, self.k, self.v)]
        out, lse = function(*local)
        gradients = torch.autograd.grad(out, local, self.dout.index_select(self.axis, index))
        expected = [x.index_select(self.axis, index) for x in (self.out, *self.gradients)]
        for name, found, wanted in zip(("out", "dq", "dk", "dv"), (out, *gradients), expected):
            torch.testing.assert_close(
                found, wanted.detach(), atol=TOLERANCE, rtol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
            )
        if lse is not None:
            torch.testing.assert_close(lse, self.lse.index_select(-1, index).detach(), atol=TOLERANCE, rtol=TOLERANCE)


def ring_cases(rank: int, world: int):
    # its adapter for transformers wants a name that transformers 5 has dropped
    import transformers.modeling_flash_attention_utils as utils

    if not hasattr(utils, "is_flash_attn_greater_or_equal_2_10"):
        utils.is_flash_attn_greater_or_equal_2_10 = lambda: True
    import ring_flash_attn as ring

    def dense(name: str, function, shard, causal: bool):
        def call(q, k, v):
            return function(q, k, v, causal=causal, return_attn_probs=True)[:2]

        yield f"{name}, causal" if causal else name, lambda: Case(False, causal).run(shard, rank, world, call)

    yield from dense("ring", ring.ring_flash_attn_func, halves, False)
    yield from dense("ring", ring.ring_flash_attn_func, halves, True)
    yield from dense("zigzag", ring.zigzag_ring_flash_attn_func, zigzag, True)
    yield from dense("stripe", ring.stripe_flash_attn_func, stripes, True)

    def packed(function):
        cu, longest = cumulative([n // world for n in LENGTHS]), max(LENGTHS) // world

        def call(q, k, v):  # the lse of its packed forms is laid out by its own rules
            return function(q, k, v, cu, longest, causal=True, return_attn_probs=True)[0], None

        return call

    yield "ring, packed", lambda: Case(True, True).run(each_sequence(halves), rank, world, packed(ring.ring_flash_attn_varlen_func))
    yield (
        "zigzag, packed",
        lambda: Case(True, True).run(each_sequence(zigzag), rank, world, packed(ring.zigzag_ring_flash_attn_varlen_func)),
    )

    def llama3(q, k, v):
        cu_q, cu_k, max_q, max_k, keys = ring.llama3_flash_attn_prepare_cu_seqlens(
            cumulative(LENGTHS), causal=True, rank=rank, world_size=world
        )
        return ring.llama3_flash_attn_varlen_func(
            q, k, v, cu_q, cu_k, max_q, max_k, heads_k_stride=1, local_k_slice=keys, causal=True, return_attn_probs=True
        )[:2]

    yield "llama3, packed", lambda: Case(True, True).run(halves, rank, world, llama3)


def yunchang_cases(rank: int, world: int):
    import yunchang

    yunchang.set_seq_parallel_pg(1, world, rank, world)
    for kind, shard in (("basic", halves), ("zigzag", zigzag), ("strip", stripes)):
        ring = yunchang.LongContextAttention(ring_impl_type=kind, attn_type=yunchang.kernels.AttnType.FA)

        def in_a_ring(q, k, v, layer=ring):
            return layer(q, k, v, causal=True), None

        yield f"yunchang, {kind} ring", lambda shard=shard, call=in_a_ring: Case(False, True, HEADS).run(shard, rank, world, call)

    heads_apart = yunchang.UlyssesAttention(dist.group.WORLD, attn_type=yunchang.kernels.AttnType.FA)

    def ulysses(q, k, v):
        return heads_apart(q, k, v, causal=True, softcap=0.0), None

    yield "yunchang, ulysses", lambda: Case(False, True, HEADS).run(halves, rank, world, ulysses)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(32, 3 * 32)

    def forward(self, x):
        return flash_attn.flash_attn_qkvpacked_func(self.qkv(x).unflatten(-1, (3, 2, 16)), causal=True).flatten(2)


def data_parallel_cases(rank: int, world: int):
    def check():
        torch.manual_seed(4)
        whole, x = Block(), torch.randn(2 * world, 9, 32)
        parallel = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(whole))
        parallel(x[2 * rank : 2 * rank + 2]).square().mean().backward()
        whole(x).square().mean().backward()
        for found, expected in zip(parallel.module.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad)

    yield "DistributedDataParallel", check


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    results = {}
    for cases in (data_parallel_cases, ring_cases, yunchang_cases):
        for name, check in cases(rank, world):
            wrong = ""
            try:
                check()
            except Exception:
                wrong = f"rank {rank}: {traceback.format_exc()}"
            everyone = [None] * world
            dist.all_gather_object(everyone, wrong)
            results[name] = "\n".join(filter(None, everyone))
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
