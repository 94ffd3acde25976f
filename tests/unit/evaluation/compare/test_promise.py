"""A promised error rate, set on one half of the questions and measured on the other."""

from __future__ import annotations

import numpy as np

from semgrad_guard.evaluation.compare.promise import check_promise


def world(n: int, seed: int = 0) -> tuple:
    """Return honest confidences, labels drawn from them, and a group for each."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(2, 1, n)
    return confidence, (rng.random(n) < confidence).astype(float), np.arange(n)


def test_an_honest_confidence_keeps_its_promise() -> None:
    """The error among what the other halves accepted stays below the target, with something accepted."""
    found = check_promise(*world(2_000), 0.2)
    assert found.n_set == found.n_halvings == 100
    assert found.error_rate < 0.2
    assert found.coverage > 0.2


def test_where_nothing_can_be_shown_nothing_is_claimed() -> None:
    """Forty answers cannot show two per cent."""
    found = check_promise(*world(40), 0.02)
    assert (found.n_set, found.coverage, found.error_rate) == (0, None, None)


def test_answers_without_a_confidence_are_left_out() -> None:
    """They cannot be accepted, nor teach a threshold."""
    confidence, correct, groups = world(600)
    some = np.append(confidence, [np.nan] * 5), np.append(correct, [0.0] * 5), np.append(groups, range(600, 605))
    assert check_promise(*some, 0.2) == check_promise(confidence, correct, groups, 0.2)


def test_a_group_is_on_one_side_only() -> None:
    """Copies of a question on both sides would prove the promise on itself."""
    confidence, correct, _ = world(400)
    five = [np.repeat(values, 5) for values in (confidence, correct, np.arange(400))]
    found = check_promise(*five, 0.2)
    assert found.n_set > 0
    assert found.error_rate < 0.25
