"""What a score brings to a device and takes from it, and that nothing of it stays behind when the model moves."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from semgrad_guard.flow import Exchange, Message, Passage
from semgrad_guard.models import device
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import DEVICE, local_model

pytestmark = pytest.mark.skipif(DEVICE.type != "pretend", reason="counts on a pretended device: see `make test-device`")

PRETENDED = sys.modules.get("tests.pretend_device")
PROMPT = tuple(range(3, 60))
TO, FROM = "cpu to pretend:0", "pretend:0 to cpu"
A_SCORE = [TO, TO, FROM]
"""Token ids and their places, the shares of the tokens, and all results."""


def crossings_of(work):
    """Return what crossed while some work was done, in order."""
    crossings = PRETENDED.crossings
    crossings.clear()
    work()
    return list(crossings)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3_text"])
def test_a_score_brings_two_arrays_and_reads_one(arch):
    """Whenever the host waits for the device, that runs dry."""
    local = local_model(arch, eos_token_id=None)
    scorer = SemGradScorer(local, max_extra_mb=10_000)
    written = local.generate(prompt_ids=PROMPT, max_new_tokens=20, states_of=scorer.band_blocks)
    exchange = Exchange(prompt_ids=PROMPT, answer_ids=written.answer_ids, on_policy=True)
    batch = [Exchange(prompt_ids=PROMPT[n:], answer_ids=(5, 6, 7), on_policy=True) for n in range(4)]
    looks = ["_local_scalar_dense"] * 2  # transformers looks whether anything of a batch is padding, in each pass
    for work, expected in (
        (lambda: scorer.score_generated(written), A_SCORE),
        (lambda: scorer.score(exchange), A_SCORE),
        (lambda: scorer.score_batch(batch), [TO, TO, *looks, FROM]),
    ):
        work()  # looks at the model, once
        assert crossings_of(work) == expected


def test_crossings_and_mixed_devices_are_seen():
    """A device that lets everything pass would prove nothing."""
    here, there = torch.arange(4.0), torch.arange(4.0).to(DEVICE)
    with pytest.raises(RuntimeError, match=r"tensors of cpu and pretend:0"):
        here + there
    assert crossings_of(lambda: float(there.sum())) == ["_local_scalar_dense"]
    assert crossings_of(lambda: there[torch.tensor([1])].sum().tolist()) == [TO, FROM]
    assert crossings_of(there.nonzero) == ["nonzero"]
    assert (there * 2).tolist() == (here * 2).tolist()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "mamba"])
def test_a_device_without_float64_gives_the_numbers_of_the_processor(arch, monkeypatch):
    """Apple's GPUs have none; sums are taken in float32 there."""
    passage = Passage("The tower was built in 1889 by Eiffel.")
    prompt = (Message("user", f"{passage.text}\n\nWho built it?"),)
    exchange = Exchange(prompt=prompt, passages=(passage,), question="Who built it?")

    def scores(local):
        scorer = SemGradScorer(local, passage_gradients=True)
        written = local.generate(prompt, max_new_tokens=12, states_of=scorer.band_blocks)
        cold = replace(exchange, answer=written.text, on_policy=True)
        return [scorer.score_generated(written, exchange), scorer.score(cold), *scorer.score_batch([cold, cold])]

    expected = scores(local_model(arch, device="cpu", eos_token_id=None))
    monkeypatch.setattr(device, "NO_FLOAT64", {DEVICE.type})
    monkeypatch.setattr(PRETENDED, "refused", {torch.float64})
    for found, exact in zip(scores(local_model(arch, eos_token_id=None)), expected, strict=True):
        assert found.signals == pytest.approx(exact.signals, rel=2e-4, abs=1e-6)
        assert found.passage_gradients == pytest.approx(exact.passage_gradients, rel=2e-4)


def test_a_model_that_was_moved_is_scored_where_it_is():
    """The first score was on the processor."""
    local = local_model(device="cpu")
    scorer, exchange = SemGradScorer(local), Exchange(prompt_ids=PROMPT, answer_ids=(5, 6, 7), on_policy=True)
    expected = scorer.score(exchange).signals
    local.model.to(DEVICE)
    assert scorer.score(exchange).signals == pytest.approx(expected, rel=1e-5)
    local.model.to("cpu")
    assert scorer.score(exchange).signals == pytest.approx(expected, rel=1e-5)
