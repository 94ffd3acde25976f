"""Record -> when each attempt was judged and acted on, for spans that are made afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semgrad_guard.flow import Attempt, Record

_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


@dataclass(frozen=True, slots=True)
class Stretch:
    """One attempt in time."""

    attempt: Attempt
    judging_at: datetime
    judged_at: datetime
    acted_at: datetime
    """When the next attempt was judged, or the outcome was there."""


def started_at(record: Record) -> datetime:
    """Return when the first attempt came to be judged."""
    return record.at - timedelta(seconds=record.seconds)


def timeline(record: Record) -> list[Stretch]:
    """Return the attempts whose time is known, oldest first.

    Where a record does not say when an attempt was judged, only the first attempt's time is known: its judgement began
    the record.
    """
    begun = started_at(record)
    known: list[tuple[Attempt, datetime, datetime]] = []
    for n, attempt in enumerate(record.attempts):
        score = attempt.decision.score
        took = timedelta(seconds=score.seconds if score else 0.0)
        judged_at = attempt.judged_at or (begun + took if n == 0 else None)
        if judged_at is not None:
            known.append((attempt, max(begun, judged_at - took), judged_at))
    ends = [judging_at for _, judging_at, _ in known[1:]] + [record.at]
    return [Stretch(a, start, end, max(end, acted)) for (a, start, end), acted in zip(known, ends, strict=False)]


def nanoseconds(moment: datetime) -> int:
    """Return a moment as OpenTelemetry counts it, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
