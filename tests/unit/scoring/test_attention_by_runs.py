"""Attention of a long answer goes by runs of its tokens: less memory, and the same numbers."""

from __future__ import annotations

import pytest

from semgrad_guard.flow import Exchange
from semgrad_guard.scoring import SemGradScorer, attention, recording
from tests.models_for_tests import local_model

ARCHITECTURES = [
    ("gpt2", "sdpa"),
    ("gpt2", "eager"),
    ("llama", "eager"),
    ("mistral", "eager"),
    ("gemma2", "eager"),
    ("gpt_oss", "eager"),
    ("gpt_neox", "sdpa"),
    ("cohere2", "sdpa"),
]
LONG = Exchange(prompt_ids=tuple(range(20, 50)), answer_ids=tuple(20 + i * i % 57 for i in range(40)), on_policy=True)


@pytest.mark.parametrize(("kind", "implementation"), ARCHITECTURES)
@pytest.mark.parametrize("by_blocks", [False, True])
def test_runs_give_the_numbers_of_the_whole(kind, implementation, by_blocks, monkeypatch):
    """Whatever the model adds to its attention: windows, caps, sinks."""
    local = local_model(kind, max_position_embeddings=256)
    local.model.set_attn_implementation(implementation)
    whole = SemGradScorer(local).score(LONG)
    lengths = []
    run = attention.checkpoint

    def noted(*args, **kwargs):
        lengths.append(args[1])
        return run(*args, **kwargs)

    monkeypatch.setattr(attention, "checkpoint", noted)
    monkeypatch.setattr(attention, "ATTENTION_BYTES", 7 * 4 * 70 * 4 * attention.MATRICES)  # seven tokens of four heads
    if by_blocks:
        monkeypatch.setattr(recording, "band_bytes", lambda *_: 2**40)
    found = SemGradScorer(local).score(LONG)
    assert max(lengths) > 0, "there were several runs"
    assert found.signals == pytest.approx(whole.signals, rel=2e-4, abs=1e-6)
