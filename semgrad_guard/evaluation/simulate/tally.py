"""Replays are counted one by one, so that a file of any size fits in memory."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.evaluation.simulate.figures import Curve, RouteFigures, Simulation, share
from semgrad_guard.evaluation.simulate.recorded import RETRY
from semgrad_guard.evaluation.simulate.replay import ERROR, Simulator
from semgrad_guard.flow import Action

if TYPE_CHECKING:
    from collections.abc import Iterable

    from semgrad_guard.evaluation.simulate.recorded import RecordedQuestion
    from semgrad_guard.evaluation.simulate.replay import Replay
    from semgrad_guard.policy import Policy

ALL = "all"
_ORDER = (
    Action.ACCEPT.value,
    RETRY,
    Action.FALLBACK_MODEL.value,
    Action.ANSWER_WITH_WARNING.value,
    Action.HUMAN_REVIEW.value,
    Action.ABSTAIN.value,
    ERROR,
)


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
