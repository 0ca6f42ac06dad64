"""The benchmark program runs: every job and every contender that is installed, on small cases."""

import json
import subprocess
import sys

import pytest

from building import ROOT


def run(*options: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--backend", "cpu", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def test_every_job_and_contender(tmp_path):
    pytest.importorskip("mlx.core")
    peers, jobs = "ours-mlx,numpy,mlx", "forward,backward,decode,varlen,short,overhead"
    grid = ("--dtypes", "bfloat16", "--dims", "16", "--lens", "48", "--heads", "4", "--masks", "causal", "--threads", "1,2")
    out = run("--job", jobs, "--peers", peers, *grid, "--rounds", "2", "--seconds", "0.2", "--json", str(tmp_path / "all.json"))
    made = json.loads((tmp_path / "all.json").read_text())
    lines = [line for line in made["results"] if "times" in line]
    assert [(line["job"], line["threads"]) for line in lines] == [(job, n) for n in (1, 2) for job in jobs.split(",")[:-1]]
    for line in lines:
        assert set(line["times"]) == {"ours", *peers.split(",")}, line["label"]
        assert line["label"] in out and line["peak"] > 0
    assert made["machine"]["processor"] and made["machine"]["commit"] is not None
    assert "overhead of a tiny call" in out


def test_memory(tmp_path):
    run("--memory", "--lens", "256", "--heads", "2", "--threads", "1", "--json", str(tmp_path / "memory.json"))
    (result,) = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert result["expected"]["inputs"] == 4 * 256 * 2 * 64 * 4
    assert 0 <= result["measured"] < 1.1 * sum(result["expected"].values())
