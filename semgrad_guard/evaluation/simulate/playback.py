"""The ports of a guard, made of the recorded answers to one question.

The guard's own flow runs over them, so nothing of it is written twice. Only time is made up: it passes by what the
answers are recorded to have taken, and a step whose recorded answer took longer than it may has failed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from semgrad_guard.errors import ScoringError, StepUnavailableError
from semgrad_guard.evaluation.simulate.recorded import RETRY, UNKNOWN, fallback_route
from semgrad_guard.flow import NewAttempt, ReviewId
from semgrad_guard.routing import Resources

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from semgrad_guard.evaluation.simulate.recorded import RecordedAnswer, RecordedQuestion
    from semgrad_guard.flow import (
        Attempt,
        Confidence,
        Decision,
        Exchange,
        ExchangeId,
        Failure,
        Fingerprint,
        Passage,
        Progress,
        RetryRetrieval,
        Ruling,
        Score,
    )
    from semgrad_guard.ports import Calibrator, Decider

UNNAMED = "the question"
"""Stands for a question that was not recorded: a guard retrieves nothing for a question that it does not know."""


class Playback:
    """Hands out the recorded answers to one question, each once, on a clock of its own."""

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
    """Scores an answer by what was recorded."""

    name = "recorded"

    def __init__(self, playback: Playback) -> None:
        """Keep where the answers are."""
        self._playback = playback

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return that nothing is known: each score carries its own."""
        return replace(UNKNOWN, proxy=proxy)

    def score(self, exchange: Exchange) -> Score:
        """Return the recorded score.

        Raises:
            ScoringError: scoring failed then, too.
        """
        answer = self._playback.answer(exchange.id)
        self._playback.seconds += answer.scoring_s or 0.0
        if exchange.score is None:
            raise ScoringError(answer.error or "this answer was not scored")
        return exchange.score

    def score_batch(self, exchanges: Sequence[Exchange]) -> list[Score | ScoringError]:
        """Return the recorded scores."""
        return [self._score_or_error(exchange) for exchange in exchanges]

    def _score_or_error(self, exchange: Exchange) -> Score | ScoringError:
        try:
            return self.score(exchange)
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
        if not isinstance(step, NewAttempt):
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
        self._playback, self._route = playback, fallback_route(name)

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:  # noqa: ARG002
        return self._playback.take(self._route, exchange)


def resources_of(playback: Playback, fallbacks: Iterable[str]) -> Resources:
    """Return what the steps of a policy act with.

    Args:
        playback: the recorded answers.
        fallbacks: names of all fallback models that the policy names.
    """
    models = {name: _RecordedModel(playback, name) for name in fallbacks}
    return Resources(chain=_RecordedChain(playback), fallbacks=models)


class Inbox:
    """A review queue that takes every answer and keeps none: nobody is waited for."""

    def submit(self, exchange: Exchange, decision: Decision, attempts: Sequence[Attempt] = ()) -> ReviewId:  # noqa: ARG002
        """Return the answer's id."""
        return ReviewId(exchange.id)

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:  # noqa: ARG002 - the protocol's arguments
        """Return that there is no verdict."""
        return None
