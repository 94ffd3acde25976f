"""The forms that reviewers send: each makes one change in the queue and leads to the next page."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.flow import ReviewId
from semgrad_guard.review.access import Session
from semgrad_guard.review.queue import SqlReviewQueue
from semgrad_guard.review.site.desk import desk_of
from semgrad_guard.review.site.logins import Writer
from semgrad_guard.review.site.problems import RefusedError
from semgrad_guard.review.site.rendering import render, waiting

router = APIRouter(include_in_schema=False)

_MOST_SKIPPED = 20
_MOST_AT_ONCE = 200
_LONGEST_VERSION = 10

Text = Annotated[str, Form()]
Flow = Annotated[str, Form(max_length=10)]
Skipped = Annotated[str, Form(max_length=1000)]
Nonce = Annotated[str, Form(max_length=64)]
Seen = Annotated[int | None, Form(ge=1, le=2**31 - 1)]
"""Version of the item that the page with the form showed."""


@router.post("/next")
def take_next(request: Request, session: Writer, skipped: Skipped = "") -> Response:
    """Claim the riskiest unclaimed item and show it."""
    return _next(desk_of(request).queue, session, skipped, done="")


@router.post("/items/{item_id}/claim")
def claim(request: Request, session: Writer, item_id: str) -> Response:
    """Claim this item."""
    desk_of(request).queue.claim_item(ReviewId(item_id), session.user.name)
    return _go(f"/items/{item_id}")


@router.post("/items/{item_id}/release")
def release(request: Request, session: Writer, item_id: str) -> Response:
    """Put this item back; an administrator may put back any item."""
    desk_of(request).queue.release(ReviewId(item_id), session.user.name, force=session.user.is_admin)
    return _go("/")


@router.post("/items/{item_id}/skip")
def skip(request: Request, session: Writer, item_id: str, skipped: Skipped = "") -> Response:
    """Put this item back and continue with another."""
    queue = desk_of(request).queue
    if queue.item(ReviewId(item_id)).holder == session.user.name:
        queue.release(ReviewId(item_id), session.user.name)
    passed = [*skipped.split(","), item_id][-_MOST_SKIPPED:]
    return _next(queue, session, ",".join(skipped_id for skipped_id in passed if skipped_id), done="")


@router.post("/items/{item_id}/approve")
def approve(
    request: Request,
    session: Writer,
    item_id: str,
    nonce: Nonce = "",
    seen: Seen = None,
    flow: Flow = "",
    skipped: Skipped = "",
) -> Response:
    """Approve the answer."""
    queue = desk_of(request).queue
    queue.approve(ReviewId(item_id), session.user.name, op=_op(session, nonce), seen=seen)
    return _after(queue, session, flow, skipped, item_id)


@router.post("/items/{item_id}/edit")
def edit(
    request: Request,
    session: Writer,
    item_id: str,
    text: Text = "",
    was_correct: Annotated[bool, Form()] = False,  # noqa: FBT002 - a form field
    nonce: Nonce = "",
    seen: Seen = None,
    flow: Flow = "",
    skipped: Skipped = "",
) -> Response:
    """Replace the answer with an edited text."""
    queue = desk_of(request).queue
    plain = text.replace("\r\n", "\n")
    op = _op(session, nonce)
    queue.edit(ReviewId(item_id), session.user.name, plain, was_correct=was_correct, op=op, seen=seen)
    return _after(queue, session, flow, skipped, item_id)


@router.post("/items/{item_id}/reject")
def reject(
    request: Request,
    session: Writer,
    item_id: str,
    reason: Text = "",
    nonce: Nonce = "",
    seen: Seen = None,
    flow: Flow = "",
    skipped: Skipped = "",
) -> Response:
    """Reject the answer."""
    queue = desk_of(request).queue
    queue.reject(ReviewId(item_id), session.user.name, reason.strip(), op=_op(session, nonce), seen=seen)
    return _after(queue, session, flow, skipped, item_id)


@router.post("/items/{item_id}/undo")
def undo(request: Request, session: Writer, item_id: str, seen: Seen = None) -> Response:
    """Undo the verdict."""
    desk_of(request).queue.undo(ReviewId(item_id), session.user.name, force=session.user.is_admin, seen=seen)
    return _go(f"/items/{item_id}")


@router.post("/items/{item_id}/comment")
def comment(request: Request, session: Writer, item_id: str, text: Text = "") -> Response:
    """Add a comment to the item."""
    desk_of(request).queue.comment(ReviewId(item_id), session.user.name, text.replace("\r\n", "\n"))
    return _go(f"/items/{item_id}#comments")


@router.post("/items/{item_id}/assign")
def assign(request: Request, session: Writer, item_id: str, to: Annotated[str, Form(max_length=64)] = "") -> Response:
    """Assign the item to a reviewer."""
    desk = desk_of(request)
    assignee = desk.accounts.get(to.strip().lower()).name if to.strip() else None
    desk.queue.assign(ReviewId(item_id), session.user.name, assignee)
    return _go(f"/items/{item_id}")


@router.post("/items/{item_id}/erase")
def erase(request: Request, session: Writer, item_id: str) -> Response:
    """Remove every text of the item."""
    if not session.user.is_admin:
        raise RefusedError(HTTPStatus.FORBIDDEN, "only administrators may erase items")
    desk_of(request).queue.erase([ReviewId(item_id)], session.user.name)
    return _go(f"/items/{item_id}")


@router.post("/bulk")
def bulk(
    request: Request,
    session: Writer,
    action: Annotated[str, Form(max_length=10)] = "",
    ids: Annotated[list[str] | None, Form(max_length=_MOST_AT_ONCE)] = None,
) -> Response:
    """Apply the same action to several items, and report the result of each."""
    queue, who = desk_of(request).queue, session.user.name
    seen = dict(_ticked(each) for each in ids or ())
    actions = {
        "approve": lambda item_id: queue.approve(item_id, who, seen=seen[item_id]),
        "reject": lambda item_id: queue.reject(item_id, who, seen=seen[item_id]),
        "claim": lambda item_id: queue.claim_item(item_id, who),
        "assign": lambda item_id: queue.assign(item_id, who, who),
    }
    if action not in actions:
        why = f"cannot {action!r} several items: {', '.join(actions)} are possible"
        raise RefusedError(HTTPStatus.BAD_REQUEST, why)
    results = queue.each(seen, actions[action])
    failed = {item_id: result for item_id, result in results.items() if isinstance(result, SemGradGuardError)}
    done = [(item_id, result) for item_id, result in results.items() if item_id not in failed]
    n = len(results)
    return render(request, "bulk.html", action=action, failed=failed, done=done, waiting=waiting(request), n=n)


def _after(queue: SqlReviewQueue, session: Session, flow: str, skipped: str, done: str) -> Response:
    return _next(queue, session, skipped, done=done) if flow == "next" else _go(f"/?{urlencode({'done': done})}")


def _next(queue: SqlReviewQueue, session: Session, skipped: str, *, done: str) -> Response:
    item = queue.claim(session.user.name, skip=[item_id for item_id in skipped.split(",") if item_id])
    carried = {"done": done, "skipped": skipped, "flow": "next" if item else ""}
    query = urlencode({key: value for key, value in carried.items() if value})
    return _go(f"/items/{item.id}?{query}" if item else f"/?{query}")


def _go(path: str) -> Response:
    return RedirectResponse(path, HTTPStatus.SEE_OTHER)


def _ticked(value: str) -> tuple[ReviewId, int | None]:
    """Return the item that a ticked box stands for, and the version that the page showed of it."""
    item_id, _, version = value.partition(":")
    is_version = version.isascii() and version.isdigit() and len(version) < _LONGEST_VERSION
    return ReviewId(item_id), int(version) if is_version else None


def _op(session: Session, nonce: str) -> str | None:
    """Return the operation name of a page's form, so that a form sent twice takes effect once."""
    return f"{session.csrf}:{nonce}" if nonce else None
