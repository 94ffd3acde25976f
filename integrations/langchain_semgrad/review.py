"""People in the loop: interrupts of a graph, verdicts on them, and runs that the review queue resumes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import UUID, uuid5

from langgraph.config import get_config
from langgraph.types import Command, interrupt
from pydantic import BaseModel, ConfigDict, model_validator

from semgrad_guard.errors import AlreadyClaimedError, IllegalMoveError, StepUnavailableError
from semgrad_guard.flow import ExchangeId, Json, Outcome, Record, ReviewId, Ruling, Status, Verdict, utc_now_or_epoch
from semgrad_guard.guard import Guard
from semgrad_guard.ports import DecidableQueue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Event

    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph

    from semgrad_guard.flow import Attempt, Decision, Exchange
    from semgrad_guard.ports import ReviewQueue
    from semgrad_guard.review import SqlReviewQueue
    from semgrad_guard.review.store.outbox import Delivery

Review = Literal["interrupt", "queue", "both"]
"""How a person is asked: the graph stops, the policy's queue takes the answer, or both."""
REVIEWS = (None, "interrupt", "queue", "both")

ACTION_NAME = "semgrad_answer"
"""Name of the action that reviewers see, in the vocabulary of LangChain's human-in-the-loop middleware."""
THREAD_KEY = "langgraph_thread_id"
"""Metadata by which a review item remembers the thread whose run it stopped."""
_CHECKPOINTER = "__pregel_checkpointer"
"""Where LangGraph tells its nodes which checkpointer keeps their state."""


class ReviewResponse(BaseModel):
    """What a graph is resumed with: `Command(resume={"type": "approve"})`, or that inside `{"decisions": [...]}`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["approve", "edit", "reject", "respond"]
    answer: str | None = None
    """The answer to give, for `edit` and `respond`."""
    message: str | None = None
    """The reviewer's reason, for `reject`."""
    by: str | None = None
    """Who decided, for the record."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        return _unpacked(data)

    @model_validator(mode="after")
    def _holds_an_answer(self) -> ReviewResponse:
        if self.type in {"edit", "respond"} and not self.answer:
            msg = f"{self.type!r} needs the text to give: {{'type': {self.type!r}, 'answer': '...'}}"
            raise ValueError(msg)
        return self


def _unpacked(data: Any) -> Any:
    """Return a verdict as `ReviewResponse` reads it, from the shapes that review tools send."""
    if isinstance(data, str):
        return {"type": data}
    if not isinstance(data, Mapping):
        return data
    if data.get("decisions"):
        return _unpacked(data["decisions"][0])
    args = (data.get("edited_action") or {}).get("args") or {}
    answer = data.get("answer") or args.get("answer")
    if answer is None and data.get("type") == "respond":
        answer = data.get("message")
    return {**data, "answer": answer}


class InterruptQueue:
    """A queue that keeps nothing itself: the graph's checkpoint holds the answer until a person decides.

    Args:
        inner: a real queue that gets every answer as well, so it is seen there.
    """

    def __init__(self, inner: ReviewQueue | None = None) -> None:
        """Keep the real queue, and which thread the graph stops in."""
        self._inner, self._thread = inner, _thread()

    def submit(self, exchange: Exchange, decision: Decision, attempts: Sequence[Attempt] = ()) -> ReviewId:
        """Return the id under which the answer waits."""
        if self._inner is not None:
            about = {} if self._thread is None else {THREAD_KEY: self._thread}
            exchange = replace(exchange, metadata={**exchange.metadata, **about})
            return self._inner.submit(exchange, decision, attempts)
        return ReviewId(f"interrupt-{exchange.id}")

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:  # noqa: ARG002 - the protocol's arguments
        """Return nothing: the graph is stopped instead of waiting."""
        return None


class NoCheckpointQueue:
    """The queue of a graph that should stop for a person but has no checkpointer: it refuses, and says why."""

    def submit(self, *_: object) -> ReviewId:
        """Refuse the answer.

        Raises:
            StepUnavailableError: always.
        """
        msg = (
            "the graph has no checkpointer, so it cannot stop for a person and go on: compile it with one, as in "
            "create_agent(..., checkpointer=InMemorySaver()), or choose review='queue'"
        )
        raise StepUnavailableError(msg)

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:  # noqa: ARG002 - the protocol's arguments
        """Return nothing."""
        return None


def has_checkpointer() -> bool:
    """Tell whether the running graph can stop and go on: without a checkpointer an interrupt would lose the answer."""
    try:
        return get_config().get("configurable", {}).get(_CHECKPOINTER) is not None
    except RuntimeError:  # outside of a graph
        return False


def _thread() -> str | None:
    """Return the id of the thread that the running graph keeps its state under."""
    try:
        thread = get_config().get("configurable", {}).get("thread_id")
    except RuntimeError:  # outside of a graph
        return None
    return None if thread is None else str(thread)


def stops(review: Review | None) -> bool:
    """Tell whether the graph is stopped for a person; `None` stops it where it can go on afterwards."""
    return review in {"interrupt", "both"} or (review is None and has_checkpointer())


def guard_for(guard: Guard, review: Review | None) -> Guard:
    """Return the guard with a queue that fits how a person is asked."""
    if not stops(review):
        return guard
    parts = guard.parts
    if not has_checkpointer():
        return Guard(replace(parts, queue=NoCheckpointQueue()))
    return Guard(replace(parts, queue=InterruptQueue(parts.queue if review == "both" else None)))


def held_answer(outcome: Outcome, message_id: str) -> dict[str, Json] | None:
    """Return what must be kept to ask a person later; `None` where the answer does not wait for one.

    Args:
        outcome: how the question ended.
        message_id: the message that the pending message replaces.
    """
    if outcome.status is not Status.PENDING:
        return None
    return {
        "message_id": message_id,
        "answer": outcome.exchange.answer,
        "question": outcome.exchange.question,
        "confidence": outcome.confidence,
        "rule": outcome.decision.rule,
        "why": outcome.decision.why,
        "review_id": outcome.review_id,
        "record": {
            "id": outcome.record.id,
            "at": outcome.record.at.isoformat(),
            "seconds": outcome.record.seconds,
            "answer_id": outcome.record.answer_id,
        },
    }


def ask_person(held: Mapping[str, Json]) -> ReviewResponse:
    """Stop the graph until a person has decided; when it is resumed, return the verdict.

    Raises:
        pydantic.ValidationError: the graph was resumed with something else than a verdict; it can be resumed again.
    """
    shown = {key: value for key, value in held.items() if key not in {"message_id", "record"}}
    request = {
        "action_requests": [
            {
                "name": ACTION_NAME,
                "args": shown,
                "description": f"Is this answer right? {held.get('why') or ''}".strip(),
            }
        ],
        "review_configs": [{"action_name": ACTION_NAME, "allowed_decisions": ["approve", "edit", "reject"]}],
    }
    ask: Any = interrupt
    if "response_schema" in inspect.signature(interrupt).parameters:
        return ReviewResponse.model_validate(ask(request, response_schema=ReviewResponse))
    return ReviewResponse.model_validate(ask(request))


_log = logging.getLogger("semgrad_guard")

_NAMESPACE = UUID("5f1f6a57-3a43-5d0c-9c36-0b8f2a7c1d42")
"""Makes the id of a verdict's record repeatable: a node that runs again logs the same record again."""
_VERDICTS = {
    "approve": Verdict.APPROVED,
    "edit": Verdict.EDITED,
    "respond": Verdict.EDITED,
    "reject": Verdict.REJECTED,
}


