"""Detects drift: recent scores or outcomes that no longer look like those that the profile was fitted on."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.calibration.profile import Profile

WINDOW = 200
"""How many recent scores are compared with the reference."""
STEP = 50
"""New scores between two comparisons."""
FALSE_ALARM = 0.01
"""Probability that a monitor ever reports drift while there is none."""
MIN_OUTCOMES = 30
"""Outcomes needed before confidence is compared with the share of right answers."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The result of the last comparison."""

    what: str
    """`margin`, a signal's name, or `outcomes`."""
    distance: float
    """Kolmogorov-Smirnov distance, or the gap between confidence and the share of right answers."""
    limit: float
    """Distance above which it counts as drift."""

    @property
    def found(self) -> bool:
        """Whether the distance is beyond the limit."""
        return self.distance > self.limit

    @property
    def text(self) -> str:
        """The result in words."""
        name = "confidence against the share of right answers" if self.what == "outcomes" else self.what
        return f"{name}: distance {self.distance:.2f}, drift above {self.limit:.2f}"


class DriftMonitor:
    """Keeps a bounded window of recent scores and outcomes and tests it against the profile's reference.

    Scores: two-sample Kolmogorov-Smirnov distance of margin and of every signal, after each 50 new scores once the
    window is full. Outcomes: Hoeffding bound on the mean of correct − confidence, which is 0 for an honest confidence
    whichever answers people look at. The k-th comparison may err with probability 6 / (π k)² of the monitor's
    `false_alarm`, shared by what it compares, so that all comparisons together stay within it (union bound).
    Only the latest comparison counts, so drift ends when recent scores look as before again.

    It is safe to share between threads.
    """

    def __init__(
        self, profile: Profile, *, window: int = WINDOW, step: int = STEP, false_alarm: float = FALSE_ALARM
    ) -> None:
        """Start with an empty window.

        Args:
            profile: gives the reference distributions.
            window: number of recent scores, and of recent outcomes, that are kept.
            step: new scores or outcomes between two comparisons.
            false_alarm: probability of ever reporting drift while there is none, in (0, 1).
        """
        self.profile, self.window = profile, window
        self._names = ("margin", *profile.reference.signals)
        self._references = [np.asarray(profile.reference.margin), *map(np.asarray, profile.reference.signals.values())]
        self._step, self._false_alarm = step, false_alarm
        self._scores: deque[tuple[float, ...]] = deque(maxlen=window)
        self._gaps: deque[float] = deque(maxlen=window)
        self._new_scores = self._new_outcomes = 0
        self._score_tests = self._outcome_tests = 0
        self._score_drifts: tuple[Drift, ...] = ()
        self._outcome_drifts: tuple[Drift, ...] = ()
        self._lock = threading.Lock()

    def observe(self, margin: float, signals: Mapping[str, float]) -> None:
        """Record one new score."""
        row = (margin, *(signals.get(name, math.nan) for name in self._names[1:]))
        with self._lock:
            self._scores.append(row)
            self._new_scores += 1
            if len(self._scores) == self.window and self._new_scores >= self._step:
                self._new_scores = 0
                self._score_tests += 1
                self._score_drifts = self._compare_scores()

    def observe_outcome(self, confidence: float, *, correct: bool) -> None:
        """Record one answer's confidence and whether the answer was correct."""
        with self._lock:
            self._gaps.append(float(correct) - confidence)
            self._new_outcomes += 1
            if len(self._gaps) >= MIN_OUTCOMES and self._new_outcomes >= min(self._step, MIN_OUTCOMES):
                self._new_outcomes = 0
                self._outcome_tests += 1
                self._outcome_drifts = (self._compare_outcomes(),)

    @property
    def comparisons(self) -> tuple[Drift, ...]:
        """Results of the latest comparisons; empty until there are enough scores."""
        with self._lock:
            return self._score_drifts + self._outcome_drifts

    @property
    def drifted(self) -> bool:
        """Whether the latest comparisons found drift."""
        return any(drift.found for drift in self.comparisons)

    @property
    def why(self) -> str:
        """What drifted, in words; empty without drift."""
        return "; ".join(drift.text for drift in self.comparisons if drift.found)

    @property
    def n_scores(self) -> int:
        """Number of scores in the window."""
        with self._lock:
            return len(self._scores)

    def _error_share(self, k: int) -> float:
        """Return the error probability that the k-th comparison of its kind may use."""
        return 0.5 * self._false_alarm * 6 / (math.pi * k) ** 2

    def _compare_scores(self) -> tuple[Drift, ...]:
        """Return the comparison of every column with its reference."""
        rows = np.array(self._scores)
        share = self._error_share(self._score_tests) / len(self._names)
        return tuple(
            ks_distance(name, rows[:, j], self._references[j], self.profile.reference.n, share)
            for j, name in enumerate(self._names)
        )

    def _compare_outcomes(self) -> Drift:
        """Compare confidence with the share of right answers."""
        share = self._error_share(self._outcome_tests)
        limit = math.sqrt(math.log(2 / share) / (2 * len(self._gaps)))
        return Drift("outcomes", abs(sum(self._gaps) / len(self._gaps)), limit)


def ks_distance(
    name: str, recent: NDArray[np.float64], reference: NDArray[np.float64] | Sequence[float], n: int, error: float
) -> Drift:
    """Return the Kolmogorov-Smirnov distance of recent values from a reference, and its limit.

    Args:
        name: what is compared.
        recent: recent values; NaN is left out.
        reference: the reference's sorted values at evenly spaced shares.
        n: number of values that the reference was taken from.
        error: probability of exceeding the limit when both have the same distribution.
    """
    values = np.sort(recent[np.isfinite(recent)])
    base = np.asarray(reference, dtype=np.float64)
    if not len(values) or not len(base):
        return Drift(name, 0.0, 1.0)
    places = np.union1d(values, base)
    ours = np.searchsorted(values, places, "right") / len(values)
    theirs = np.searchsorted(base, places, "right") / len(base)
    compression = 1 / len(base) if n > len(base) else 0.0
    limit = math.sqrt(math.log(2 / error) / 2 * (1 / len(values) + 1 / n)) + compression
    return Drift(name, float(np.abs(ours - theirs).max()), limit)
