"""Where an item stands in the queue: risk gives a head start in time, and waiting does the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from semgrad_guard.review.items import QueueSettings


def rank(created_at: datetime, confidence: float | None, tags: Iterable[str], settings: QueueSettings) -> float:
    """Return the moment, in seconds, at which the item counts as submitted; the lowest is judged first.

    An answer of confidence 0 counts as `head_start_s` older than one of confidence 1, times the weight of its heaviest
    tag. So the riskiest come first, and a safe item that has waited that much longer still gets its turn. Without a
    confidence nothing speaks for the answer, so it counts as 0.
    """
    weight = max((settings.tag_weights.get(tag, 1.0) for tag in tags), default=1.0)
    risk = 1.0 - (confidence or 0.0)
    return created_at.timestamp() - risk * weight * settings.head_start_s
