"""The queue in numbers: what waits, how fast it goes, and how well the guard's confidence agrees with people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import case, cast, func, select
from sqlalchemy.types import Integer

from semgrad_guard.review.listing import counts
from semgrad_guard.review.store.items import OPEN, State
from semgrad_guard.review.store.schema import items, rulings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Connection

BANDS = 10
"""Confidence is looked at in tenths."""


@dataclass(frozen=True, slots=True)
class Band:
    """Judged answers whose confidence lay in one tenth."""

    low: float
    high: float
    n: int
    n_correct: int
    mean_confidence: float

    @property
    def share_correct(self) -> float:
        """Share of the answers that people found right, in [0, 1]."""
        return self.n_correct / self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """The state of the queue at one moment."""

    by_state: Mapping[State, int]
    oldest_at: datetime | None
    """When the oldest open item was submitted."""
    judged_last_day: int
    bands: tuple[Band, ...]
    """Only tenths in which answers were judged, lowest first."""

    @property
    def n_judged(self) -> int:
        """Answers with a confidence that people judged."""
        return sum(band.n for band in self.bands)

    @property
    def calibration_error(self) -> float | None:
        """Mean distance of confidence and share correct over the tenths, weighted by answers; `None` without any."""
        if not self.n_judged:
            return None
        return sum(band.n * abs(band.mean_confidence - band.share_correct) for band in self.bands) / self.n_judged


def insight(conn: Connection, now: datetime) -> Insight:
    """Return the state of the queue."""
    oldest = select(func.min(items.c.created_at)).where(items.c.state.in_(sorted(OPEN)))
    recent = select(func.count()).select_from(rulings).where(rulings.c.at > now - timedelta(days=1))
    return Insight(
        by_state=counts(conn),
        oldest_at=conn.execute(oldest).scalar_one(),
        judged_last_day=conn.execute(recent.where(rulings.c.correct.is_not(None))).scalar_one(),
        bands=_bands(conn),
    )


def _bands(conn: Connection) -> tuple[Band, ...]:
    tenth = case((items.c.confidence >= 1.0, BANDS - 1), else_=cast(func.floor(items.c.confidence * BANDS), Integer))
    query = (
        select(
            tenth.label("tenth"),
            func.count().label("n"),
            func.sum(case((rulings.c.correct, 1), else_=0)).label("n_correct"),
            func.avg(items.c.confidence).label("mean"),
        )
        .join(rulings, items.c.ruling_id == rulings.c.id)
        .where(rulings.c.correct.is_not(None), items.c.confidence.is_not(None))
        .group_by("tenth")
        .order_by("tenth")
    )
    return tuple(
        Band(row.tenth / BANDS, (row.tenth + 1) / BANDS, row.n, int(row.n_correct), float(row.mean))
        for row in conn.execute(query)
    )
