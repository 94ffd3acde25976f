"""The best attempt at a question: the one that is returned, held back or handed on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from semgrad_guard.flow import Attempt, Confidence, Progress


def known(confidence: Confidence) -> float | None:
    """Return a confidence that can be compared; `None` when there is none, or none that lies in [0, 1]."""
    value = confidence.value
    return value if value is not None and math.isfinite(value) and 0 <= value <= 1 else None


def best_attempt(progress: Progress, present: Attempt) -> Attempt:
    """Return the attempt with the highest confidence, the earliest of equals.

    An attempt without a usable confidence is never better than one with; if none has one, it is the present attempt.
    """
    return best_judged((*progress.attempts, present)) or present


def best_judged(attempts: Iterable[Attempt]) -> Attempt | None:
    """Return the attempt with the highest usable confidence, the earliest of equals; `None` if none has one."""
    judged = [(value, a) for a in attempts if (value := known(a.decision.confidence)) is not None]
    return max(judged, key=lambda pair: pair[0])[1] if judged else None
