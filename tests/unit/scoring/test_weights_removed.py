"""Weights that go while the process runs: a typed error for the policy's `on_error`, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from semgrad_guard.errors import ModelFailedError
from semgrad_guard.flow import Exchange, Status
from semgrad_guard.guard import Guard
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

ASKED = Exchange(prompt="Who?", question="Who?", answer="Marie Curie.", on_policy=True)


def freed(model):
    """Give back the memory of one weight, as sharded training does."""
    model.model.layers[1].mlp.up_proj.weight.untyped_storage().resize_(0)


def deleted(model):
    del model.model.layers[2].self_attn.k_proj.weight


def cut(model):
    model.lm_head.weight.data = model.lm_head.weight.data[:0]


def without_a_block(model):
    model.model.layers[3] = torch.nn.Identity()


REMOVALS = {
    "on no device": lambda model: model.to("meta"),
    "one on no device": lambda model: model.model.layers[3].mlp.down_proj.to("meta"),
    "the head on no device": lambda model: model.lm_head.to("meta"),
    "freed": freed,
    "deleted": deleted,
    "cut": cut,
    "a block": without_a_block,
}


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("scored_before", [True, False])
def test_an_answer_takes_on_error(removal, scored_before):
    """One at a time and in batches; the chain around the guard goes on, and the model's lock is free."""
    local = local_model()
    scorer = SemGradScorer(local)
    guard = Guard.from_yaml(accept=0.5, scorer=scorer)
    if scored_before:
        scorer.score(ASKED)
    REMOVALS[removal](local.model)
    with pytest.raises(ModelFailedError, match="load it again") as caught:
        scorer.score(ASKED)
    if removal in {"freed", "one on no device"}:
        assert "_proj.weight holds no numbers" in caught.value.why
    assert [type(one) for one in scorer.score_batch([ASKED, ASKED])] == [ModelFailedError] * 2
    for outcome in (guard.run(ASKED), *guard.run_batch([ASKED, ASKED])):
        assert outcome.status is Status.ABSTAINED
        assert outcome.decision.failure.type == "ModelFailedError"
        assert ASKED.answer not in outcome.text
    assert local.lock.acquire(blocking=False)
    local.lock.release()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in local.model.modules())
