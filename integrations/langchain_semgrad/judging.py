"""Values of a chain -> the same values, guarded; what form (a), form (b) and the others have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_semgrad.result import GuardedAnswer, findings
from langchain_semgrad.values import METADATA_KEY, with_answer
from semgrad_guard.errors import LowConfidenceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_semgrad.exchanges import Job
    from langchain_semgrad.settings import Settings
    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard


@dataclass(frozen=True, slots=True)
class Work:
    """One value and the answers in it."""

    value: Any
    jobs: tuple[Job, ...]


def judge_all(guard: Guard, works: Sequence[Work]) -> list[tuple[Outcome, ...]]:
    """Return the outcomes of all answers in all values, in order; they are scored in one padded batch.

    Answers whose prompt is not known take the policy's `on_error`.
    """
    jobs = [job for work in works for job in work.jobs]
    judged = [job for job in jobs if job.error is None]
    if len(judged) == 1:
        outcomes = iter([guard.run(judged[0].exchange)])
    else:
        outcomes = iter(guard.run_batch([job.exchange for job in judged]) if judged else [])
    by_job = [next(outcomes) if job.error is None else guard.run_unjudged(job.exchange, job.error) for job in jobs]
    taken = iter(by_job)
    return [tuple(next(taken) for _ in work.jobs) for work in works]


def guarded(work: Work, outcomes: Sequence[Outcome], settings: Settings) -> Any:
    """Return what the caller gets for one value.

    Raises:
        LowConfidenceError: an answer was held back, and the caller wants to be told by an exception, or the value
            cannot hold the policy's message because it holds no text.
    """
    several, value = len(work.jobs) > 1, work.value
    for job, outcome in zip(work.jobs, outcomes, strict=True):
        if outcome.withheld and (settings.on_withheld == "raise" or job.slot is None):
            raise LowConfidenceError(outcome.decision, outcome)
        value = replaced(value, job, outcome, name_of(job) if several else None)
    if settings.output == "same":
        return value
    answers = {
        name_of(job): GuardedAnswer(text=outcome.text, value=value, outcome=outcome, llm_run=job.llm_run)
        for job, outcome in zip(work.jobs, outcomes, strict=True)
    }
    return answers if several else next(iter(answers.values()))


def name_of(job: Job) -> str:
    """Return the name of an answer among several in one value."""
    return job.slot.name if job.slot else "answer"


def replaced(value: Any, job: Job, outcome: Outcome, name: str | None = None) -> Any:
    """Return a value of the same type with an outcome's text in the answer's place."""
    if job.slot is None:
        return value
    # An answer that is given as it is keeps its form to the letter: content blocks, white space, a repeated prompt.
    text = job.slot.text if outcome.text == job.exchange.answer else outcome.text
    return with_answer(value, job.slot, text, findings(outcome, job.llm_run), name)


def annotation(work: Work, outcomes: Sequence[Outcome]) -> Any:
    """Return the last chunk of a stream that was passed through: no text, only the findings; `None` for plain text."""
    said = {name_of(job): findings(o, job.llm_run) for job, o in zip(work.jobs, outcomes, strict=True)}
    found = next(iter(said.values())) if len(said) == 1 else said
    slot = work.jobs[0].slot
    message = slot.message if slot and not slot.path else None
    if message is not None:
        return type(message)(content="", id=message.id, response_metadata={METADATA_KEY: found})
    return {METADATA_KEY: found} if isinstance(work.value, dict) else None
