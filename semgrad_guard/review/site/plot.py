"""The reliability plot as plain numbers: where each point stands in an SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.review.store.read import Band

SIZE = 240
"""Side of the square in which confidence and share correct run from 0 to 1."""
_SMALLEST, _LARGEST = 4.0, 14.0


@dataclass(frozen=True, slots=True)
class Point:
    """One tenth of confidence: across is the guard's confidence, up is how often people agreed."""

    x: float
    y: float
    radius: float
    text: str


def points(bands: Sequence[Band]) -> tuple[Point, ...]:
    """Return one point for each band; its area grows with the number of answers."""
    most = max((band.n for band in bands), default=1)
    return tuple(
        Point(
            x=round(band.mean_confidence * SIZE, 1),
            y=round((1.0 - band.share_correct) * SIZE, 1),
            radius=round(max(_SMALLEST, _LARGEST * (band.n / most) ** 0.5), 1),
            text=f"confidence {band.mean_confidence:.2f}: {band.n_correct} of {band.n} right",
        )
        for band in bands
    )
