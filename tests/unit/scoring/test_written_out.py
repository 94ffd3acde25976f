"""The written-out gradient of common blocks: equal to autograd's, and used only where it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import blockwise, written_out
from semgrad_guard.scoring.blockwise import WrittenOutRecording, can_record_written_out, record_from_cache
from semgrad_guard.scoring.layout import Tokens, lay_out
from semgrad_guard.scoring.measure import GradientSpec, measure
from semgrad_guard.scoring.model_lease import borrowed
from semgrad_guard.scoring.model_parts import model_parts_of, upper_half
from tests.models_for_tests import N_BYTE_TOKENS, build, byte_tokenizer

COMMON = ["llama", "mistral", "qwen2", "qwen3"]
RELATIVE = 2e-4


@pytest.fixture(autouse=True)
def _cold_scores_go_by_autograd(monkeypatch):
    """Let cold scores be what the others are compared with."""
    monkeypatch.setattr(blockwise, "LEAST_PREFIX", 10**9)


def _written(arch, *, dtype=torch.float32, n_prompt=30, **changes):
    """Return a model, its spec, an answer, and the answer's tokens."""
    model = build(arch, vocab_size=N_BYTE_TOKENS, dtype=dtype, num_hidden_layers=6, **changes)
    spec = GradientSpec(upper_half(6), 5)
    blocks = model_parts_of(model).blocks[spec.band.first :]
    local = LocalModel(model, byte_tokenizer(), arch)
    generated = local.generate(prompt_ids=range(3, 3 + n_prompt), max_new_tokens=9, states_of=blocks)
    return model, spec, generated, Tokens(generated.prompt_ids, generated.answer_ids)


def _recording(model, spec, generated, tokens):
    parts = model_parts_of(model)
    with borrowed(model):
        layout = lay_out([tokens], spec.n_recorded, parts.device)
        return record_from_cache(model, layout, tokens.read, spec.band, generated.kept, once=True)


