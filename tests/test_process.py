"""Calls among what else happens in a process: Ctrl-C, fork, threads, exit; and that no call leaves memory behind."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import flash_attn
import flash_attn.numpy
from bad_calls import RULES, check_rule, dense, growing
from building import run
from flash_attn import flash_attn_func

START = """
import os, signal, sys, threading, time
import numpy as np
import flash_attn, flash_attn.numpy
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in its background ignores it
random = np.random.default_rng(0)
def arrays(rows, n=3):
    return [random.standard_normal((1, rows, 8, 64), np.float32) for _ in range(n)]
"""
LONG = {
    "forward": "q, k, v = arrays(65536)\nprint(flush=True)\nflash_attn.flash_attn_func(q, k, v)",
    "backward": "dout, q, k, v, out = arrays(65536, 5)\nlse = np.zeros((1, 8, 65536), np.float32)\nprint(flush=True)\n"
    "flash_attn.numpy.backward(dout, q, k, v, out, lse)",
    "plain": "q, k, v = (x.astype(np.float64) for x in arrays(8192))\nprint(flush=True)\nflash_attn.flash_attn_func(q, k, v)",
}


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_ends_a_long_call(name):
    """These take a minute or more."""
    with subprocess.Popen([sys.executable, "-c", START + LONG[name]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.readline()
        time.sleep(0.3)
        assert child.poll() is None, child.stderr.read()
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, said = child.communicate()
        assert "KeyboardInterrupt" in said
        assert time.monotonic() - start < 2


def test_a_forked_child_calls():
    """With workers of its own: those of its parent are not there."""
    code = """
os.environ["FLASH_ATTENTION_NUM_THREADS"] = "2"
q, k, v = arrays(600)
before = flash_attn.flash_attn_func(q, k, v)
child = os.fork()
if child == 0:
    same = (flash_attn.flash_attn_func(q, k, v) == before).all()
    alone = sys.platform == "linux" and len(os.listdir("/proc/self/task")) < 2
    os._exit(0 if same and not alone else 1)
assert os.waitpid(child, 0)[1] == 0
assert (flash_attn.flash_attn_func(q, k, v) == before).all()
"""
    run(sys.executable, "-W", "ignore", "-c", START + code, timeout=60)


def test_exit_while_a_thread_calls():
    code = """
q, k, v = arrays(1000)
def work():
    while True:
        flash_attn.flash_attn_func(q, k, v)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""
    for _ in range(3):
        run(sys.executable, "-c", START + code, timeout=60)


def test_many_threads_call_at_once(monkeypatch):
    """Sizes for which each call wants the workers."""
    monkeypatch.setenv("FLASH_ATTENTION_NUM_THREADS", "2")
    random = np.random.default_rng(0)
    calls = [[random.standard_normal((1, 200 + 40 * i, 8, 32), np.float32) for _ in range(3)] for i in range(8)]
    expected = [flash_attn_func(*call, causal=True) for call in calls]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(40):
            if not np.array_equal(flash_attn_func(*calls[i], causal=True), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_call_leaks():
    """Neither right ones nor wrong ones, neither memory nor references."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, 64, 4, 64), np.float32) for _ in range(3))  # 64 KiB each
    rules = RULES[::9]

    def calls() -> None:
        out, lse, _ = flash_attn_func(q, k, v, causal=True, dropout_p=0.1, return_attn_probs=True, rng_state=np.array([1, 0]))
        flash_attn.numpy.backward(out, q, k, v, out, lse, causal=True, attn_bias=np.zeros((64, 64), np.float32))
        flash_attn.flash_attn_with_kvcache(**growing())
        flash_attn.explain(flash_attn_func, **dense())
        for rule in rules:
            check_rule(rule)

    def largest() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    for _ in range(30):
        calls()
    references, before = [sys.getrefcount(x) for x in (q, k, v)], largest()
    for _ in range(300):
        calls()
    assert [sys.getrefcount(x) for x in (q, k, v)] == references
    assert largest() - before < 4 << 20
