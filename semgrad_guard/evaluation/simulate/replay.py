"""One recorded question under a policy: how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.errors import UncalibratedError
from semgrad_guard.evaluation.simulate.playback import (
    Inbox,
    Playback,
    RecordedConfidences,
    RecordedScores,
    TimedByPlayback,
    resources_of,
)
from semgrad_guard.evaluation.simulate.recorded import FIRST, fallback_route
from semgrad_guard.flow import Accept, Action, Status
from semgrad_guard.guard.assembly import NoCalibrator, decider_of, profile_of
from semgrad_guard.guard.question_run import Parts, Question
from semgrad_guard.policy.decide import step_rule
from semgrad_guard.policy.steps import FallbackModelStep, NewAttemptStep

if TYPE_CHECKING:
    from semgrad_guard.calibration import Profile
    from semgrad_guard.evaluation.simulate.recorded import RecordedAnswer, RecordedQuestion
    from semgrad_guard.flow import Decision, Outcome
    from semgrad_guard.policy import Policy
    from semgrad_guard.ports import Calibrator

ERROR = "error"
"""Route of a question whose caller gets an exception: `on_uncalibrated: error`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How one question ended."""

    route: str
    """The action that ended it; for an accepted later answer, the route that the answer came by."""
    is_answered: bool
    """True when the caller got a model's answer, with or without a warning."""
    answer: RecordedAnswer
    """The answer that was given, held back or handed on."""
    first: RecordedAnswer
    first_confidence: float | None
    """Confidence of the first answer; `None` when there was none."""
    first_failed: bool
    """True when the first answer could not be judged, so `on_error` decided."""
    cost: float
    """Cost units of all answers."""
    seconds: float | None
    """From the question to the end, people's time excluded; `None` when the time of some answer is not known."""
    missing: tuple[str, ...]
    """Routes that the policy took and for which no answer was recorded."""
    borrowed: str | None
    """Why the profile gave no confidence, where a recorded one was used for some answer."""


class Simulator:
    """Runs the guard's flow over recorded questions."""

    def __init__(self, policy: Policy) -> None:
        """Make the guard of a policy, without its scorer, queue and sinks.

        Raises:
            CalibrationError: the profile cannot be read, or cannot keep the error rate that `accept` asks for.
        """
        profile = profile_of(policy)
        self.policy = policy
        self._decider = decider_of(policy, profile)
        self.thresholds = self._decider.compute_thresholds()
        """Confidence that each `accept` needs, by rule."""
        self._calibrator = _calibrator(profile)
        specs = [(step_rule(place, rung), rung.spec) for place, rung in policy.ladders()]
        self._costs = {rule: spec.cost for rule, spec in specs if isinstance(spec, NewAttemptStep)}
        self._fallbacks = {spec.name for _, spec in specs if isinstance(spec, FallbackModelStep)}

    def replay(self, question: RecordedQuestion) -> Replay:
        """Return how a question ends under the policy."""
        playback = Playback(question, self.policy.budget.seconds)
        flow = Question(self._parts(playback), resources_of(playback, self._fallbacks), playback.clock)
        try:
            outcome = flow.run(playback.first)
        except UncalibratedError:
            return self._raised(question, playback)
        answers = [playback.answer(attempt.exchange.id) for attempt in outcome.attempts]
        return Replay(
            route=_route(outcome, playback.answer(outcome.exchange.id)),
            is_answered=outcome.status in {Status.ANSWERED, Status.WARNED},
            answer=playback.answer(outcome.exchange.id),
            first=question.first,
            first_confidence=outcome.attempts[0].decision.confidence.value,
            first_failed=_failed(outcome.attempts[0].decision),
            cost=self._cost(outcome, answers),
            seconds=_seconds(playback, answers),
            missing=tuple(playback.missing),
            borrowed=next(iter(playback.borrowed.values()), None),
        )

    def _parts(self, playback: Playback) -> Parts:
        return Parts(
            scorer=RecordedScores(playback),
            calibrator=RecordedConfidences(self._calibrator, playback),
            decider=TimedByPlayback(self._decider, playback),
            queue=Inbox(),
            abstain_message=self.policy.messages.abstain,
            budget_s=None,  # kept by the playback: the real clock says nothing here
            policy=self.policy.source,
        )

    def _raised(self, question: RecordedQuestion, playback: Playback) -> Replay:
        """Return the end of a question whose caller gets an exception."""
        return Replay(
            route=ERROR,
            is_answered=False,
            answer=question.first,
            first=question.first,
            first_confidence=None,
            first_failed=False,
            cost=question.first.cost or 0.0,
            seconds=_seconds(playback, [question.first]),
            missing=tuple(playback.missing),
            borrowed=None,
        )

    def _cost(self, outcome: Outcome, answers: list[RecordedAnswer]) -> float:
        first, *later = answers
        rules = [attempt.decision.rule for attempt in outcome.attempts]
        own = [
            answer.cost if answer.cost is not None else self._costs[rule]
            for rule, answer in zip(rules, later, strict=False)
        ]
        return (first.cost or 0.0) + sum(own)


def unscored_routes(policy: Policy) -> frozenset[str]:
    """Return the routes of fallback models whose answers a policy passes without judging them."""
    specs = [rung.spec for _, rung in policy.ladders()]
    return frozenset(fallback_route(s.name) for s in specs if isinstance(s, FallbackModelStep) and s.unscored)


def _calibrator(profile: Profile | None) -> Calibrator:
    if profile is None:
        return NoCalibrator()
    from semgrad_guard.calibration import ProfileCalibrator  # noqa: PLC0415 - loads numpy

    return ProfileCalibrator(profile)


def _route(outcome: Outcome, answer: RecordedAnswer) -> str:
    if not isinstance(outcome.decision.step, Accept):
        return outcome.decision.action.value
    return Action.ACCEPT.value if answer.route == FIRST else answer.route


def _failed(decision: Decision) -> bool:
    """Return whether an answer could not be judged; not being handed over is another failure."""
    return decision.failure is not None and decision.failure.stage != Action.HUMAN_REVIEW.value


def _seconds(playback: Playback, answers: list[RecordedAnswer]) -> float | None:
    if not all(answer.is_timed for answer in answers):
        return None
    return playback.seconds + (answers[0].answer_s or 0.0)