@pytest.mark.parametrize("interface", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", COMMON)
@pytest.mark.parametrize("n_prompt", [3, 30])  # shorter than the recorded positions; longer than Mistral's window
def test_it_gives_the_numbers_of_autograd(arch, interface, n_prompt):
    """Shared heads, biases, norms of heads, windows and blocks without positions, with each form of mask."""
    model, spec, generated, tokens = _written(arch, n_prompt=n_prompt, attn_implementation=interface)
    assert isinstance(_recording(model, spec, generated, tokens), WrittenOutRecording)
    (found,) = measure(model, [tokens], spec, kept=generated.kept)
    (cold,) = measure(model, [tokens], spec)
    assert found.path == "reused"
    assert found.parts[0].semgrad == pytest.approx(cold.parts[0].semgrad, rel=RELATIVE)


@pytest.mark.parametrize("arch", COMMON)
def test_a_cold_score_of_a_long_prompt_reads_everything_once(arch, monkeypatch):
    """One pass without gradients over all tokens takes less than a pass for the prompt and a recorded one."""
    model, spec, _, tokens = _written(arch, n_prompt=80)
    (expected,) = measure(model, [tokens], spec)
    passes = []
    monkeypatch.setattr(blockwise, "LEAST_PREFIX", 2)
    measure(model, [tokens], spec)  # once, so that the model is known
    below = model.model.layers[0].mlp  # not called when the last block is recorded: blocks below are passed over
    hook = below.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    (found,) = measure(model, [tokens], spec)
    hook.remove()
    assert passes == [len(tokens)]
    assert found.path == "cold"
    assert found.parts[0].semgrad == pytest.approx(expected.parts[0].semgrad, rel=RELATIVE)
    assert found.parts[0].by_weight == pytest.approx(expected.parts[0].by_weight, rel=RELATIVE)
    assert found.nll.tolist() == pytest.approx(expected.nll.tolist(), rel=RELATIVE)


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}, {"num_key_value_heads": 4}])
def test_biases_and_unshared_heads_are_part_of_it(changes):
    """They are what checkpoints of one architecture differ in."""
    model, spec, generated, tokens = _written("llama", **changes)
    assert isinstance(_recording(model, spec, generated, tokens), WrittenOutRecording)
    (found,), (cold,) = measure(model, [tokens], spec, kept=generated.kept), measure(model, [tokens], spec)
    assert found.parts[0].semgrad == pytest.approx(cold.parts[0].semgrad, rel=RELATIVE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_stay_close_to_autograd(dtype):
    """Norms, attention and sums are computed in float32; only products with the weights are not."""
    model, spec, generated, tokens = _written("llama", dtype=dtype)
    (found,), (cold,) = measure(model, [tokens], spec, kept=generated.kept), measure(model, [tokens], spec)
    assert found.parts[0].semgrad == pytest.approx(cold.parts[0].semgrad, rel=5e-2)


@pytest.mark.parametrize("arch", ["gpt2", "gemma2", "granite", "ernie4_5", "phi3", "olmo2", "cohere"])
def test_other_blocks_are_left_to_autograd(arch):
    """Multipliers, interleaved positions and joined projections look alike or not: the numbers decide."""
    model = build(arch)
    with borrowed(model):
        assert not can_record_written_out(model, model_parts_of(model))


def _of_other_width(attention):
    attention.q_norm.weight = torch.nn.Parameter(torch.ones(2 * attention.head_dim))


@pytest.mark.parametrize(
    "change",
    [
        lambda attention: delattr(attention, "k_norm"),
        lambda attention: setattr(attention.k_norm, "variance_epsilon", 1e-3),
        _of_other_width,
    ],
    ids=["of queries only", "with other constants", "over all heads"],
)
def test_norms_of_heads_of_another_kind_rule_it_out(change):
    """Those of queries and keys are computed together."""
    block = build("qwen3").model.layers[0]
    assert written_out.common_block(block, "sdpa") is not None
    change(block.self_attn)
    assert written_out.common_block(block, "sdpa") is None


def test_one_block_that_differs_rules_it_out_for_every_band():
    """Every fourth block of SmolLM3 has no positions; the caller may choose a band that includes one."""
    model = build("smollm3", num_hidden_layers=6)
    with borrowed(model):
        assert not can_record_written_out(model, model_parts_of(model))


def test_numbers_that_differ_from_autograds_rule_it_out(monkeypatch):
    """A mistake in it would otherwise be a wrong score."""
    real = written_out.gradient_by_state
    monkeypatch.setattr(blockwise, "gradient_by_state", lambda *a, **k: real(*a, **k) * 1.01)
    model = build("llama")
    with borrowed(model):
        assert not can_record_written_out(model, model_parts_of(model))


def test_who_listens_inside_a_block_is_still_heard():
    """A hook on a projection may change what it gives: that is part of the gradient."""
    model, spec, generated, tokens = _written("llama")
    heard = []
    layer = model.model.layers[3].mlp.up_proj
    hook = layer.register_forward_hook(lambda *_: heard.append(True))
    assert not isinstance(_recording(model, spec, generated, tokens), WrittenOutRecording)
    measure(model, [tokens], spec, kept=generated.kept)
    hook.remove()
    assert heard
    assert isinstance(_recording(model, spec, generated, tokens), WrittenOutRecording)


@pytest.mark.parametrize("interface", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", COMMON)
@pytest.mark.parametrize("n_prompt", [3, 30])
def test_a_long_answer_goes_by_runs_of_tokens(arch, interface, n_prompt, monkeypatch):
    """The matrix of its attention would not fit; runs see only what is before them, or what a window leaves of it."""
    model, spec, generated, tokens = _written(arch, n_prompt=n_prompt, attn_implementation=interface)
    spec = replace(spec, attention=True)
    (whole,) = measure(model, [tokens], spec, kept=generated.kept)
    n_runs = []
    monkeypatch.setattr(written_out, "ATTENTION_BYTES", 4 * 3 * len(tokens) * 4 * 3)  # three tokens of four heads
    real = written_out._pulled_run
    monkeypatch.setattr(written_out, "_pulled_run", lambda *a: n_runs.append(a[-1]) or real(*a))
    (found,) = measure(model, [tokens], spec, kept=generated.kept)
    assert len(n_runs) >= 2 * (len(spec.band) - 1)
    assert found.parts[0].semgrad == pytest.approx(whole.parts[0].semgrad, rel=1e-5)
    assert found.attention.sums == pytest.approx(whole.attention.sums, rel=1e-4, abs=1e-6)
    assert found.attention.to_previous == pytest.approx(whole.attention.to_previous, rel=1e-4, abs=1e-6)
