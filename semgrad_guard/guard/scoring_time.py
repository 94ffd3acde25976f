"""Scores within what is left of the policy's time, for as long as somebody waits for them."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from semgrad_guard.guard.giving_up import given_up
from semgrad_guard.routing.deadline import Deadline, call_before

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Exchange, Score
    from semgrad_guard.ports import Scorer

T = TypeVar("T")


def score_within(scorer: Scorer, exchange: Exchange, seconds: float | None) -> Score:
    """Return the score of an exchange.

    A scorer that takes `max_time_s` and `cancel` ends its work by itself; any other is left to finish, when time is up
    in a thread of its own.

    Args:
        scorer: any scorer.
        exchange: what to score.
        seconds: how long it may take; `None` sets no limit.

    Raises:
        TimeoutError: it took longer.
        CancelledError: nobody waits for it any more (see `giving_up`).
        ScoringError: the exchange cannot be scored.
    """
    return _within(scorer.score, exchange, seconds)


def score_batch_within(
    scorer: Scorer, exchanges: Sequence[Exchange], seconds: float | None
) -> list[Score | ScoringError]:
    """Same as `score_within` for many exchanges, each of which may take so many seconds: they share the sum.

    Raises:
        TimeoutError: a scorer that takes no limit took longer than the sum.
        CancelledError: as for `score_within`.
    """
    return _within(scorer.score_batch, exchanges, None if seconds is None else seconds * len(exchanges))


def _within(score: Callable[..., T], scored: object, seconds: float | None) -> T:
    cancel, takes = given_up(), inspect.signature(score).parameters
    given: dict[str, Any] = {"max_time_s": None if seconds is None else max(0.0, seconds), "cancel": cancel}
    given = {name: value for name, value in given.items() if name in takes and value is not None}
    try:
        if seconds is None or "max_time_s" in given:
            return score(scored, **given)
        return call_before(Deadline.after(seconds), lambda: score(scored, **given), "scoring")
    finally:
        if cancel is not None and cancel.is_set():
            raise asyncio.CancelledError
