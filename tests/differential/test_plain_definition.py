"""The fast way against the plain definition, on tiny random models of many architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semgrad_guard.models import LocalModel
from semgrad_guard.scoring.budget import MemoryBudget
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import GradientSpec, Measure, measure
from semgrad_guard.scoring.model_parts import model_parts_of, upper_half
from tests.differential.plain_definition import plain_scores
from tests.models_for_tests import N_BYTE_TOKENS, N_VOCABULARY, build, byte_tokenizer, tiny_lm

CACHED = """
    gpt2 llama qwen2 qwen3 mistral gemma gemma2 gemma3_text phi phi3 gpt_neox gptj gpt_neo gpt_bigcode codegen falcon
    cohere cohere2 olmo olmo2 olmo3 olmoe stablelm opt bloom mpt granite granitemoe starcoder2 mixtral qwen2_moe
    qwen3_moe gpt_oss deepseek_v3 llama4_text glm4 nemotron smollm3 exaone4 ernie4_5 nanochat xglm
""".split()  # noqa: SIM905 - a list would be a line each
"""Dense and mixed experts, grouped queries, sliding and chunked windows, tied and untied heads, logit scale, soft caps,
head bias, parallel blocks, learned and alibi positions."""
WHOLE = ["mamba", "mamba2", "jamba", "recurrent_gemma", "bamba", "falcon_h1", "qwen3_next", "lfm2", "rwkv"]
"""Recurrent and hybrid: their state cannot be cropped, so one full forward pass is recorded."""
RELATIVE = 2e-4


def _exchanges() -> list[Tokens]:
    """Return exchanges of mixed lengths: longer than the sliding windows, shorter than the recorded positions."""
    generator = torch.Generator().manual_seed(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, N_VOCABULARY, (n,), generator=generator).tolist())

    return [Tokens(ids(n_prompt), ids(n_answer)) for n_prompt, n_answer in ((30, 5), (3, 1), (14, 9))]


def _spec(model) -> GradientSpec:
    return GradientSpec(upper_half(model.config.get_text_config(decoder=True).num_hidden_layers), 5)


def _assert_equal(measured: Measure, plain) -> None:
    whole = measured.parts[0]
    assert len(whole.semgrad) == len(plain["semgrad"])
    for i, value in enumerate(whole.semgrad):
        assert value == pytest.approx(plain["semgrad"][-i - 1], rel=RELATIVE)
    assert whole.by_weight.paragrad == pytest.approx(plain["paragrad"], rel=RELATIVE)
    assert whole.by_weight.exgrad == pytest.approx(plain["exgrad"], rel=RELATIVE)
    assert measured.nll.tolist() == pytest.approx(plain["nll"].tolist(), rel=RELATIVE)
    assert measured.entropy.tolist() == pytest.approx(plain["entropy"].tolist(), rel=RELATIVE)


@pytest.mark.parametrize("arch", CACHED)
def test_recording_by_blocks_equals_the_plain_definition(arch):
    """As where an answer is too long to record the whole band, cold and behind the writing, by parts too."""
    model, batch = tiny_lm(arch), _exchanges()
    spec = replace(_spec(model), budget=MemoryBudget(0, 0))
    plain = build(arch)
    for tokens in batch:
        expected = plain_scores(plain, tokens.prompt, tokens.answer)
        parts = [[slice(0, 1), slice(len(tokens.answer) - 1, len(tokens.answer))]]
        _assert_equal(measure(model, [tokens], spec)[0], expected)
        (by_parts,) = measure(model, [tokens], spec, parts=parts)
        _assert_equal(by_parts, expected)
        (whole,) = measure(model, [tokens], _spec(model), parts=parts)
        for part, other in zip(by_parts.parts, whole.parts, strict=True):
            assert part.semgrad == pytest.approx(other.semgrad, rel=RELATIVE)


@pytest.mark.parametrize("arch", CACHED + WHOLE)
def test_one_and_many_exchanges_equal_the_plain_definition(arch):
    """No short cut (prefix without gradients, closed-form head, padding) may change a number on any architecture."""
    model, batch = tiny_lm(arch), _exchanges()
    in_batch = measure(model, batch, _spec(model))
    alone = [measure(model, [tokens], _spec(model))[0] for tokens in batch]
    plain = build(arch)
    for tokens, one, of_many in zip(batch, alone, in_batch, strict=True):
        expected = plain_scores(plain, tokens.prompt, tokens.answer)
        _assert_equal(one, expected)
        _assert_equal(of_many, expected)
        assert one.path == ("full" if arch in WHOLE else "cold")


@pytest.mark.parametrize("arch", CACHED)
@pytest.mark.parametrize("n_kept", [0, 1, 2])
def test_the_cache_of_the_writing_gives_the_cold_numbers(arch, n_kept):
    """Behind a generation the cache is cropped, blocks below the band are skipped, the others run one by one.

    So do all where the recording would be too large.
    """
    model = build(arch, vocab_size=N_BYTE_TOKENS)
    blocks = model_parts_of(model).blocks
    spec = GradientSpec(upper_half(len(blocks)), 5)
    local = LocalModel(model, byte_tokenizer(), arch)
    kept_blocks = blocks[spec.band.first :][:n_kept]
    written = local.generate(prompt_ids=range(3, 33), max_new_tokens=9, states_of=kept_blocks)
    tokens = Tokens(written.prompt_ids, written.answer_ids)
    (reused,) = measure(model, [tokens], spec, kept=written.kept)
    (cold,) = measure(model, [tokens], spec)
    assert reused.path == "reused"
    assert reused.parts[0].semgrad == pytest.approx(cold.parts[0].semgrad, rel=RELATIVE)
    assert reused.parts[0].by_weight.paragrad == pytest.approx(cold.parts[0].by_weight.paragrad, rel=RELATIVE)
    assert reused.nll.tolist() == pytest.approx(cold.nll.tolist(), rel=RELATIVE)
    (by_blocks,) = measure(model, [tokens], replace(spec, budget=MemoryBudget(0, 0)), kept=written.kept)
    assert by_blocks.parts[0].semgrad == pytest.approx(cold.parts[0].semgrad, rel=RELATIVE)
