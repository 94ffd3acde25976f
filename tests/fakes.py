"""Small real implementations of the ports, for tests of what stands between the stages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from semgrad_guard.calibration import load_profile
from semgrad_guard.errors import ScoringError
from semgrad_guard.flow import (
    Abstain,
    Accept,
    Confidence,
    Decision,
    Exchange,
    Failure,
    Fingerprint,
    Passage,
    Progress,
    Record,
    ReviewId,
    Ruling,
    Score,
    Step,
)
from semgrad_guard.guard import Guard, Parts
from semgrad_guard.policy.model import DEFAULT_PROFILE

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

FINGERPRINT = Fingerprint(model="fake", dtype="float32", template="none", settings="fake")


@dataclass
class TableScorer:
    """Scores an answer by a table of answer -> score; an exception in the table is raised."""

    table: Mapping[str, float | Exception] = field(default_factory=dict)
    default: float = 1.0
    name: str = "table"
    seen: list[Exchange] = field(default_factory=list)

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        return replace(FINGERPRINT, proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        self.seen.append(exchange)
        value = self.table.get(exchange.answer, self.default)
        if isinstance(value, Exception):
            raise value
        return Score(method="fake", value=value, signals={"fake": value}, fingerprint=FINGERPRINT, model=self.name)

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        results: list[Score | ScoringError] = []
        for exchange in exchanges:
            try:
                results.append(self.score(exchange))
            except ScoringError as error:
                results.append(error)
        return results


class ProfileScorer(TableScorer):
    """Gives every answer the scores of the average answer that a shipped profile was fitted on, so that it fits."""

    def __init__(self, profile: str = DEFAULT_PROFILE) -> None:
        super().__init__(name="fitting")
        fitted = load_profile(profile)
        self.own = fitted.fingerprint
        self._signals = {column.name: column.average for column in fitted.model.columns}

    @override
    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        plain = super().score(exchange, timeout_s=timeout_s, cancel=cancel)
        return replace(plain, signals={**plain.signals, **self._signals}, fingerprint=self.own)


class OneMinusScore:
    """Confidence is one minus the score."""

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:
        return Confidence(value=max(0.0, min(1.0, 1.0 - score.value)), why="one minus score", profile="fake")

    def with_span_confidences(self, score: Score) -> Score:
        return score


@dataclass
class LadderDecider:
    """Accepts at a threshold, else goes down a list of steps, else ends."""

    steps: Sequence[Step] = ()
    accept: float = 0.7
    otherwise: Step = field(default_factory=lambda: Abstain(message="I do not know."))
    on_error: Step = field(default_factory=lambda: Abstain(message="I do not know."))

    def best(self, exchange: Exchange, decision: Decision, progress: Progress) -> Exchange:
        attempts = [*((a.exchange, a.decision) for a in progress.attempts), (exchange, decision)]
        return max(attempts, key=lambda pair: pair[1].confidence.value or 0.0)[0]

    def decide_failure(self, exchange: Exchange, failure: Failure, progress: Progress) -> Decision:
        return Decision(
            step=self.on_error, rule="on_error", why=failure.message, exchange_id=exchange.id, failure=failure
        )

    def decide(self, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
        step, rule = self._choose(confidence, progress)
        return Decision(step=step, rule=rule, why="fake", exchange_id=exchange.id, score=score, confidence=confidence)

    def _choose(self, confidence: Confidence, progress: Progress) -> tuple[Step, str]:
        if (confidence.value or 0.0) >= self.accept:
            return Accept(), "accept"
        for i, step in enumerate(self.steps):
            rule = f"escalate[{i}].{step.action.value}"
            if rule not in progress.exhausted and not progress.tried.get(rule):
                return step, rule
        return self.otherwise, "otherwise"


@dataclass
class MemoryQueue:
    """A review queue in memory; `fault` is raised by submit."""

    fault: Exception | None = None
    ruling: Ruling | None = None
    items: list[Exchange] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def submit(self, exchange: Exchange, decision: Decision, attempts: Sequence[object] = ()) -> ReviewId:
        if self.fault:
            raise self.fault
        self.items.append(exchange)
        self.decisions.append(decision)
        return ReviewId(f"item-{len(self.items)}")

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:
        return self.ruling


@dataclass
class MemorySink:
    """Keeps records."""

    records: list[Record] = field(default_factory=list)

    def emit(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        pass


@dataclass
class ListRetriever:
    """Returns the first `top_k` of its passages."""

    texts: Sequence[str]
    fault: Exception | None = None
    queries: list[tuple[str, int]] = field(default_factory=list)

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        self.queries.append((query, top_k))
        if self.fault:
            raise self.fault
        return [Passage(text) for text in self.texts[:top_k]]


@dataclass
class Answerer:
    """Answers by a function of the passages."""

    reply: Callable[[Exchange, Sequence[Passage] | None], str]

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        found = tuple(passages) if passages is not None else exchange.passages
        prompt = "\n".join(p.text for p in found) + f"\n{exchange.question}"
        return exchange.next_attempt(prompt=prompt, answer=self.reply(exchange, passages), passages=found)


def guard_of(
    *,
    scores: Mapping[str, float | Exception] | None = None,
    default: float = 1.0,
    decider: LadderDecider | None = None,
    queue: MemoryQueue | None = None,
    sink: MemorySink | None = None,
    budget_s: float | None = None,
) -> Guard:
    """Return a guard of fakes."""
    return Guard(
        Parts(
            scorer=TableScorer(scores or {}, default),
            calibrator=OneMinusScore(),
            decider=decider or LadderDecider(),
            queue=queue,
            sink=sink,
            abstain_message="I do not know.",
            budget_s=budget_s,
        )
    )
