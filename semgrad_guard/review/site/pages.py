"""The pages that reviewers read: the queue, one item, the dashboard."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from semgrad_guard.errors import ItemNotFoundError
from semgrad_guard.flow import ReviewId
from semgrad_guard.review.access import Session
from semgrad_guard.review.site.desk import Desk, desk_of
from semgrad_guard.review.site.logins import Reader
from semgrad_guard.review.site.problems import RefusedError
from semgrad_guard.review.site.rendering import (
    LONGEST_SHOWN,
    MOST_PARTS,
    SIZE,
    copied_marks,
    doubt_marks,
    points,
    render,
    segments,
    some,
    waiting,
)
from semgrad_guard.review.store.document import Document
from semgrad_guard.review.store.items import OPEN, Filters, Item, ItemDetail, Sort, State
from semgrad_guard.suspicious import gives_orders

router = APIRouter(include_in_schema=False)

_PER_PAGE = 30
LONGEST_EDITED = 200_000
"""Longest answer, in characters, that a browser's text field handles well."""
_MOST_EVENTS = 200


@router.get("/")
def queue_page(
    request: Request,
    session: Reader,
    q: Annotated[str, Query(max_length=500)] = "",
    state: Annotated[str, Query(max_length=20)] = "open",
    tag: Annotated[str, Query(max_length=200)] = "",
    mine: Annotated[bool, Query()] = False,  # noqa: FBT002 - a query parameter
    sort: Sort = Sort.RISK,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
    done: Annotated[str, Query(max_length=32)] = "",
) -> Response:
    """Show the queue."""
    desk = desk_of(request)
    filters = Filters(
        states=OPEN if state == "open" else frozenset(known for known in State if known == state),
        tags=frozenset({tag} if tag else ()),
        assignee=session.user.name if mine else None,
        text=q,
    )
    page = desk.queue.list(filters, sort=sort, cursor=cursor, limit=_PER_PAGE)
    chosen = {"q": q, "state": state, "tag": tag, "mine": mine, "sort": sort}
    further = {**{key: value for key, value in chosen.items() if value}, "cursor": page.next_cursor or ""}
    return render(
        request,
        "queue.html",
        page=page,
        chosen=chosen,
        next_url=f"/?{urlencode(further)}" if page.next_cursor else None,
        is_first=cursor is None,
        states=["open", *State, "all"],
        sorts=list(Sort),
        done=undoable(desk, session, done),
        waiting=waiting(request),
        nonce=secrets.token_hex(8),
    )


@router.get("/items/{item_id}")
def item_page(
    request: Request,
    session: Reader,
    item_id: str,
    flow: Annotated[str, Query(max_length=10)] = "",
    skipped: Annotated[str, Query(max_length=1000)] = "",
    done: Annotated[str, Query(max_length=32)] = "",
    passage: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    """Show one answer with everything needed to judge it; the audit trail records the view."""
    desk = desk_of(request)
    review_id = desk.queue.find_id(item_id)
    detail = desk.queue.get(review_id, viewer=session.user.name)
    document = detail.document
    passages = _passages(document, passage)
    n_passages = len(document.passages) if document else 0
    return render(
        request,
        "item.html",
        detail=detail,
        item=detail.item,
        document=document,
        answer=_answer(detail),
        passages=passages,
        first_passage=passage,
        n_passages=n_passages,
        next_passage=passage + len(passages) if 0 < len(passages) <= n_passages - passage else None,
        prompt=_prompt(document),
        earlier=some(document.earlier, lambda each: len(each.answer)) if document else (),
        metadata=_metadata(document),
        comments=detail.comments[-MOST_PARTS:],
        trail=desk.queue.audit(review_id)[-_MOST_EVENTS:],
        may_judge=detail.item.is_open and not is_others(desk, detail.item, session),
        is_mine=detail.item.holder == session.user.name,
        can_undo=undoable(desk, session, review_id) is not None,
        too_long=detail.document is not None and len(detail.document.answer) > LONGEST_EDITED,
        longest_shown=LONGEST_SHOWN,
        flow="next" if flow == "next" else "",
        skipped=skipped,
        done=undoable(desk, session, done),
        waiting=waiting(request),
        nonce=secrets.token_hex(8),
    )


@router.get("/items/{item_id}/answer.txt")
def answer_text(request: Request, session: Reader, item_id: str) -> Response:
    """Return the whole answer as a download, so that the browser never shows it as a page."""
    desk = desk_of(request)
    review_id = desk.queue.find_id(item_id)
    document = desk.queue.get(review_id, viewer=session.user.name).document
    if document is None:
        raise RefusedError(HTTPStatus.GONE, "the texts of this item were erased")
    headers = {"Content-Disposition": f'attachment; filename="{review_id}.txt"'}
    return PlainTextResponse(document.answer, headers=headers)


@router.get("/dashboard")
def dashboard_page(request: Request, session: Reader) -> Response:
    """Show what waits for review, and how well the guard's confidence agrees with the reviewers."""
    seen = desk_of(request).queue.insight()
    return render(
        request,
        "dashboard.html",
        seen=seen,
        points=points(seen.bands),
        size=SIZE,
        waiting=waiting(request),
        user=session.user,
    )


@router.get("/count")
def count(request: Request, session: Reader) -> Response:
    """Return the number of waiting items, for the page's script."""
    return JSONResponse({"waiting": waiting(request), "user": session.user.name})


def is_others(desk: Desk, item: Item, session: Session) -> bool:
    """True while another reviewer holds the item or has it assigned."""
    user = session.user
    is_assigned = item.assignee not in {None, user.name} and not user.is_admin
    return is_assigned or item.is_held_by_other(user.name, desk.queue.database.clock())


def undoable(desk: Desk, session: Session, item_id: str) -> Item | None:
    """Return the item if the reviewer judged it and may still undo the verdict."""
    if not item_id:
        return None
    try:
        item = desk.queue.item(ReviewId(item_id))
    except ItemNotFoundError:
        return None
    return item if desk.queue.can_undo(item, session.user.name) else None


def _answer(detail: ItemDetail) -> object:
    document = detail.document
    return segments(document.answer, doubt_marks(document)) if document else ()


def _prompt(document: Document | None) -> Sequence[tuple[str, str]]:
    """Return the first messages of what the model read, each with its role, as many as a page shows."""
    if document is None:
        return ()
    if isinstance(document.prompt, str):
        return (("", document.prompt),)
    messages = some(document.prompt, lambda each: len(each.content))
    return [(each.role, each.content) for each in messages]


def _metadata(document: Document | None) -> Sequence[tuple[str, str]]:
    """Return the first metadata as texts, as many as a page shows."""
    pairs = [(key, str(value)) for key, value in document.metadata.items()] if document else []
    return some(pairs, lambda pair: len(pair[0]) + len(pair[1]))


def _passages(document: Document | None, first: int) -> list[object]:
    """Return the passages that a page shows, from the number `first` on."""
    if document is None:
        return []
    shares = document.score.passage_attention if document.score else ()
    known = shares if len(shares) == len(document.passages) else (None,) * len(document.passages)
    return [
        {
            "part": passage,
            "attention": share,
            "text": segments(passage.text, copied_marks(passage.text, document.answer)),
            "gives_orders": gives_orders(passage.text),
        }
        for passage, share in some(
            list(zip(document.passages, known, strict=True))[first - 1 :], lambda pair: len(pair[0].text)
        )
    ]
