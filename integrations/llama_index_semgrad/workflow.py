"""A workflow that answers, judges, and asks a person where the policy says so; it can sleep on disk until then.

One step answers and scores; the person is asked by the event that it returns, so nothing is written or scored twice
when the workflow is resumed.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from llama_index.core.workflow import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from pydantic import Field

from llama_index_semgrad.convert import METADATA_KEY
from semgrad_guard.flow import ReviewId, Status
from semgrad_guard.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index_semgrad.query_engine import GuardedQueryEngine
    from semgrad_guard.flow import Attempt, Decision, Exchange, Ruling

_log = logging.getLogger("semgrad_guard")
_PENDING = "semgrad_pending"


class QuestionEvent(StartEvent):
    """A user asks."""

    question: str


class ReviewNeededEvent(InputRequiredEvent):
    """A person must read an answer; it is for reviewers' eyes only, not for the user who asked."""

    review_id: str
    question: str
    answer: str
    passages: list[str]
    confidence: float | None = None
    rule: str
    why: str
    message: str
    """What the user may be shown meanwhile."""


class VerdictEvent(HumanResponseEvent):
    """What a person decided."""

    review_id: str
    verdict: Literal["approved", "edited", "rejected"]
    text: str = ""
    """The edited answer, or the reason for rejecting it."""
    by: str = ""


class GuardedAnswerEvent(StopEvent):
    """What the user gets."""

    text: str
    status: str
    semgrad: dict[str, Any] = Field(default_factory=dict)
    """Confidence, decision and rule, as in a response's metadata."""
    reviewed_by: str | None = None


class ReviewWorkflow(Workflow):
    """Answers with a guarded engine; where the policy hands an answer to a person, it asks by an event and waits.

    The wait has no end by default, and `ctx.to_dict()` stores it: a new process goes on from `Context.from_dict`.
    Whatever queue the policy names is not used: the workflow's own event is the review item.

    Example:
        >>> handler = ReviewWorkflow(engine).run(question="Who discovered radium?")  # doctest: +SKIP
        >>> async for event in handler.stream_events():  # doctest: +SKIP
        ...     if isinstance(event, ReviewNeededEvent):
        ...         handler.ctx.send_event(VerdictEvent(review_id=event.review_id, verdict="approved"))
        >>> (await handler).text  # doctest: +SKIP
        'Marie Curie.'
    """

    def __init__(self, engine: GuardedQueryEngine, *, timeout: float | None = None, **options: Any) -> None:
        """Take a guarded engine.

        Args:
            engine: made by `SemGradGuard.wrap`.
            timeout: seconds for the whole run, the person's time included; `None` waits for ever.
            options: other options of `Workflow`.
        """
        super().__init__(timeout=timeout, **options)
        self._asking = _Handed()
        guard = engine.guard
        self._engine = engine.with_guard(Guard(lambda: replace(guard.parts, queue=self._asking)))

    @step
    async def answer(self, ctx: Context, ev: QuestionEvent) -> ReviewNeededEvent | GuardedAnswerEvent:
        """Answer and judge; end, or ask a person."""
        response = await self._engine.aquery(ev.question)
        found: dict[str, Any] = (response.metadata or {})[METADATA_KEY]
        text = str(response)
        handed = self._asking.items.pop(found["review_id"] or "", None)
        if handed is None:
            return GuardedAnswerEvent(text=text, status=found["status"], semgrad=found)
        await ctx.store.set(_PENDING, {"answer": handed.answer, "semgrad": found, "refusal": self._refusal})
        return ReviewNeededEvent(
            review_id=found["review_id"],
            question=ev.question,
            answer=handed.answer,
            passages=[passage.text for passage in handed.passages],
            confidence=found["confidence"],
            rule=found["rule"],
            why=found["why"],
            message=text,
        )

    @step
    async def resume(self, ctx: Context, ev: VerdictEvent) -> GuardedAnswerEvent | None:
        """Give the user what the person decided; a verdict on something else is passed over."""
        pending: dict[str, Any] = await ctx.store.get(_PENDING)
        found = pending[METADATA_KEY]
        if ev.review_id != found["review_id"]:
            _log.warning("a verdict on %s was passed over: %s waits", ev.review_id, found["review_id"])
            return None
        texts = {"approved": pending["answer"], "edited": ev.text, "rejected": pending["refusal"]}
        status = Status.ABSTAINED if ev.verdict == "rejected" else Status.REVIEWED
        found = {**found, "status": str(status), "withheld": ev.verdict == "rejected", "verdict": ev.verdict}
        return GuardedAnswerEvent(text=texts[ev.verdict], status=str(status), semgrad=found, reviewed_by=ev.by or None)

    @property
    def _refusal(self) -> str:
        return self._engine.guard.parts.abstain_message


class _Handed:
    """A review queue that hands items over to the workflow, which asks by an event."""

    def __init__(self) -> None:
        self.items: dict[str, Exchange] = {}

    def submit(
        self,
        exchange: Exchange,
        decision: Decision,  # noqa: ARG002 - the queue's protocol
        attempts: Sequence[Attempt] = (),  # noqa: ARG002 - same
    ) -> ReviewId:
        review_id = ReviewId(str(uuid4()))
        self.items[review_id] = exchange
        return review_id

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:  # noqa: ARG002 - the event brings it
        return None
