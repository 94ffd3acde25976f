"""The stages of a guard are made of a policy, and of what its profile needs."""

from __future__ import annotations

from typing import Any

import pytest

from semgrad_guard.calibration import load_profile
from semgrad_guard.calibration.fused import FusedModel, SignalColumn
from semgrad_guard.flow import Exchange, Passage
from semgrad_guard.guard.assembly import scorer_of
from semgrad_guard.policy.model import ScorerSettings
from semgrad_guard.signals import PASSAGE_HELP
from tests.models_for_tests import local_model

EXCHANGE = Exchange(
    question="Who built the tower?", passages=(Passage("Gustave Eiffel built the tower."),), answer="Gustave Eiffel"
)


def model_of(*names: str) -> FusedModel:
    columns = [
        SignalColumn(name=name, transform="identity", mean=0, scale=1, weight=1, average=0, required=False)
        for name in names
    ]
    return FusedModel(columns=tuple(columns), intercept=0.0)


@pytest.mark.parametrize(("is_own", "expected"), [(True, {"context_gain"}), (False, set[str]())])
def test_signals_that_cost_a_pass_are_computed_where_the_profile_uses_them(is_own: bool, expected: set[str]) -> None:
    """A profile of other weights cannot use them, so nothing is spent on them."""
    local: Any = local_model()
    shipped = load_profile("proxy")
    of_model = shipped.fingerprint
    fingerprint = of_model.__class__(
        model=local.weights_digest if is_own else "another",
        dtype=of_model.dtype,
        template=of_model.template,
        settings="position -3, blocks 2 to 3, by answer, texts by claim",
        proxy=True,
    )
    profile = shipped.model_copy(
        update={"model": model_of("grounding", "context_gain"), "fingerprint": fingerprint, "simpler": None}
    )
    scorer = scorer_of(ScorerSettings(position=-3), local, profile)
    assert set(scorer.score(EXCHANGE).signals) & PASSAGE_HELP == expected
