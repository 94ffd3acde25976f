"""A person's verdict on an answer that a graph stopped for: the text that follows, a record, and the queue's item."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid5

from langchain_semgrad.review_interrupt import ask_person
from semgrad_guard.errors import AlreadyClaimedError, IllegalMoveError
from semgrad_guard.flow import ExchangeId, Record, ReviewId, Ruling, Status, Verdict, utc_now
from semgrad_guard.ports import DecidableQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_semgrad.review_interrupt import Review, ReviewResponse
    from semgrad_guard.flow import Json
    from semgrad_guard.guard import Guard

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


def _ruling(said: ReviewResponse, held: Mapping[str, Json]) -> Ruling:
    verdict = _VERDICTS[said.type]
    texts = {Verdict.APPROVED: str(held["answer"]), Verdict.EDITED: said.answer, Verdict.REJECTED: said.message}
    return Ruling(
        review_id=ReviewId(str(held["review_id"])),
        verdict=verdict,
        text=texts[verdict] or "",
        by=said.by or "interrupt",
        at=utc_now(),
    )


def resume_with(ruling: Ruling) -> dict[str, Json]:
    """Return what a graph is resumed with after a verdict in the queue; an expired item counts as rejected.

    Example:
        >>> ruling = queue.wait(review_id, timeout_s=600)  # doctest: +SKIP
        >>> agent.invoke(
        ...     Command(resume=resume_with(ruling)), {"configurable": {"thread_id": thread_id}}
        ... )  # doctest: +SKIP
    """
    said = {Verdict.APPROVED: "approve", Verdict.EDITED: "edit"}.get(ruling.verdict, "reject")
    words: dict[str, dict[str, Json]] = {"edit": {"answer": ruling.text}, "reject": {"message": ruling.text}}
    return {"type": said, "by": ruling.by, **words.get(said, {})}


def _close_item(queue: object, ruling: Ruling) -> None:
    """Give the queue's item the same verdict; who resumed the graph has decided, so a failure is logged and no more."""
    if not isinstance(queue, DecidableQueue):
        _log.warning("review item %s stays open: this queue takes no verdicts from here", ruling.review_id)
        return
    try:
        _decide(queue, ruling)
    except Exception as error:  # noqa: BLE001 - the verdict stands, whether the queue takes it or not
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
    except AlreadyClaimedError:  # whoever holds it would judge what is decided
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
