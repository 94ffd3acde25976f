"""The stages of a guard are made of a policy, and of what its profile needs."""

from __future__ import annotations

from typing import Any

import pytest

from semgrad_guard.calibration import ProfileCalibrator, load_profile
from semgrad_guard.calibration.fused import FusedModel, SignalColumn
from semgrad_guard.calibration.probes import Probe
from semgrad_guard.flow import Exchange, Passage, Progress
from semgrad_guard.guard.assembly import scorer_of
from semgrad_guard.guard.question_run import Parts, judge
from semgrad_guard.policy.model import ScorerSettings
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.signals import FREE, PASSAGE_HELP, PROBES
from tests.fakes import LadderDecider
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


@pytest.mark.parametrize("earlier_has_it", [True, False])
def test_a_profile_with_a_probe_gets_what_it_reads(earlier_has_it: bool) -> None:
    """Also for an answer that was scored as it was written, by a scorer that did not know the profile."""
    local: Any = local_model()
    made = SemGradScorer(local, position=-3, signals=(*FREE, *(PROBES if earlier_has_it else ())))
    written = local.generate(prompt_ids=range(3, 20), max_new_tokens=5)
    score = made.score_generated(written)
    width = local.model.config.hidden_size
    probe = Probe(name="state_probe", weights=(0.01,) * width, intercept=0.5)
    shipped = load_profile("proxy")
    model = model_of("state_probe").model_copy(
        update={"columns": (model_of("state_probe").columns[0].model_copy(update={"required": True}),)}
    )
    profile = shipped.model_copy(
        update={"model": model, "fingerprint": made.fingerprint(), "simpler": None, "brief": None, "probes": (probe,)}
    )
    exchange = Exchange(
        answer=written.text,
        prompt_ids=written.prompt_ids,
        answer_ids=written.answer_ids,
        on_policy=True,
        score=score,
    )
    scorer = scorer_of(ScorerSettings(position=-3), local, profile)
    parts = Parts(
        scorer=scorer,
        calibrator=ProfileCalibrator(profile),
        decider=LadderDecider([]),
        abstain_message="",
    )
    decision = judge(parts, exchange, Progress())
    assert decision.confidence.value is not None
    assert decision.score is not None
    assert not decision.score.vectors, "thousands of numbers would go into every log, trace and queue"
    plain = ProfileCalibrator(profile).confidence(exchange, scorer.score(exchange))
    assert decision.confidence.value == pytest.approx(plain.value, abs=1e-6)
