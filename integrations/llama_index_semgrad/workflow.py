"""A workflow that answers questions, and waits for a reviewer where the policy asks for one.

The waiting workflow can be stored on disk. One step answers and scores, and the event that it returns asks the
reviewer, so nothing is written or scored again when the workflow goes on.
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
from semgrad_guard.adapter_kit import findings as findings_of
from semgrad_guard.errors import LowConfidenceError
from semgrad_guard.flow import ReviewId, Status
from semgrad_guard.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index_semgrad.query_engine import GuardedQueryEngine
    from semgrad_guard.flow import Attempt, Decision, Exchange, Ruling

_log = logging.getLogger("semgrad_guard")
_PENDING = "semgrad_pending"


class QuestionEvent(StartEvent):
    """A user's question."""

    question: str


class ReviewNeededEvent(InputRequiredEvent):
    """An answer that a reviewer must read; the user who asked must not see it."""

    review_id: str
    question: str
    answer: str
    passages: list[str]
    confidence: float | None = None
    rule: str
    why: str
    message: str
    """The text that the user may see meanwhile."""


class VerdictEvent(HumanResponseEvent):
    """The decision of a reviewer."""

    review_id: str
    verdict: Literal["approved", "edited", "rejected"]
    text: str = ""
    """The edited answer, or the reason for rejecting it."""
    by: str = ""


class GuardedAnswerEvent(StopEvent):
    """The text that the user gets."""

    text: str
    status: str
    semgrad: dict[str, Any] = Field(default_factory=dict)
    """Confidence, decision and rule, as in a response's metadata."""
    reviewed_by: str | None = None


class ReviewWorkflow(Workflow):
    """Answers with a guarded engine; where the policy asks for a review, it sends an event and waits.

    It waits without a time limit by default, and `ctx.to_dict()` stores it: a new process goes on from
    `Context.from_dict`. The policy's review queue is not used, because the event takes the place of a review item.

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
            timeout: seconds for the whole run with the reviewer's time; `None` sets no limit.
            options: other options of `Workflow`.
        """
        super().__init__(timeout=timeout, **options)
        self._handover = _HandoverQueue()
        guard = engine.guard
        self._engine = engine.with_guard(Guard(lambda: replace(guard.parts, queue=self._handover)))

    @step
    async def answer(self, ctx: Context, ev: QuestionEvent) -> ReviewNeededEvent | GuardedAnswerEvent:
        """Answer and judge, then end or ask a reviewer."""
        text, findings = await self._answered(ev.question)
        exchange = self._handover.exchanges.pop(findings["review_id"] or "", None)
        if exchange is None:
            return GuardedAnswerEvent(text=text, status=findings["status"], semgrad=findings)
        await ctx.store.set(_PENDING, {"answer": exchange.answer, "semgrad": findings, "refusal": self._refusal})
        return ReviewNeededEvent(
            review_id=findings["review_id"],
            question=ev.question,
            answer=exchange.answer,
            passages=[passage.text for passage in exchange.passages],
            confidence=findings["confidence"],
            rule=findings["rule"],
            why=findings["why"],
            message=text,
        )

    @step
    async def resume(self, ctx: Context, ev: VerdictEvent) -> GuardedAnswerEvent | None:
        """Return the text that the reviewer decided on; a verdict on another answer is ignored."""
        pending: dict[str, Any] = await ctx.store.get(_PENDING)
        findings = pending[METADATA_KEY]
        if ev.review_id != findings["review_id"]:
            _log.warning("a verdict on %s was ignored: %s waits", ev.review_id, findings["review_id"])
            return None
        await ctx.store.set(_PENDING, {METADATA_KEY: {**findings, "review_id": None}})  # a stored run keeps no answer
        texts = {"approved": pending["answer"], "edited": ev.text, "rejected": pending["refusal"]}
        status = Status.ABSTAINED if ev.verdict == "rejected" else Status.REVIEWED
        changes = {"status": str(status), "withheld": ev.verdict == "rejected", "verdict": ev.verdict}
        return GuardedAnswerEvent(
            text=texts[ev.verdict], status=str(status), semgrad={**findings, **changes}, reviewed_by=ev.by or None
        )

    async def _answered(self, question: str) -> tuple[str, dict[str, Any]]:
        """Return what the user may read, and the findings; an engine that gives objects raises what it holds back."""
        try:
            response = await self._engine.aquery(question)
        except LowConfidenceError as held:
            if held.outcome is None:
                raise
            return held.outcome.text, findings_of(held.outcome)
        return str(response), (response.metadata or {})[METADATA_KEY]

    @property
    def _refusal(self) -> str:
        return self._engine.guard.parts.abstain_message


class _HandoverQueue:
    """A review queue that keeps its items for the workflow, which asks the reviewer by an event."""

    def __init__(self) -> None:
        self.exchanges: dict[str, Exchange] = {}

    def submit(
        self,
        exchange: Exchange,
        decision: Decision,  # noqa: ARG002 - the queue's protocol
        attempts: Sequence[Attempt] = (),  # noqa: ARG002 - same
    ) -> ReviewId:
        review_id = ReviewId(str(uuid4()))
        self.exchanges[review_id] = exchange
        return review_id

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:  # noqa: ARG002 - the event brings it
        return None
