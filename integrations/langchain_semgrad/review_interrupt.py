"""A person's verdict on an agent's answer, by LangGraph's interrupt: the graph stops, and goes on when resumed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from langgraph.config import get_config
from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, model_validator

from semgrad_guard.errors import StepUnavailableError
from semgrad_guard.flow import Json, Outcome, ReviewId, Status
from semgrad_guard.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Attempt, Decision, Exchange, Ruling
    from semgrad_guard.ports import ReviewQueue

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
    def _read(cls, said: Any) -> Any:
        return _unpacked(said)

    @model_validator(mode="after")
    def _holds_an_answer(self) -> ReviewResponse:
        if self.type in {"edit", "respond"} and not self.answer:
            msg = f"{self.type!r} needs the text to give: {{'type': {self.type!r}, 'answer': '...'}}"
            raise ValueError(msg)
        return self


def _unpacked(said: Any) -> Any:
    """Return a verdict in our words, from the shapes that review tools send."""
    if isinstance(said, str):
        return {"type": said}
    if not isinstance(said, Mapping):
        return said
    if said.get("decisions"):
        return _unpacked(said["decisions"][0])
    args = (said.get("edited_action") or {}).get("args") or {}
    answer = said.get("answer") or args.get("answer")
    if answer is None and said.get("type") == "respond":
        answer = said.get("message")
    return {**said, "answer": answer}


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
    """The queue of a graph that should stop for a person but has no checkpointer: it takes nothing, and says why."""

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
    """Return what must be kept to ask a person later; `None` when nobody is to be asked.

    Args:
        outcome: how the question ended.
        message_id: the message in whose place the pending message stands.
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
