"""Half-precision models: coarse weights, but states that do not lose digits from block to block."""

from __future__ import annotations

import pytest
import torch

from semgrad_guard.flow import Exchange
from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

EXCHANGE = Exchange(prompt_ids=tuple(range(3, 60)), answer_ids=tuple(range(9, 19)), on_policy=True)


def dtypes_entering(local, score):
    """Return the number formats of the states that enter the blocks."""
    seen = set()

    def look(_block, args, kwargs):
        seen.add((args[0] if args else kwargs["hidden_states"]).dtype)

    hooks = [b.register_forward_pre_hook(look, with_kwargs=True) for b in local.model.model.layers]
    score()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.fixture(name="half")
def _half():
    local = local_model(num_hidden_layers=12)
    return LocalModel(local.model.bfloat16(), local.tokenizer, "half")


def test_states_are_float32_while_a_bfloat16_model_is_scored(half):
    """Cold, and behind the writing, whose own states are coarse; afterwards the model is as before."""
    scorer = SemGradScorer(half)
    assert dtypes_entering(half, lambda: scorer.score(EXCHANGE)) == {torch.float32}
    written = half.generate(prompt_ids=EXCHANGE.prompt_ids, max_new_tokens=4, states_of=scorer.band_blocks)
    assert dtypes_entering(half, lambda: scorer.score_generated(written)) == {torch.float32}
    assert dtypes_entering(half, lambda: half.model(torch.ones(1, 3, dtype=torch.long, device=half.device))) == {
        torch.bfloat16
    }
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}


def test_the_writing_s_states_give_about_the_cold_score(half):
    """They were rounded to 8 bits when they were written."""
    scorer = SemGradScorer(half)
    written = half.generate(prompt_ids=EXCHANGE.prompt_ids, max_new_tokens=4, states_of=scorer.band_blocks)
    score = scorer.score_generated(written)
    exchange = Exchange(prompt_ids=written.prompt_ids, answer_ids=written.answer_ids, on_policy=True)
    assert score.path == "reused"
    assert score.value == pytest.approx(scorer.score(exchange).value, rel=0.1)


@pytest.mark.parametrize(("arch", "dtype"), [("gpt2", torch.bfloat16), ("llama", torch.float16)])
def test_other_models_run_as_they_are(arch, dtype):
    """Layer norms refuse wide states on a processor; float16 has digits enough."""
    local = local_model(arch)
    exact = SemGradScorer(local).score(EXCHANGE).value
    half = LocalModel(local.model.to(dtype), local.tokenizer, "half")
    assert SemGradScorer(half).score(EXCHANGE).value == pytest.approx(exact, rel=0.1)
