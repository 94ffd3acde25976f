"""The policies of a guard that is given none: it measures, or holds back what is less sure than the user accepts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.errors import OptionError
from semgrad_guard.flow import Abstain, Accept, Confidence, Exchange, Failure, Fingerprint, Progress, Score
from semgrad_guard.policy import PolicyDecider, explain, policy_of
from semgrad_guard.policy.strengths import measuring

if TYPE_CHECKING:
    from semgrad_guard.flow import Decision

FINGERPRINT = Fingerprint(model="m", dtype="float32", template="t", settings="s")
SCORE = Score(method="m", value=1.0, signals={}, fingerprint=FINGERPRINT, model="m")


def decided(decider: PolicyDecider, confidence: float | None) -> Decision:
    """Return the decision about a first answer."""
    return decider.decide(Exchange(answer="Paris"), SCORE, Confidence(value=confidence, why="so"), Progress())


def failed(decider: PolicyDecider) -> Decision:
    """Return the decision about an answer that could not be judged."""
    return decider.decide_failure(Exchange(answer="Paris"), Failure("scoring", "ModelError", "no weights"), Progress())


def test_measuring_gives_every_answer_as_it_is() -> None:
    """Neither a low confidence, nor none, nor a failure may change an answer: streams need not wait for it either."""
    decider = PolicyDecider(policy_of(None, None))
    decisions = [*(decided(decider, value) for value in (0.0, 0.4, 1.0, None, math.nan)), failed(decider)]
    assert {getattr(decision.step, "warning", "") for decision in decisions} == {""}
    assert not any(isinstance(decision.step, Abstain) for decision in decisions)
    assert not decider.can_change_answers
    assert not decider.can_answer_again


@pytest.mark.parametrize("accept", [0.7, 1, 0])
def test_holding_back_fails_closed(accept: float) -> None:
    """What is less sure is held back, and so is what nothing could judge."""
    decider = PolicyDecider(policy_of(None, accept))
    assert isinstance(decided(decider, accept).step, Accept)
    held = [decided(decider, None), decided(decider, math.nan), failed(decider)]
    held += [decided(decider, accept - 0.01)] if accept else []
    assert {type(decision.step) for decision in held} == {Abstain}
    assert decider.can_change_answers


def test_an_error_rate_may_be_asked_for_in_place_of_a_confidence() -> None:
    """The same as in a policy file."""
    policy = policy_of(None, {"max_error_rate": 0.1})
    assert policy.model_dump()["accept"] == {"max_error_rate": 0.1, "delta": 0.05}


@pytest.mark.parametrize("accept", [1.7, -0.1, math.nan, "0.7", True, {"error": 0.1}, [0.7]])
def test_a_threshold_that_is_none_is_refused_with_what_is_allowed(accept: Any) -> None:
    """At the constructor, not at the first answer."""
    with pytest.raises(OptionError, match="a number from 0 to 1") as caught:
        policy_of(None, accept)
    assert caught.value.option == "accept"


def test_a_threshold_beside_a_policy_is_refused() -> None:
    """One of the two would be ignored in silence."""
    with pytest.raises(OptionError, match="one of them") as caught:
        policy_of({"accept": 0.5}, 0.7)
    assert caught.value.option == "accept+policy"


@pytest.mark.parametrize("accept", [None, 0.7])
def test_neither_names_a_queue_or_a_log(accept: float | None) -> None:
    """No file in the working folder, no promise of a person."""
    policy = policy_of(None, accept)
    assert (policy.review.url, policy.telemetry.jsonl, policy.escalate) == (None, None, ())


def test_measuring_in_words() -> None:
    """`semgrad-guard policy check` says the same of a file that holds these words."""
    said = "\n".join(explain(measuring()))
    for line in (
        "If no step is left, the best answer is given as it is; only its findings say that it is doubtful [otherwise]",
        "If the guard itself fails, the answer is given as it is, and its findings say what failed;",
        "Without a confidence (no profile fits), the answer is given as it is, and its findings say why",
        "Decisions are not logged anywhere.",
    ):
        assert line in said
    assert "for people" not in said
