"""What the tests of the policy share: policies from YAML, and questions at a given point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.flow import (
    Abstain,
    Attempt,
    Confidence,
    Decision,
    Exchange,
    Fingerprint,
    Progress,
    Score,
    SpanScore,
)
from semgrad_guard.policy import PolicyDecider, parse_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.policy import Policy

FINGERPRINT = Fingerprint(model="m", dtype="float32", template="t", settings="s")


def score(spans: tuple[float | None, ...] = ()) -> Score:
    """Return a score whose sentences have the given confidences."""
    parts = tuple(SpanScore(start=i, end=i + 1, signals={}, confidence=value) for i, value in enumerate(spans))
    return Score(method="hybridgrad", value=1.0, signals={}, fingerprint=FINGERPRINT, model="m", spans=parts)


@dataclass(frozen=True)
class Asking:
    """A question at some point of a policy; `at` moves it, `decide` asks the policy."""

    policy: Policy
    exchange: Exchange
    progress: Progress
    thresholds: Callable[..., float] | None = None

    @property
    def decider(self) -> PolicyDecider:
        """A decider of the policy."""
        return PolicyDecider(self.policy, self.thresholds) if self.thresholds else PolicyDecider(self.policy)

    def at(self, **progress: Any) -> Asking:
        """Return the question with another progress."""
        return replace(self, progress=replace(self.progress, **progress))

    def after(self, *confidences: float | None, spans: tuple[float | None, ...] = ()) -> Asking:
        """Return the question after earlier attempts with these confidences."""
        attempts = tuple(_attempt(n, value, spans) for n, value in enumerate(confidences, start=1))
        exchange = replace(self.exchange, attempt=len(attempts) + 1)
        return replace(self.at(attempts=attempts), exchange=exchange)

    def about(self, **exchange: Any) -> Asking:
        """Return a question whose exchange has other fields."""
        return replace(self, exchange=replace(self.exchange, **exchange))

    def decide(self, confidence: float | None, spans: tuple[float | None, ...] = ()) -> Decision:
        """Return the decision at a confidence."""
        return self.decider.decide(self.exchange, score(spans), Confidence(value=confidence, why="test"), self.progress)


def _attempt(number: int, value: float | None, spans: tuple[float | None, ...]) -> Attempt:
    exchange = Exchange(answer=f"answer {number}", attempt=number)
    decision = Decision(
        step=Abstain(message="no"),
        rule="earlier",
        why="test",
        exchange_id=exchange.id,
        score=score(spans),
        confidence=Confidence(value=value),
    )
    return Attempt(exchange, decision)


@pytest.fixture(name="ask")
def _ask() -> Callable[..., Asking]:
    """Return a question to a policy given as YAML."""

    def asking(text: str, thresholds: Callable[..., float] | None = None) -> Asking:
        policy = parse_policy(dedent(text) + "\nreview: {url: interrupt}\n", env={})
        return Asking(policy, Exchange(answer="an answer"), Progress(), thresholds)

    return asking


@pytest.fixture(name="mistake")
def _mistake() -> Callable[..., PolicyFileError]:
    """Return the error that a YAML text is refused with."""

    def refused(text: str, env: dict[str, str] | None = None) -> PolicyFileError:
        with pytest.raises(PolicyFileError) as caught:
            parse_policy(dedent(text), source="p.yaml", env=env or {})
        return caught.value

    return refused
