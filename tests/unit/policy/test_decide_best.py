"""The best attempt is the one with the highest confidence."""

from __future__ import annotations

import pytest

from semgrad_guard.flow import Abstain, Attempt, Confidence, Decision, Exchange, Progress
from semgrad_guard.policy import PolicyDecider, best_attempt, policy_from

NAN = float("nan")


def attempt(value: float | None) -> Attempt:
    """Return an attempt with a confidence."""
    exchange = Exchange()
    decision = Decision(
        step=Abstain(message="no"), rule="r", why="", exchange_id=exchange.id, confidence=Confidence(value=value)
    )
    return Attempt(exchange, decision)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ((0.2, 0.6, 0.4), 1),
        ((0.2, 0.4, 0.6), 2),
        ((0.6, 0.6, 0.6), 0),  # of equals the earliest: another try must be better to replace the first
        ((0.2, None, None), 0),  # a known confidence goes before none
        ((None, None, 0.0), 2),
        ((NAN, 0.1, NAN), 1),  # not a number is no confidence
        ((None, NAN, None), 2),  # nothing to compare: the present attempt
        ((None,), 0),
    ],
)
def test_the_highest_usable_confidence_wins(values: tuple[float | None, ...], best: int) -> None:
    """One reason a line."""
    attempts = [attempt(value) for value in values]
    chosen = best_attempt(Progress(attempts=tuple(attempts[:-1])), attempts[-1])
    assert attempts.index(chosen) == best


def test_the_decider_names_the_exchange_of_the_best_attempt() -> None:
    """The guard returns, holds back or hands on that exchange."""
    earlier, present = attempt(0.5), attempt(0.4)
    decider = PolicyDecider(policy_from({"accept": 0.7}))
    progress = Progress(attempts=(earlier,))
    assert decider.best(present.exchange, present.decision, progress) is earlier.exchange
