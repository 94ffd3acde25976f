"""When a step is tried, and which exchanges an override is for."""

from __future__ import annotations

from typing import Any

import pytest

from semgrad_guard.flow import Exchange, SpanScore
from semgrad_guard.policy.conditions import Selector, StepContext, When


def standing(
    confidence: float = 0.5, n_attempts: int = 1, spans: tuple[float | None, ...] = (), **fields: Any
) -> StepContext:
    """Return how a question stands."""
    parts = tuple(SpanScore(start=0, end=1, signals={}, confidence=value) for value in spans)
    return StepContext(exchange=Exchange(**fields), confidence=confidence, spans=parts, n_attempts=n_attempts)


@pytest.mark.parametrize(
    ("when", "confidence", "holds"),
    [
        ({}, 0.0, True),  # no condition: always
        ({"below": 0.3}, 0.29, True),
        ({"below": 0.3}, 0.3, False),  # below means under, so 0.3 itself is not
        ({"above": 0.3}, 0.3, True),  # above means at least, so `below: x` and `above: x` leave no gap
        ({"above": 0.3}, 0.29, False),
        ({"above": 0.2, "below": 0.3}, 0.25, True),
        ({"above": 0.2, "below": 0.3}, 0.1, False),
    ],
)
def test_below_and_above_split_confidences_without_gap(when: dict[str, float], confidence: float, holds: bool) -> None:
    """Two steps with the same number share all answers between them."""
    assert When.model_validate(when).holds(standing(confidence)) is holds


@pytest.mark.parametrize(
    ("attempt", "n", "holds"), [(1, 1, True), (1, 2, False), ([2, 3], 3, True), ([2, 3], 1, False)]
)
def test_attempt_names_one_number_or_several(attempt: object, n: int, holds: bool) -> None:
    """The first retry and the last one may differ."""
    assert When.model_validate({"attempt": attempt}).holds(standing(n_attempts=n)) is holds


@pytest.mark.parametrize(
    ("spans", "holds"),
    [
        ((0.9, 0.2), True),  # one weak sentence is enough
        ((0.9, 0.3), False),  # 0.3 is not under 0.3
        ((), False),  # no sentences known
        ((None, 0.9), False),  # an uncalibrated sentence says nothing
        ((float("nan"),), True),  # a confidence that is no number is as doubtful as can be
    ],
)
def test_any_sentence_below_looks_for_one_weak_sentence(spans: tuple[float | None, ...], holds: bool) -> None:
    """An answer can be good on average and wrong in one sentence."""
    assert When(any_sentence_below=0.3).holds(standing(spans=spans)) is holds


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({"tags": "a"}, True),
        ({"tags": ["x", "b"]}, True),  # one of the list is enough
        ({"tags": ["x", "y"]}, False),
        ({"metadata": {"n": 1}}, True),
        ({"metadata": {"n": [0, 1]}}, True),  # one of the values
        ({"metadata": {"n": True}}, False),  # true is not 1
        ({"metadata": {"n": "1"}}, False),  # a text is not a number
        ({"metadata": {"flag": True}}, True),
        ({"metadata": {"flag": 1}}, False),
        ({"metadata": {"none": None}}, True),
        ({"metadata": {"absent": None}}, False),  # null is a value, not absence
        ({"metadata": {"n": 1, "flag": False}}, False),  # every key must fit
        ({"tags": "a", "metadata": {"n": 2}}, False),  # tags and metadata must both fit
    ],
)
def test_tags_match_any_and_metadata_match_all(match: dict[str, object], fits: bool) -> None:
    """The rules of matching, one line each."""
    exchange = Exchange(tags=frozenset({"a", "b"}), metadata={"n": 1, "flag": True, "none": None})
    assert Selector.model_validate(match).fits(exchange) is fits


def test_all_conditions_must_hold() -> None:
    """Conditions narrow each other."""
    when = When.model_validate({"below": 0.5, "tags": "a", "attempt": 2})
    assert when.holds(standing(0.4, 2, tags=frozenset({"a"})))
    assert not when.holds(standing(0.4, 1, tags=frozenset({"a"})))
    assert not when.holds(standing(0.4, 2))
