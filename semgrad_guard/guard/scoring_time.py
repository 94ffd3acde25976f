"""Scores within what is left of the policy's time."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, TypeVar

from semgrad_guard.routing.deadline import Deadline, call_before

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Exchange, Score
    from semgrad_guard.ports import Scorer

T = TypeVar("T")
_LIMIT = "max_time_s"


def score_within(scorer: Scorer, exchange: Exchange, seconds: float | None) -> Score:
    """Return the score of an exchange.

    A scorer that takes `max_time_s` ends its work by itself; any other is left to finish in a thread of its own.

    Args:
        scorer: any scorer.
        exchange: what to score.
        seconds: how long it may take; `None` sets no limit.

    Raises:
        TimeoutError: it took longer.
        ScoringError: the exchange cannot be scored.
    """
    return _within(scorer.score, exchange, seconds)


def score_batch_within(
    scorer: Scorer, exchanges: Sequence[Exchange], seconds: float | None
) -> list[Score | ScoringError]:
    """Same as `score_within` for many exchanges, each of which may take so many seconds: they share the sum.

    Raises:
        TimeoutError: a scorer that takes no limit took longer than the sum.
    """
    return _within(scorer.score_batch, exchanges, None if seconds is None else seconds * len(exchanges))


def _within(score: Callable[..., T], scored: object, seconds: float | None) -> T:
    if seconds is None:
        return score(scored)
    if _LIMIT in inspect.signature(score).parameters:
        return score(scored, **{_LIMIT: max(0.0, seconds)})
    return call_before(Deadline.after(seconds), lambda: score(scored), "scoring")
