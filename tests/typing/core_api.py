"""Never run, only checked: the types that users of the core rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

from semgrad_guard import Action, Confidence, Decision, Exchange, Guard, Outcome, Score, Status

if TYPE_CHECKING:
    from semgrad_guard.ports import DecidableQueue
    from semgrad_guard.review import SqlReviewQueue
    from semgrad_guard.review.client import ReviewClient


def judging(guard: Guard) -> None:
    """A decision says what, by which rule, and how sure."""
    decision = guard.judge(Exchange(prompt="p", answer="a"))
    assert_type(decision, Decision)
    assert_type(decision.action, Action)
    assert_type(decision.confidence, Confidence)
    assert_type(decision.confidence.value, float | None)
    assert_type(decision.score, Score | None)


def running(guard: Guard) -> None:
    """An outcome says what the caller gets."""
    outcome = guard.run(Exchange(prompt="p", answer="a"))
    assert_type(outcome, Outcome)
    assert_type(outcome.text, str)
    assert_type(outcome.status, Status)
    assert_type(outcome.confidence, float | None)


def deciding(database: SqlReviewQueue, site: ReviewClient) -> list[DecidableQueue]:
    """A queue takes verdicts wherever it is."""
    return [database, site]


async def running_async(guard: Guard) -> None:
    """The async twins give the same types."""
    assert_type(await guard.ajudge(Exchange(prompt="p", answer="a")), Decision)
    assert_type(await guard.arun(Exchange(prompt="p", answer="a")), Outcome)
    assert_type(guard.run_batch([Exchange(prompt="p", answer="a")]), list[Outcome])
