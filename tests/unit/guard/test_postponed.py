"""A question whose next attempt is made outside of the guard's call."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from semgrad_guard.flow import Exchange, FallbackModel, Progress, RetryRetrieval, Status
from semgrad_guard.guard import Guard
from semgrad_guard.guard.question_run import MAX_STEPS, NOT_BEGUN
from semgrad_guard.policy import PolicyDecider, policy_from
from semgrad_guard.routing import PostponedError, Resources
from tests.fakes import Answerer, LadderDecider, MemorySink, guard_of

FIRST = Exchange(prompt="p", answer="bad", question="q?")
RETRY = RetryRetrieval()


@dataclass
class Elsewhere:
    """Chain that answers in another call."""

    queries: list[str] = field(default_factory=list)

    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        self.queries.append(query)
        raise PostponedError


def postponed(guard: Guard, exchange: Exchange, progress: Progress = NOT_BEGUN, **resources: object) -> Progress:
    """Return with what a question goes on later."""
    with pytest.raises(PostponedError) as caught:
        guard.run(exchange, Resources(chain=Elsewhere(), **resources), progress=progress)  # type: ignore[arg-type]
    return caught.value.progress


def test_the_next_answer_is_the_next_attempt_at_the_same_question() -> None:
    """One question, one record, however many calls it took."""
    sink = MemorySink()
    guard = guard_of(scores={"good": 0.1}, default=0.9, decider=LadderDecider([RETRY]), sink=sink)
    progress = postponed(guard, FIRST)
    assert sink.records == []
    outcome = guard.run(FIRST.next_attempt(prompt="p2", answer="good", passages=()), progress=progress)
    assert (outcome.text, [a.decision.rule for a in outcome.attempts]) == (
        "good",
        ["escalate[0].retry_retrieval", "accept"],
    )
    (record,) = sink.records
    assert (record.id, record.attempts) == (FIRST.id, outcome.attempts)


def test_the_best_answer_may_be_the_earlier_one() -> None:
    """And the ladder goes on behind the step that was postponed, with its failures kept."""
    guard = guard_of(scores={"bad": 0.4, "worse": 0.9}, decider=LadderDecider([FallbackModel(name="gone"), RETRY]))
    progress = postponed(guard, FIRST)
    assert [f.stage for f in progress.failures] == ["fallback_model"]
    outcome = guard.run(FIRST.next_attempt(prompt="p", answer="worse", passages=()), progress=progress)
    assert (outcome.exchange.answer, outcome.status) == ("bad", Status.ABSTAINED)
    assert [f.stage for f in outcome.record.failures] == ["fallback_model"]


@pytest.mark.parametrize("timeout_s", [None, 20.0])
def test_a_postponed_step_is_no_failed_one(timeout_s: float | None) -> None:
    """Neither with a time limit, when it is called in a thread of its own."""
    guard = guard_of(default=0.9, decider=LadderDecider([RetryRetrieval(timeout_s=timeout_s)]))
    progress = postponed(guard, FIRST)
    assert (progress.failures, progress.exhausted) == ((), frozenset())
    assert progress.tried == {"escalate[0].retry_retrieval": 1}


def test_the_budget_counts_what_happened_before_and_in_between() -> None:
    """Seconds and attempts are the question's, not the call's."""
    now = [0.0]
    policy = policy_from(
        {
            "version": 1,
            "accept": 0.7,
            "escalate": ["retry_retrieval", {"fallback_model": "big"}],
            "budget": {"seconds": 9},
        }
    )
    parts = guard_of(default=0.9, decider=PolicyDecider(policy)).parts  # type: ignore[arg-type]
    guard = Guard(parts, clock=lambda: now[0])
    progress = postponed(guard, FIRST)
    late = Progress(attempts=progress.attempts, tried=progress.tried, elapsed_s=9.5)
    big = Answerer(lambda _, __: "never")
    outcome = guard.run(
        FIRST.next_attempt(prompt="p", answer="bad", passages=()), Resources(fallbacks={"big": big}), progress=late
    )
    assert outcome.decision.rule == "budget.seconds"
    assert outcome.record.seconds == 9.5


def test_a_decider_that_never_ends_is_cut_off_over_all_calls() -> None:
    """An agent would search for ever."""

    class Endless(LadderDecider):
        def _choose(self, *_: object) -> tuple[RetryRetrieval, str]:
            return RETRY, "again"

    guard, progress, exchange = guard_of(default=0.9, decider=Endless()), NOT_BEGUN, FIRST
    for _ in range(MAX_STEPS):
        progress = postponed(guard, exchange, progress)
        exchange = exchange.next_attempt(prompt="p", answer="bad", passages=())
    outcome = guard.run(exchange, Resources(chain=Elsewhere()), progress=progress)
    assert outcome.decision.failure is not None
    assert (outcome.decision.failure.type, len(outcome.attempts)) == ("EndlessPolicyError", MAX_STEPS + 1)
