"""A score is the same on every device, in every number format as far as it goes, and spread over devices."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import attach_align_device_hook_on_blocks
from scipy.stats import spearmanr

from semgrad_guard.flow import Exchange
from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import GradientSpec, measure
from semgrad_guard.scoring.model_parts import model_parts_of, upper_half
from tests.differential.plain_definition import plain_scores
from tests.gpu.test_callers import assert_close, scored
from tests.models_for_tests import N_BYTE_TOKENS, build, byte_tokenizer, local_model

RELATIVE = 2e-4
AT_LEAST = 0.98
ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma2", "gpt2", "mixtral", "gpt_oss"]


def ids(n, seed):
    """Return random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, N_BYTE_TOKENS, (n,), generator=generator).tolist())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_gives_the_numbers_of_the_plain_definition(arch, device):
    """On the processor by definition, on the device by every way that scoring has."""
    tokens = Tokens(ids(40, 1), ids(9, 2))
    model = build(arch, device=device, vocab_size=N_BYTE_TOKENS)
    spec = GradientSpec(upper_half(model.config.num_hidden_layers), 5)
    local = LocalModel(model, byte_tokenizer(), arch)
    blocks = model_parts_of(model).blocks[spec.band.first :]
    written = local.generate(prompt_ids=tokens.prompt, max_new_tokens=9, states_of=blocks)
    own = Tokens(written.prompt_ids, written.answer_ids)
    for exchange, kept in ((tokens, None), (own, None), (own, written.kept)):
        plain = plain_scores(build(arch, device="cpu", vocab_size=N_BYTE_TOKENS), exchange.prompt, exchange.answer)
        (found,) = measure(model, [exchange], spec, kept=kept)
        whole = found.parts[0]
        assert whole.semgrad == pytest.approx([plain["semgrad"][-n] for n in range(1, 6)], rel=RELATIVE)
        assert whole.by_weight == pytest.approx((plain["paragrad"], plain["exgrad"]), rel=RELATIVE)
        assert found.nll.tolist() == pytest.approx(plain["nll"].tolist(), rel=RELATIVE)


@pytest.mark.parametrize("method", ["semgrad", "paragrad"])
def test_bfloat16_keeps_the_order_of_float32(method, device):
    """Thresholds and rankings are what a score is for."""
    exact, half = local_model(num_hidden_layers=6), local_model(num_hidden_layers=6)
    exact.model.to("cpu")
    half.model.to(device, torch.bfloat16)
    exchanges = [Exchange(prompt_ids=ids(30, n), answer_ids=ids(6, 99 + n), on_policy=True) for n in range(40)]
    found, expected = ([s.signals[method] for s in SemGradScorer(m).score_batch(exchanges)] for m in (half, exact))
    assert float(spearmanr(found, expected).statistic) >= AT_LEAST


def places(first, second):
    """Return where each part of a tiny model lies: every other block on a second device."""
    outside = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), first)
    return {**outside, **{f"model.layers.{n}": second if n % 2 else first for n in range(4)}}


@pytest.mark.parametrize("second", ["the processor", "another"])
def test_a_model_over_two_devices_gives_the_numbers_of_one(accelerator, second):
    """Parts on a second GPU or on the processor, where they also run: states and gradients move between them."""
    if second == "another" and getattr(torch, accelerator).device_count() < 2:
        pytest.skip("needs two devices")
    first = torch.device(accelerator, 0)
    where = places(first, torch.device(accelerator, 1) if second == "another" else torch.device("cpu"))
    spread = local_model(device="cpu")
    for name, place in where.items():
        spread.model.get_submodule(name).to(place)
    attach_align_device_hook_on_blocks(
        spread.model, execution_device={"": first, **where}, offload=dict.fromkeys(where, False)
    )
    assert_close(scored(spread), scored(local_model(device="cpu")))


@pytest.mark.gpu
def test_weights_that_come_from_the_processor_when_they_are_needed_give_the_same_numbers():
    """What does not fit on the GPU waits in memory; `device_map="auto"` does so."""
    spread = local_model(device="cpu")
    dispatch_model(spread.model, places(0, "cpu"), main_device="cuda:0", force_hooks=True)
    assert_close(scored(spread), scored(local_model(device="cpu")))
