"""Recorded questions and policies made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.evaluation.simulate import RecordedAnswer, RecordedQuestion, Simulator
from semgrad_guard.evaluation.simulate.recorded import UNKNOWN
from semgrad_guard.flow import Exchange, Score
from semgrad_guard.policy import policy_from

if TYPE_CHECKING:
    from semgrad_guard.evaluation.simulate import Replay

LADDER = {
    "scorer": {"model": "smollm2-135m"},
    "accept": 0.7,
    "escalate": [
        {"retry_retrieval": {"cost": 2}},
        {"fallback_model": {"name": "big", "cost": 5}},
        {"human_review": {"when": {"below": 0.3}}},
    ],
    "review": {"url": "interrupt"},
}
"""Retry, then a fallback model; what stays below 0.3 goes to people, the rest is refused. No profile."""

Make = Callable[..., RecordedAnswer]


def recorded(confidence: float | None, *, correct: bool | None = True, **known: Any) -> RecordedAnswer:
    """Return an answer with a confidence; `None` makes one that was scored and has none."""
    score = Score(method="recorded", value=0.0, signals={}, fingerprint=UNKNOWN, model="")
    exchange = known.pop("exchange", Exchange(answer="an answer", question="a question", score=score))
    return RecordedAnswer(exchange=exchange, correct=correct, confidence=confidence, **known)


def asked(first: RecordedAnswer, *later: RecordedAnswer, group: str | None = None) -> RecordedQuestion:
    """Return a question with these answers."""
    return RecordedQuestion(first=first, later=later, group=group)


@pytest.fixture(name="answer", scope="session")
def _answer() -> Make:
    """Return the maker of recorded answers."""
    return recorded


@pytest.fixture(name="question", scope="session")
def _question() -> Callable[..., RecordedQuestion]:
    """Return the maker of recorded questions."""
    return asked


@pytest.fixture(name="simulator", scope="session")
def _simulator() -> Callable[..., Simulator]:
    """Return a maker of simulators; keys of the policy replace those of the ladder above."""
    return lambda **keys: Simulator(policy_from({"version": 1, **LADDER, **keys}))


@pytest.fixture(name="replay", scope="session")
def _replay() -> Callable[..., Replay]:
    """Return a way to replay answers to one question under the ladder above, with changes."""
    return lambda *answers, **keys: Simulator(policy_from({"version": 1, **LADDER, **keys})).replay(asked(*answers))
