"""Sums up a simulation: answers, errors and cost by route."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration import Interval
from semgrad_guard.evaluation.reliability import wilson
from semgrad_guard.evaluation.simulate.replay import ERROR, Simulator
from semgrad_guard.flow import Action

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from semgrad_guard.evaluation.simulate.recorded import RecordedQuestion
    from semgrad_guard.evaluation.simulate.replay import Replay
    from semgrad_guard.flow import Json
    from semgrad_guard.policy import Policy

N_CURVE = 21
"""Thresholds of the curve as JSON: 0.00, 0.05, ... 1.00."""


def share(part: int, whole: int) -> Interval:
    """Return a share with its 95 % interval (Wilson); undefined where there is nothing to share."""
    if not whole:
        return Interval(value=None)
    low, high = wilson(np.array([part / whole]), np.array([float(whole)]))
    return Interval(value=part / whole, low=float(low[0]), high=float(high[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFigures:
    """The questions that ended in one way, or all of them."""

    route: str
    """Action of the policy, the route of an accepted later answer, `error`, or `all`."""
    n: int
    """Questions."""
    n_all: int
    """Questions of the whole simulation."""
    n_answered: int
    """Those whose caller got a model's answer, warned ones included."""
    n_answered_labelled: int
    """Those of them whose label is known."""
    n_wrong: int
    """Those of them that are wrong."""
    n_withheld_labelled: int
    """Questions whose caller got no answer, with a label for the answer that was held back."""
    n_right_withheld: int
    """Those of them whose answer was right."""
    mean_cost: float
    """Cost units of a question."""
    mean_seconds: float | None
    """Seconds to the end, people's time excluded; `None` where they are not known."""
    n_timed: int
    """Questions whose seconds are known."""

    @property
    def share(self) -> Interval:
        """Share of all questions that ended so."""
        return share(self.n, self.n_all)

    @property
    def coverage(self) -> Interval:
        """Share of these questions that were answered."""
        return share(self.n_answered, self.n)

    @property
    def error_rate(self) -> Interval:
        """Share of wrong answers among those given."""
        return share(self.n_wrong, self.n_answered_labelled)

    def to_json(self) -> dict[str, Json]:
        """Return the figures as values that JSON can hold."""
        return {
            "route": self.route,
            "n": self.n,
            "share": _interval(self.share),
            "n_answered": self.n_answered,
            "coverage": _interval(self.coverage),
            "n_answered_labelled": self.n_answered_labelled,
            "n_wrong": self.n_wrong,
            "error_rate": _interval(self.error_rate),
            "n_withheld": self.n - self.n_answered,
            "n_withheld_labelled": self.n_withheld_labelled,
            "n_right_withheld": self.n_right_withheld,
            "mean_cost": self.mean_cost,
            "mean_seconds": self.mean_seconds,
            "n_timed": self.n_timed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Effect of accepting first answers alone, at every threshold that makes a difference, the highest first."""

    accept: NDArray[np.float64]
    """Confidence from which answers are accepted."""
    coverage: NDArray[np.float64]
    """Share of the first answers that are."""
    error_rate: NDArray[np.float64]
    """Share of wrong ones among them."""

    @classmethod
    def of(cls, confidence: NDArray[np.float64], correct: NDArray[np.float64]) -> Curve:
        """Return the curve of labelled first answers; one without a confidence (NaN) is never accepted."""
        known = ~np.isnan(confidence)
        order = np.argsort(-confidence[known], kind="stable")
        sorted_confidence, wrong = confidence[known][order], 1.0 - correct[known][order]
        n = np.arange(1, len(order) + 1)
        ends = np.append(np.diff(sorted_confidence) != 0, True)[: len(order)]
        return cls(
            accept=sorted_confidence[ends],
            coverage=(n / max(1, len(confidence)))[ends],
            error_rate=(np.cumsum(wrong) / n)[ends],
        )

    def at(self, accept: float) -> tuple[float, float | None]:
        """Return coverage and error rate at a threshold; no error rate where nothing is accepted."""
        reached = int((self.accept >= accept).sum())
        return (float(self.coverage[reached - 1]), float(self.error_rate[reached - 1])) if reached else (0.0, None)

    def to_json(self) -> list[Json]:
        """Return the curve at evenly spaced thresholds."""
        found: list[Json] = []
        for accept in np.linspace(0, 1, N_CURVE).round(2).tolist():
            coverage, error_rate = self.at(accept)
            found.append({"accept": accept, "coverage": coverage, "error_rate": error_rate})
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A policy's figures on labelled answers."""

    policy: str
    """Origin of the policy."""
    thresholds: Mapping[str, float]
    """Confidence that each `accept` of the policy needs, by rule."""
    total: RouteFigures
    routes: tuple[RouteFigures, ...]
    """One for each way in which questions ended, answers before refusals."""
    first_error_rate: Interval
    """Share of wrong answers among all first ones: what callers get without a guard."""
    curve: Curve
    missing: Mapping[str, int]
    """Route -> questions in which the policy took it and no answer was recorded."""
    n_repeated: int
    """Questions that share their group or text with an earlier one, so they are not independent of it."""
    n_failed: int
    """First answers that could not be scored: the policy's `on_error` decided."""
    n_uncalibrated: int
    """First answers that were scored and have no confidence: the policy's `on_uncalibrated` decided."""
    n_borrowed: int
    """Questions judged by a recorded confidence, because the profile gave none."""
    why_borrowed: str
    """Why the profile gave none, the first time."""

    def n_ended(self, *routes: str) -> int:
        """Return how many questions ended by one of these routes."""
        return sum(figures.n for figures in self.routes if figures.route in routes)

    def to_json(self) -> dict[str, Json]:
        """Return everything as values that JSON can hold."""
        return {
            "policy": self.policy,
            "accept": dict(self.thresholds),
            "all": self.total.to_json(),
            "routes": [figures.to_json() for figures in self.routes],
            "first_answers": {
                "error_rate": _interval(self.first_error_rate),
                "curve": self.curve.to_json(),
                "n_failed": self.n_failed,
                "n_uncalibrated": self.n_uncalibrated,
            },
            "not_recorded": dict(self.missing),
            "n_repeated": self.n_repeated,
            "n_recorded_confidence": self.n_borrowed,
        }


def _interval(found: Interval) -> Json:
    return {"value": found.value, "low": found.low, "high": found.high}


ALL = "all"
_ORDER = (*(action.value for action in Action), ERROR)


def simulate(policy: Policy | Simulator, questions: Iterable[RecordedQuestion]) -> Simulation:
    """Return what a policy does with recorded questions.

    Args:
        policy: the policy, or the simulator of one.
        questions: what was recorded; read once, one by one.

    Raises:
        CalibrationError: the profile cannot be read, or cannot keep the error rate that `accept` asks for.
        DataFileError: the questions come from a file that cannot be used.
    """
    simulator = policy if isinstance(policy, Simulator) else Simulator(policy)
    tally = Tally()
    for question in questions:
        tally.add(question, simulator.replay(question))
    return tally.simulation(simulator)


@dataclass(slots=True)
class _Count:
    """Running sums of one route."""

    n: int = 0
    n_answered: int = 0
    n_answered_labelled: int = 0
    n_wrong: int = 0
    n_withheld_labelled: int = 0
    n_right_withheld: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    n_timed: int = 0

    def add(self, replay: Replay) -> None:
        correct = replay.answer.correct
        self.n += 1
        self.cost += replay.cost
        if replay.seconds is not None:
            self.seconds += replay.seconds
            self.n_timed += 1
        if replay.is_answered:
            self.n_answered += 1
            self.n_answered_labelled += correct is not None
            self.n_wrong += correct is False
        else:
            self.n_withheld_labelled += correct is not None
            self.n_right_withheld += correct is True

    def figures(self, route: str, n_all: int) -> RouteFigures:
        return RouteFigures(
            route=route,
            n=self.n,
            n_all=n_all,
            n_answered=self.n_answered,
            n_answered_labelled=self.n_answered_labelled,
            n_wrong=self.n_wrong,
            n_withheld_labelled=self.n_withheld_labelled,
            n_right_withheld=self.n_right_withheld,
            mean_cost=self.cost / max(1, self.n),
            mean_seconds=self.seconds / self.n_timed if self.n_timed else None,
            n_timed=self.n_timed,
        )


@dataclass(slots=True)
class Tally:
    """Counts replays."""

    _routes: dict[str, _Count] = field(default_factory=dict[str, _Count])
    _total: _Count = field(default_factory=_Count)
    _missing: Counter[str] = field(default_factory=Counter[str])
    _confidence: array[float] = field(default_factory=lambda: array("d"))
    """Confidence of each first answer; NaN for none."""
    _correct: array[float] = field(default_factory=lambda: array("d"))
    """1 or 0 for each first answer; NaN for no label."""
    _groups: array[int] = field(default_factory=lambda: array("q"))
    _n_failed: int = 0
    _n_borrowed: int = 0
    _why_borrowed: str = ""

    def add(self, question: RecordedQuestion, replay: Replay) -> None:
        """Count one question."""
        self._total.add(replay)
        self._routes.setdefault(replay.route, _Count()).add(replay)
        self._missing.update(set(replay.missing))
        first = replay.first
        self._confidence.append(np.nan if replay.first_confidence is None else replay.first_confidence)
        self._correct.append(np.nan if first.correct is None else float(first.correct))
        self._n_failed += replay.first_failed
        if question.group is not None:
            self._groups.append(hash(question.group))
        if replay.borrowed is not None:
            self._n_borrowed += 1
            self._why_borrowed = self._why_borrowed or replay.borrowed

    def simulation(self, simulator: Simulator) -> Simulation:
        """Return the figures of everything counted."""
        confidence, correct = np.array(self._confidence), np.array(self._correct)
        labelled = ~np.isnan(correct)
        groups = np.array(self._groups)
        return Simulation(
            policy=f"{simulator.policy.source} ({simulator.policy.digest})",
            thresholds=simulator.thresholds,
            total=self._total.figures(ALL, self._total.n),
            routes=tuple(self._routes[r].figures(r, self._total.n) for r in sorted(self._routes, key=_place)),
            first_error_rate=share(int((correct == 0).sum()), int(labelled.sum())),
            curve=Curve.of(confidence[labelled], correct[labelled]),
            missing=dict(sorted(self._missing.items())),
            n_repeated=len(groups) - len(np.unique(groups)),
            n_failed=self._n_failed,
            n_uncalibrated=int(np.isnan(confidence).sum()) - self._n_failed,
            n_borrowed=self._n_borrowed,
            why_borrowed=self._why_borrowed,
        )


def _place(route: str) -> tuple[int, str]:
    return _ORDER.index(route.partition(":")[0]), route