def settle_held(held: Mapping[str, Json], guard: Guard, review: Review | None) -> tuple[str, Status]:
    """Ask a person about an answer that waits; return what the user gets and what kind of text it is.

    The verdict is logged as a record that follows the answer's, and ends the queue's item where the queue has it too.

    Args:
        held: what `held_answer` kept.
        guard: whose sink logs it, and whose queue holds the item.
        review: how a person was asked.

    Raises:
        pydantic.ValidationError: the graph was resumed with something else than a verdict; it can be resumed again.
    """
    ruling = _ruling(ask_person(held), held)
    parts = guard.parts
    if review == "both":
        _close_item(parts.queue, ruling)
    given = ruling.verdict in {Verdict.APPROVED, Verdict.EDITED}
    text, status = (ruling.text, Status.REVIEWED) if given else (parts.abstain_message, Status.ABSTAINED)
    guard.emit(_record(held, ruling, text, status, parts.policy))
    return text, status


def _ruling(response: ReviewResponse, held: Mapping[str, Json]) -> Ruling:
    verdict = _VERDICTS[response.type]
    texts = {Verdict.APPROVED: str(held["answer"]), Verdict.EDITED: response.answer, Verdict.REJECTED: response.message}
    return Ruling(
        review_id=ReviewId(str(held["review_id"])),
        verdict=verdict,
        text=texts[verdict] or "",
        by=response.by or "interrupt",
        at=utc_now_or_epoch(),
    )


def resume_with(ruling: Ruling) -> dict[str, Json]:
    """Return what a graph is resumed with after a verdict in the queue; an expired item counts as rejected.

    Example:
        >>> ruling = queue.wait(review_id, timeout_s=600)  # doctest: +SKIP
        >>> agent.invoke(
        ...     Command(resume=resume_with(ruling)), {"configurable": {"thread_id": thread_id}}
        ... )  # doctest: +SKIP
    """
    kind = {Verdict.APPROVED: "approve", Verdict.EDITED: "edit"}.get(ruling.verdict, "reject")
    texts: dict[str, dict[str, Json]] = {"edit": {"answer": ruling.text}, "reject": {"message": ruling.text}}
    return {"type": kind, "by": ruling.by, **texts.get(kind, {})}


