"""The benchmark program runs: every job and every contender that is installed, on small cases."""

import json
import subprocess
import sys

import pytest

from building import ROOT
from cases import Case, inputs


def run(*options: str, program: str = "run.py") -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / program), *options]
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


def test_pytorchs_tensors_against_pytorch(tmp_path):
    pytest.importorskip("torch")
    peers = {"forward": ["torch"], "backward": ["torch"], "decode": ["torch"], "varlen": ["torch", "torch-padded", "torch-nested"]}
    grid = ("--dtypes", "float16", "--dims", "16", "--lens", "48", "--heads", "4", "--masks", "full", "--threads", "1")
    names = ("--base", "ours-torch", "--peers", ",".join(peers["varlen"]))
    run("--job", ",".join(peers), *names, *grid, "--rounds", "1", "--seconds", "0.1", "--json", str(tmp_path / "torch.json"))
    lines = json.loads((tmp_path / "torch.json").read_text())["results"]
    assert {line["job"]: list(line["times"]) for line in lines} == {job: ["ours-torch", *names] for job, names in peers.items()}


@pytest.mark.parametrize("causal", [False, True])
def test_pytorchs_ways_for_different_lengths_agree(monkeypatch, causal):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import contenders

    case = Case(heads=2, dim=16, lengths=((5, 5), (9, 9), (2, 2)), causal=causal)
    arrays = inputs(case)
    made = {
        name: contenders.make(name, "varlen", case, arrays, torch.get_num_threads()) for name in contenders.CONTENDERS if "torch" in name
    }
    ours = made.pop("ours-torch")()
    assert (made["torch-nested"] is None) == causal
    for name, function in made.items():
        if function is not None:
            outs = function().unbind() if name == "torch-nested" else function()  # (heads, rows, dim) or (1, heads, rows, dim) of each
            for out, (start, end) in zip(outs, ((0, 5), (5, 14), (14, 16)), strict=True):
                torch.testing.assert_close(out.reshape(2, -1, 16)[:, : end - start].transpose(0, 1), ours[start:end])


def test_models():
    pytest.importorskip("transformers")
    out = run("--rows", "9", "--new", "2", "--layers", "1", "--heads", "2", "--dim", "8", "--rounds", "1", program="models.py")
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["prefill", "generate", "train"]
    assert out.count("(x") == 6


def test_memory(tmp_path):
    run("--memory", "--lens", "256", "--heads", "2", "--threads", "1", "--json", str(tmp_path / "memory.json"))
    (result,) = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert result["expected"]["inputs"] == 4 * 256 * 2 * 64 * 4
    assert 0 <= result["measured"] < 1.1 * sum(result["expected"].values())
