"""Programs of others on CPU tensors: transformers, peft, diffusers, and ring-flash-attn and yunchang with two processes.

Small models with random weights; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

# ---- transformers ------------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": None,
}
# model -> (what it is compared with, what is special about it): SDPA knows neither soft caps nor sinks
MODELS = {
    "Llama": ("sdpa", {}),
    "Mistral": ("sdpa", {"sliding_window": 7}),
    "Gemma2": ("eager", {"sliding_window": 7, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}),
    "GptOss": ("eager", {"sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
}


def model_of(name: str, implementation: str):
    transformers = pytest.importorskip("transformers")
    import flash_attn.transformers

    flash_attn.transformers.register()
    flash_attn.transformers.register()
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL | MODELS[name][1])
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """(our model, the same model on another implementation, tokens, a mask with padding on the left)."""
    ours, theirs = (model_of(request.param, name) for name in ("flash_attn", MODELS[request.param][0]))
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(1, 99, (3, 23), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :9], mask[2, :2] = 0, 0
    return ours, theirs, tokens, mask


@torch.no_grad()
def test_logits(pair):
    ours, theirs, tokens, mask = pair
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=2e-6, rtol=1e-5)
    found, expected = (model(tokens, attention_mask=mask).logits[mask.bool()] for model in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_a_sliding_window_is_no_mask(pair, monkeypatch):
    """Of rows x keys, that is: what slides says so, and padding is a row of the batch."""
    import flash_attn

    ours, _, tokens, mask = pair
    window = getattr(ours.config, "sliding_window", None)
    calls, real = [], flash_attn.flash_attn_func

    def spy(*args, **options):
        calls.append((options.get("window_size"), options.get("attn_bias")))
        return real(*args, **options)

    monkeypatch.setattr(flash_attn.interface, "flash_attn_func", spy)
    ours(tokens)
    ours(tokens, attention_mask=mask)
    sizes = {size for size, _ in calls}
    assert sizes == {(-1, -1)} if window is None else (window - 1, window - 1) in sizes
    assert all(bias is None or bias.shape[-2] == 1 for _, bias in calls)


def test_generate(pair):
    ours, theirs, tokens, mask = pair
    for given in ({}, {"attention_mask": mask}):
        found, expected = (m.generate(tokens, max_new_tokens=12, do_sample=False, **given) for m in (ours, theirs))
        assert torch.equal(found, expected)


def test_training_step(pair):
    ours, theirs, tokens, mask = pair
    labels = tokens.masked_fill(mask == 0, -100)
    labels[0, 9] = labels[2, 2] = -100  # predicted from a padded row, of which every implementation has its own idea
    for model in (ours, theirs):
        model.train()
        model.zero_grad()
        model(tokens, labels=labels, attention_mask=mask).loss.backward()
        model.eval()
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_generate_with_a_static_cache():
    ours, theirs = model_of("Llama", "flash_attn"), model_of("Llama", "sdpa")
    tokens = torch.randint(1, 99, (2, 9))
    found = ours.generate(tokens, max_new_tokens=6, do_sample=False, cache_implementation="static", disable_compile=True)
    assert torch.equal(found, theirs.generate(tokens, max_new_tokens=6, do_sample=False))


@torch.no_grad()
def test_sequences_packed_into_a_row():
    ours, theirs = model_of("Llama", "flash_attn"), model_of("Llama", "sdpa")
    tokens, places = torch.randint(1, 99, (1, 20)), torch.cat([torch.arange(8), torch.arange(12)])[None]
    found, expected = (model(tokens, position_ids=places).logits for model in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_a_compiled_model():
    ours, tokens = model_of("Llama", "flash_attn"), torch.randint(1, 99, (2, 9))
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens).logits, ours(tokens).logits)


@torch.no_grad()
def test_an_encoder():
    transformers = pytest.importorskip("transformers")
    import flash_attn.transformers

    flash_attn.transformers.register()
    config = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    models = []
    for name in ("flash_attn", "sdpa"):
        torch.manual_seed(0)
        models.append(transformers.BertModel._from_config(transformers.BertConfig(**config), attn_implementation=name).eval())
    tokens, mask = torch.randint(1, 99, (3, 23)), torch.ones(3, 23, dtype=torch.int64)
    mask[0, 15:] = 0
    found, expected = (model(tokens, attention_mask=mask).last_hidden_state[mask.bool()] for model in models)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_transformers_finds_the_package():
    pytest.importorskip("transformers")
    from transformers.utils import is_flash_attn_greater_or_equal
    from transformers.utils.import_utils import _is_package_available

    assert _is_package_available("flash_attn", return_version=True)[0]
    assert is_flash_attn_greater_or_equal("2.3.3") and not is_flash_attn_greater_or_equal("2.8.4")


def test_peft_trains_an_adapter():
    peft = pytest.importorskip("peft")
    ours, theirs = model_of("Llama", "flash_attn"), model_of("Llama", "sdpa")
    theirs.load_state_dict(ours.state_dict())
    tokens, gradients = torch.randint(1, 99, (2, 11)), []
    for model in (ours, theirs):
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        adapted(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and all("lora" in name for name in gradients[0])
    for name, found in gradients[0].items():
        torch.testing.assert_close(found, gradients[1][name], atol=1e-6, rtol=1e-4)


# ---- diffusers ---------------------------------------------------------------------------------------------------------


def test_diffusers_dispatches_to_us():
    pytest.importorskip("diffusers")
    from diffusers.models import attention_dispatch as dispatch

    q, k, v = (torch.randn(2, 9, 4, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(*(x.float().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    for name in ("flash", "flash_varlen"):
        with dispatch.attention_backend(name):
            out = dispatch.dispatch_attention_fn(q, k, v)
        torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)
        assert all(x.abs().sum() > 0 for x in torch.autograd.grad(out.float().square().sum(), (q, k, v)))


# ---- two processes -----------------------------------------------------------------------------------------------------

RING = [
    "DistributedDataParallel",
    "ring",
    "ring, causal",
    "zigzag, causal",
    "stripe, causal",
    "ring, packed",
    "zigzag, packed",
    "llama3, packed",
    "yunchang, basic ring",
    "yunchang, zigzag ring",
    "yunchang, strip ring",
    "yunchang, ulysses",
]


@pytest.fixture(scope="module")
def ring_results(tmp_path_factory):
    for name in ("ring_flash_attn", "yunchang", "transformers"):
        if name == "ring_flash_attn":  # whose import fails without a shim that ring_client.py has
            import importlib.util

            if importlib.util.find_spec(name) is None:
                pytest.skip(f"{name} is not installed")
        else:
            pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("ring")
    program = Path(__file__).with_name("ring_client.py")
    environment = dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    processes = [
        subprocess.Popen([sys.executable, program, str(rank), "2", str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("case", RING)
def test_context_parallel(ring_results, case):
    assert not ring_results[case], ring_results[case]


def test_every_ring_case_is_listed(ring_results):
    assert list(ring_results) == RING