def _close_item(queue: object, ruling: Ruling) -> None:
    """Give the queue's item the same verdict; who resumed the graph has decided, so a failure is logged and no more."""
    if not isinstance(queue, DecidableQueue):
        _log.warning("review item %s stays open: this queue takes no verdicts from here", ruling.review_id)
        return
    try:
        _decide(queue, ruling)
    except Exception as error:  # noqa: BLE001 - the verdict counts, whether the queue takes it or not
        _log.warning(
            "review item %s did not take the verdict %r that the graph was resumed with: %s",
            ruling.review_id,
            str(ruling.verdict),
            error,
        )


def _decide(queue: DecidableQueue, ruling: Ruling) -> None:
    item, by, operation = ruling.review_id, ruling.by, f"interrupt:{ruling.review_id}"
    try:
        if ruling.verdict is Verdict.APPROVED:
            queue.approve(item, by, op=operation)
        elif ruling.verdict is Verdict.EDITED:
            queue.edit(item, by, ruling.text, op=operation)
        else:
            queue.reject(item, by, ruling.text, op=operation)
    except AlreadyClaimedError:  # another reviewer would judge what is decided
        queue.release(item, by, force=True)
        _decide(queue, ruling)
    except IllegalMoveError:
        before = queue.wait(item, 0)
        if before is None or before.verdict is not ruling.verdict:
            raise


def _record(held: Mapping[str, Json], ruling: Ruling, text: str, status: Status, policy: str) -> Record:
    first = cast("Mapping[str, Any]", held["record"])
    return Record(
        id=ExchangeId(str(uuid5(_NAMESPACE, first["id"]))),
        at=ruling.at,
        status=status,
        text=text,
        attempts=(),
        policy=policy,
        seconds=first["seconds"] + max(0.0, (ruling.at - datetime.fromisoformat(first["at"])).total_seconds()),
        scoring_s=0.0,
        review_id=ruling.review_id,
        answer_id=first["answer_id"],
        follows=ExchangeId(first["id"]),
        ruling=ruling,
    )


class ReviewedRuns:
    """Resumes the runs of a graph whose answers people judged in the review queue.

    The guard of the graph hands answers over with `review="both"`: the graph stops with an interrupt, and the item in
    the queue remembers the thread. Any process that can build the graph with the same checkpointer may do this; each
    verdict is acted on once, however many do, and again after a failure.

    Example:
        >>> runs = ReviewedRuns(agent, open_queue("sqlite:///review.db"))  # doctest: +SKIP
        >>> runs.resume_until(stop)  # in a thread of its own  # doctest: +SKIP
    """

    def __init__(
        self, graph: CompiledStateGraph[Any, Any, Any, Any], queue: SqlReviewQueue, *, consumer: str = "langgraph"
    ) -> None:
        """Subscribe to the queue's verdicts, those given before included.

        Args:
            graph: the compiled graph, with the checkpointer that keeps its stopped runs.
            queue: where people judge.
            consumer: a name of its own for each graph that shares the queue.
        """
        self._graph, self._queue, self._consumer = graph, queue, consumer
        queue.subscribe(consumer, with_backlog=True)

    def resume_due(self, *, limit: int = 20) -> int:
        """Resume the runs whose verdict is final; return how many verdicts were acted on."""
        from semgrad_guard.review.store.outbox import consume  # loads the database library

        return consume(self._queue, self._consumer, self._resume, limit=limit)

    def resume_until(self, stop: Event, *, every_s: float = 1.0) -> None:
        """Resume runs as their verdicts come, until `stop` is set; meant for a thread of its own."""
        from semgrad_guard.review.store.outbox import consume_until  # loads the database library

        consume_until(stop, self._queue, self._consumer, self._resume, every_s=every_s)

    def _resume(self, delivery: Delivery) -> None:
        detail = self._queue.get(delivery.item_id)
        thread = detail.document.metadata.get(THREAD_KEY) if detail.document is not None else None
        if detail.ruling is None or not isinstance(thread, str):
            return
        config: RunnableConfig = {"configurable": {"thread_id": thread}}
        for stopped in self._graph.get_state(config).interrupts:
            if _item_of(stopped.value) == delivery.item_id:
                self._graph.invoke(Command(resume={stopped.id: resume_with(detail.ruling)}), config)


def _item_of(value: object) -> str | None:
    """Return the review item that an interrupt is about; `None` for one that is not ours."""
    try:
        request = cast("Mapping[str, Any]", value)["action_requests"][0]
        return str(request["args"]["review_id"])
    except (KeyError, IndexError, TypeError):
        return None
