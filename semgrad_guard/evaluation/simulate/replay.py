"""Recorded questions under another policy: the guard's own flow, with recorded scores, retries and fallbacks."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from semgrad_guard.errors import DataFileError, ScoringError, StepUnavailableError, UncalibratedError
from semgrad_guard.evaluation.row_files import differences, settings_of
from semgrad_guard.evaluation.simulate.recorded import FIRST, RETRY, UNKNOWN
from semgrad_guard.flow import Accept, Action, FallbackModel, ReviewId, Status
from semgrad_guard.guard.assembly import NoCalibrator, decider_of, profile_of
from semgrad_guard.guard.question_run import Parts, QuestionRun
from semgrad_guard.policy.decide import step_rule
from semgrad_guard.policy.steps import FallbackModelStep, NewAttemptStep
from semgrad_guard.routing import Resources

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from semgrad_guard.calibration import Profile
    from semgrad_guard.evaluation.simulate.recorded import RecordedAnswer, RecordedQuestion, RecordedRows
    from semgrad_guard.flow import (
        Attempt,
        Confidence,
        Decision,
        Exchange,
        ExchangeId,
        Failure,
        Fingerprint,
        Outcome,
        Passage,
        Progress,
        RetryRetrieval,
        Ruling,
        Score,
    )
    from semgrad_guard.policy import Policy
    from semgrad_guard.ports import Calibrator, Decider

UNNAMED = "the question"
"""Stands for a question that was not recorded: a guard retrieves nothing for a question that it does not know."""


class Playback:
    """Returns the recorded answers to one question, each once, and keeps a simulated clock."""

    def __init__(self, question: RecordedQuestion, budget_s: float | None) -> None:
        """Start the clock.

        Args:
            question: what was recorded.
            budget_s: the policy's seconds for all attempts.
        """
        self.seconds = 0.0
        """Time since the first answer was there."""
        self.limit_s: float | None = None
        """Seconds that the step under way may take."""
        self.missing: list[str] = []
        """Routes that the policy took and for which there is no recorded answer left."""
        self.borrowed: dict[ExchangeId, str] = {}
        """Answers judged by their recorded confidence, and why the profile gave none."""
        first = question.first.exchange
        self.first = replace(first, attempt=1, question=first.question or UNNAMED)
        self._budget_s = budget_s
        self._answers = {answer.exchange.id: answer for answer in (question.first, *question.later)}
        self._left: dict[str, deque[RecordedAnswer]] = {}
        for answer in question.later:
            self._left.setdefault(answer.route, deque()).append(answer)

    def clock(self) -> float:
        """Return the seconds since the first answer was there."""
        return self.seconds

    def answer(self, exchange_id: ExchangeId) -> RecordedAnswer:
        """Return the recorded answer of an attempt."""
        return self._answers[exchange_id]

    def take(self, route: str, before: Exchange) -> Exchange:
        """Return the next recorded answer of a route, as the attempt that follows another.

        Raises:
            StepUnavailableError: there is none left.
            TimeoutError: it took longer than the step or the budget allows.
        """
        left = self._left.get(route)
        if not left:
            self.missing.append(route)
            msg = f"no (other) answer by {route} was recorded for this question"
            raise StepUnavailableError(msg)
        answer, allowed_s = left.popleft(), self._allowed_s()
        took_s = answer.answer_s or 0.0
        if allowed_s is not None and took_s > allowed_s:
            self.seconds += allowed_s
            msg = f"the recorded answer by {route} took {took_s:.3g} s, allowed are {allowed_s:.3g} s"
            raise TimeoutError(msg)
        self.seconds += took_s
        return replace(
            answer.exchange,
            attempt=before.attempt + 1,
            question=before.question,
            tags=before.tags,
            metadata=before.metadata,
        )

    def _allowed_s(self) -> float | None:
        left_s = None if self._budget_s is None else max(0.0, self._budget_s - self.seconds)
        known = [limit for limit in (self.limit_s, left_s) if limit is not None]
        return min(known, default=None)


class RecordedScores:
    """Returns the recorded score of an answer."""

    name = "recorded"

    def __init__(self, playback: Playback) -> None:
        """Keep where the answers are."""
        self._playback = playback

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return that nothing is known: each score carries its own."""
        return replace(UNKNOWN, proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the recorded score.

        Raises:
            ScoringError: scoring failed then, too.
        """
        del timeout_s, cancel  # the score is there at once
        answer = self._playback.answer(exchange.id)
        self._playback.seconds += answer.scoring_s or 0.0
        if exchange.score is None:
            raise ScoringError(answer.error or "this answer was not scored")
        return exchange.score

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        """Return the recorded scores."""
        return [self._score_or_error(exchange, timeout_s, cancel) for exchange in exchanges]

    def _score_or_error(
        self, exchange: Exchange, timeout_s: float | None, cancel: threading.Event | None
    ) -> Score | ScoringError:
        try:
            return self.score(exchange, timeout_s=timeout_s, cancel=cancel)
        except ScoringError as error:
            return error


class RecordedConfidences:
    """Judges by the policy's profile, and by the recorded confidence where the profile gives none."""

    def __init__(self, profile: Calibrator, playback: Playback) -> None:
        """Keep both."""
        self._profile, self._playback = profile, playback

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:
        """Return the profile's confidence, else the recorded one."""
        found = self._profile.confidence(exchange, score)
        recorded = self._playback.answer(exchange.id).confidence
        if found.value is not None or recorded is None:
            return found
        self._playback.borrowed[exchange.id] = found.why
        return replace(found, value=recorded, why=f"recorded; {found.why}")

    def with_span_confidences(self, score: Score) -> Score:
        """Same as the profile's."""
        return self._profile.with_span_confidences(score)


class TimedByPlayback:
    """Decides as another decider; the time limit of a step is kept by the playback, not by a real clock."""

    def __init__(self, decider: Decider, playback: Playback) -> None:
        """Keep both."""
        self._decider, self._playback = decider, playback

    def best(self, exchange: Exchange, decision: Decision, progress: Progress) -> Exchange:
        """Same as the decider's own."""
        return self._decider.best(exchange, decision, progress)

    def decide_failure(self, exchange: Exchange, failure: Failure, progress: Progress) -> Decision:
        """Same as the decider's own."""
        return self._decider.decide_failure(exchange, failure, progress)

    def decide(self, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
        """Return the decider's decision, its step without a limit on the real clock."""
        decision = self._decider.decide(exchange, score, confidence, progress)
        step = decision.step
        if step.ends_question is True:
            return decision
        self._playback.limit_s = step.timeout_s
        return replace(decision, step=replace(step, timeout_s=None))


class _RecordedChain:
    def __init__(self, playback: Playback) -> None:
        self._playback = playback

    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:  # noqa: ARG002
        return self._playback.take(RETRY, exchange)


class _RecordedModel:
    def __init__(self, playback: Playback, name: str) -> None:
        self._playback, self._route = playback, FallbackModel(name=name).route

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:  # noqa: ARG002
        return self._playback.take(self._route, exchange)


def resources_of(playback: Playback, fallbacks: Iterable[str]) -> Resources:
    """Return the resources for the steps of a policy.

    Args:
        playback: the recorded answers.
        fallbacks: names of all fallback models that the policy names.
    """
    models = {name: _RecordedModel(playback, name) for name in fallbacks}
    return Resources(chain=_RecordedChain(playback), fallbacks=models)


class Inbox:
    """A review queue that accepts every answer, stores none, and gives no verdicts."""

    def submit(self, exchange: Exchange, decision: Decision, attempts: Sequence[Attempt] = ()) -> ReviewId:  # noqa: ARG002
        """Return the answer's id."""
        return ReviewId(exchange.id)

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:  # noqa: ARG002 - the protocol's arguments
        """Return that there is no verdict."""
        return None


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
    """The answer that was given, held back or handed to a person."""
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
        self._profile = profile = profile_of(policy)
        self.policy = policy
        self._decider = decider_of(policy, profile)
        self.thresholds = self._decider.compute_thresholds()
        """Confidence that each `accept` needs, by rule."""
        self._calibrator = _calibrator(profile)
        specs = [(step_rule(place, entry), entry.spec) for place, entry in policy.escalation_steps()]
        self._costs = {rule: spec.cost for rule, spec in specs if isinstance(spec, NewAttemptStep)}
        self._fallbacks = {spec.name for _, spec in specs if isinstance(spec, FallbackModelStep)}

    def check_setting(self, rows: RecordedRows, path: Path) -> None:
        """Refuse rows that were scored by another setting than the policy's profile was fitted for.

        Args:
            rows: the recorded rows.
            path: their file, for the message.

        Raises:
            DataFileError: the profile gives the first scored answer no confidence, because its setting differs.
        """
        if rows.first_scored is None or self._profile is None:
            return
        line, exchange, score = rows.first_scored
        there, wanted = settings_of(asdict(score.fingerprint)), settings_of(asdict(self._profile.fingerprint))
        found = differences(there, wanted, new=f"in profile {self._profile.name}")
        if found and self._calibrator.confidence(exchange, score).value is None:
            why = f"was scored by another setting than the policy's profile: {'; '.join(found)}"
            advice = f"name the profile of that setting, or score the file again with {self.policy.scorer.model}"
            raise DataFileError(path, line, why, f"{advice} (`semgrad-guard score --rescore`)")

    def replay(self, question: RecordedQuestion) -> Replay:
        """Return how a question ends under the policy."""
        playback = Playback(question, self.policy.budget.seconds)
        flow = QuestionRun(self._parts(playback), resources_of(playback, self._fallbacks), clock=playback.clock)
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
    specs = [entry.spec for _, entry in policy.escalation_steps()]
    return frozenset(FallbackModel(name=s.name).route for s in specs if isinstance(s, FallbackModelStep) and s.unscored)


def _calibrator(profile: Profile | None) -> Calibrator:
    if profile is None:
        return NoCalibrator()
    from semgrad_guard.calibration import ProfileCalibrator  # loads numpy

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
