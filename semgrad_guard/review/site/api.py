"""The JSON API for programs: submit, list, judge, and wait for a verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from semgrad_guard.errors import ItemNotFoundError
from semgrad_guard.flow import ReviewId, Ruling
from semgrad_guard.review.access import Bearer, Scope
from semgrad_guard.review.queue import NO_PASSAGES
from semgrad_guard.review.site.desk import Desk, desk_of
from semgrad_guard.review.site.problems import RefusedError
from semgrad_guard.review.store.document import Document, storable_json
from semgrad_guard.review.store.items import Filters, Item, Sort, State
from semgrad_guard.review.views import AuditView, DetailView, EarlierView, InsightView, ItemView, PageView, RulingView

LONGEST_WAIT_S = 60.0

_bearer = HTTPBearer(auto_error=False, description="A token from `semgrad-guard review token add`.")


class Problem(BaseModel):
    """Why a request was not carried out."""

    error: str
    message: str
    details: dict[str, Any]
    """The error's data, by name."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _take_any_text(cls, value: object) -> object:
        """Replace what no database can hold; the queue itself does so in documents, which may be large."""
        if not isinstance(value, dict):
            return value
        return {key: each if key == "document" else storable_json(each) for key, each in value.items()}


class Submission(_Body):
    """An answer for review."""

    document: Document
    deadline_s: Annotated[float | None, Field(default=None, ge=0, le=315_360_000, allow_inf_nan=False)] = None


class Submitted(BaseModel):
    """The item created for an answer, or the existing one."""

    id: str


class Move(_Body):
    """The person that the caller acts for; the audit trail records both."""

    on_behalf_of: Annotated[str | None, Field(default=None, max_length=200)] = None


class Release(Move):
    """How an item is put back."""

    force: bool = False
    """Also put back an item that someone else holds; needs an administrator's token."""


class Edit(Move):
    """The text that replaces the answer."""

    text: str
    was_correct: bool = False


class Rejection(Move):
    """Why an answer is rejected."""

    reason: str = ""


class Note(_Body):
    """A comment."""

    text: str = Field(min_length=1)


class Assignment(_Body):
    """The reviewer that an item is assigned to; null leaves it to all."""

    assignee: Annotated[str | None, Field(default=None, max_length=64)] = None


class Asked(_Body):
    """A question that may have been asked before."""

    question: str = Field(min_length=1, max_length=100_000)
    tags: Annotated[list[str], Field(max_length=100)] = []
    """The earlier item must have all of them."""
    metadata: Annotated[dict[str, JsonValue], Field(max_length=100)] = {}
    """The earlier item must have the same values; without tags and metadata there is no earlier verdict."""
    passages: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = NO_PASSAGES
    """SHA-256 of the JSON list of the passages' sorted texts; the earlier item's must be the same."""
    similar: Annotated[float | None, Field(default=None, ge=0, le=1)] = None
    """Smallest similarity; null matches the same question only."""
    max_age_s: Annotated[float | None, Field(default=None, ge=0, le=3_153_600_000, allow_inf_nan=False)] = None


class Answered(BaseModel):
    """The verdict on an item, or null while there is none."""

    ruling: RulingView | None


def _shown(status: HTTPStatus, text: str) -> dict[int | str, dict[str, Any]]:
    return {int(status): {"model": Problem, "description": text}}


_ALWAYS = (
    _shown(HTTPStatus.UNAUTHORIZED, "no valid token")
    | _shown(HTTPStatus.FORBIDDEN, "the token does not allow this")
    | _shown(HTTPStatus.BAD_REQUEST, "the request cannot be read")
    | _shown(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
    | _shown(HTTPStatus.UNPROCESSABLE_ENTITY, "a field has a wrong value")
    | _shown(HTTPStatus.SERVICE_UNAVAILABLE, "the database cannot be reached")
)
_OF_ITEM = _shown(HTTPStatus.NOT_FOUND, "no such item")
_OF_MOVE = _OF_ITEM | _shown(HTTPStatus.CONFLICT, "the item is in another state, or someone else holds it")

router = APIRouter(prefix="/api/v1", responses=_ALWAYS)
description = APIRouter(include_in_schema=False)


def needs(*scopes: Scope) -> Callable[..., Bearer]:
    """Return a dependency that identifies the caller and requires a token with one of the scopes."""

    def bearer(
        request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None
    ) -> Bearer:
        caller = desk_of(request).tokens.find(sent.credentials) if sent is not None else None
        if caller is None:
            message = "this needs a valid token: send `Authorization: Bearer <token>`"
            raise RefusedError(HTTPStatus.UNAUTHORIZED, message, {"WWW-Authenticate": "Bearer"})
        if not caller.token.scopes & set(scopes):
            allowed = ", ".join(sorted(caller.token.scopes))
            message = f"this token allows {allowed}; this needs {' or '.join(scopes)}"
            raise RefusedError(HTTPStatus.FORBIDDEN, message)
        return caller

    return bearer


def _op(caller: Bearer, key: str | None) -> str | None:
    """Return the operation name for an idempotency key, or `None` without a key."""
    return None if key is None else f"{caller.token.id}:{key}"


Submitter = Annotated[Bearer, Depends(needs(Scope.SUBMIT))]
Reader = Annotated[Bearer, Depends(needs(Scope.READ))]
Fetcher = Annotated[Bearer, Depends(needs(Scope.SUBMIT, Scope.READ))]
Judge = Annotated[Bearer, Depends(needs(Scope.JUDGE))]
TheDesk = Annotated[Desk, Depends(desk_of)]
WaitS = Annotated[float, Query(ge=0, le=LONGEST_WAIT_S, allow_inf_nan=False)]
ItemId = Annotated[str, Path(min_length=1, max_length=32, pattern=r"^[0-9A-Za-z_-]+$")]
OperationKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", max_length=200, description="Requests with the same key take effect only once."),
]


@router.post(
    "/items",
    status_code=HTTPStatus.CREATED,
    responses=_shown(HTTPStatus.CONFLICT, "another answer has this exchange id"),
)
def submit(desk: TheDesk, caller: Submitter, body: Submission) -> Submitted:
    """Submit an answer for review; the same answer with the same `exchange_id` always returns the same item."""
    shortest_s = desk.queue.settings.shortest_deadline_s
    if body.deadline_s is not None and body.deadline_s < shortest_s:
        message = f"deadline_s is {body.deadline_s:g}; this site takes {shortest_s:g} or more"
        raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, message)
    return Submitted(id=desk.queue.submit_document(body.document, deadline_s=body.deadline_s, by=caller.by))


@description.get("/api/openapi.json")
def describe(request: Request, _: Annotated[Bearer, Depends(needs(*Scope))]) -> JSONResponse:
    """Return the description of the API; it names what a token is needed for, so it needs one itself."""
    return JSONResponse(request.app.openapi())


@router.post("/earlier-verdict")
def earlier_verdict(desk: TheDesk, _: Fetcher, body: Asked) -> EarlierView:
    """Return a reviewer's earlier verdict on the same question, or on a similar one."""
    return EarlierView.of(
        desk.queue.reuse(
            body.question,
            tags=body.tags,
            metadata=body.metadata,
            passages=body.passages,
            similar=body.similar,
            max_age_s=body.max_age_s,
        )
    )


@router.get("/items")
def list_items(
    desk: TheDesk,
    _: Reader,
    state: Annotated[list[State] | None, Query()] = None,
    tag: Annotated[list[str] | None, Query()] = None,
    assignee: Annotated[str | None, Query(max_length=200)] = None,
    text: Annotated[str, Query(max_length=2000)] = "",
    min_confidence: Annotated[float | None, Query(ge=0, le=1)] = None,
    max_confidence: Annotated[float | None, Query(ge=0, le=1)] = None,
    created_after: AwareDatetime | None = None,
    sort: Sort = Sort.RISK,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> PageView:
    """List items, in all states unless `state` is given."""
    filters = Filters(
        states=frozenset(state or ()),
        tags=frozenset(tag or ()),
        assignee=assignee,
        text=text,
        min_confidence=min_confidence,
        max_confidence=max_confidence,
        created_after=created_after,
    )
    return PageView.of(desk.queue.list(filters, sort=sort, cursor=cursor, limit=limit))


@router.post("/items/claim-next", responses={204: {"description": "no unclaimed item"}})
def claim_next(desk: TheDesk, caller: Judge) -> ItemView:
    """Claim the riskiest unclaimed item."""
    item = desk.queue.claim(caller.by)
    if item is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)  # type: ignore[return-value] # FastAPI passes it on
    return ItemView.of(item)


@router.get("/items/{item_id}", responses=_OF_ITEM)
def get(desk: TheDesk, caller: Reader, item_id: ItemId) -> DetailView:
    """Return an item with all its texts; the audit trail records the view."""
    return DetailView.of(desk.queue.get(ReviewId(item_id), viewer=caller.by))


@router.get("/items/{item_id}/audit", responses=_OF_ITEM)
def audit(desk: TheDesk, _: Reader, item_id: ItemId) -> list[AuditView]:
    """List what happened to an item, oldest first."""
    return [AuditView.of(row) for row in desk.queue.audit(ReviewId(item_id))]


@router.get("/items/{item_id}/ruling", responses=_OF_ITEM)
async def ruling(desk: TheDesk, caller: Fetcher, item_id: ItemId, wait_s: WaitS = 0.0) -> Answered:
    """Return the verdict, waiting up to `wait_s` seconds for it; it can still be undone."""
    review_id = ReviewId(item_id)
    if Scope.READ not in caller.token.scopes:
        await asyncio.to_thread(_check_submitter, desk, caller, review_id)
    return await _awaited(desk, review_id, partial(desk.queue.ruling, review_id), wait_s)


@router.post("/items/{item_id}/ruling", responses=_OF_ITEM)
async def take_ruling(desk: TheDesk, caller: Submitter, item_id: ItemId, wait_s: WaitS = 0.0) -> Answered:
    """Take the verdict on an item that the caller's account submitted; once taken it can't be undone."""
    review_id = ReviewId(item_id)
    await asyncio.to_thread(_check_submitter, desk, caller, review_id)
    return await _awaited(desk, review_id, partial(desk.queue.wait, review_id, 0.0), wait_s)


def _check_submitter(desk: Desk, caller: Bearer, review_id: ReviewId) -> None:
    """Refuse an item that another account submitted, as if there were none."""
    if not desk.queue.is_submitter(review_id, caller.user.name):
        raise ItemNotFoundError(review_id)


async def _awaited(desk: Desk, review_id: ReviewId, look: Callable[[], Ruling | None], wait_s: float) -> Answered:
    """Call `look` whenever there may be a verdict, for up to `wait_s` seconds, and return what it found."""
    loop, woken, end = asyncio.get_running_loop(), asyncio.Event(), time.monotonic() + wait_s
    found = await asyncio.to_thread(look)
    if found is None and wait_s > 0:
        with desk.queue.waking.calling(review_id, partial(_wake, loop, woken)):
            while found is None and (left_s := end - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), left_s)
                woken.clear()
                found = await asyncio.to_thread(look)
    return Answered(ruling=None if found is None else RulingView.of(found))


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the site is ending
        loop.call_soon_threadsafe(woken.set)


@router.post("/items/{item_id}/claim", responses=_OF_MOVE)
def claim(desk: TheDesk, caller: Judge, item_id: ItemId) -> ItemView:
    """Claim this item, or renew the claim."""
    return _view(desk.queue.claim_item(ReviewId(item_id), caller.by))


@router.post("/items/{item_id}/release", responses=_OF_MOVE)
def release(
    desk: TheDesk, caller: Judge, item_id: ItemId, body: Release | None = None, key: OperationKey = None
) -> ItemView:
    """Put the item back; an administrator's token may put back any item."""
    options = body or Release()
    if options.force and not caller.user.is_admin:
        raise RefusedError(HTTPStatus.FORBIDDEN, "only administrators may put back an item that someone else holds")
    op, person = _op(caller, key), options.on_behalf_of
    return _view(desk.queue.release(ReviewId(item_id), caller.by, force=options.force, op=op, on_behalf_of=person))


@router.post("/items/{item_id}/approve", responses=_OF_MOVE)
def approve(
    desk: TheDesk, caller: Judge, item_id: ItemId, body: Move | None = None, key: OperationKey = None
) -> ItemView:
    """Approve the answer as it is."""
    person = body.on_behalf_of if body is not None else None
    return _view(desk.queue.approve(ReviewId(item_id), caller.by, op=_op(caller, key), on_behalf_of=person))


@router.post("/items/{item_id}/edit", responses=_OF_MOVE)
def edit(desk: TheDesk, caller: Judge, item_id: ItemId, body: Edit, key: OperationKey = None) -> ItemView:
    """Replace the answer with an edited text."""
    return _view(
        desk.queue.edit(
            ReviewId(item_id),
            caller.by,
            body.text,
            was_correct=body.was_correct,
            op=_op(caller, key),
            on_behalf_of=body.on_behalf_of,
        )
    )


@router.post("/items/{item_id}/reject", responses=_OF_MOVE)
def reject(desk: TheDesk, caller: Judge, item_id: ItemId, body: Rejection, key: OperationKey = None) -> ItemView:
    """Reject the answer."""
    op, person = _op(caller, key), body.on_behalf_of
    return _view(desk.queue.reject(ReviewId(item_id), caller.by, body.reason, op=op, on_behalf_of=person))


@router.post("/items/{item_id}/undo", responses=_OF_MOVE)
def undo(desk: TheDesk, caller: Judge, item_id: ItemId) -> ItemView:
    """Undo a verdict that the caller gave."""
    return _view(desk.queue.undo(ReviewId(item_id), caller.by))


@router.post("/items/{item_id}/assign", responses=_OF_MOVE)
def assign(desk: TheDesk, caller: Judge, item_id: ItemId, body: Assignment) -> ItemView:
    """Assign the item to a reviewer."""
    return _view(desk.queue.assign(ReviewId(item_id), caller.by, body.assignee))


@router.post("/items/{item_id}/comments", status_code=HTTPStatus.NO_CONTENT, responses=_OF_ITEM)
def comment(desk: TheDesk, caller: Judge, item_id: ItemId, body: Note) -> None:
    """Add a comment to the item."""
    desk.queue.comment(ReviewId(item_id), caller.by, body.text)


@router.get("/stats")
def stats(desk: TheDesk, _: Reader) -> InsightView:
    """Return how many items wait, and how well confidence agrees with the reviewers."""
    return InsightView.of(desk.queue.insight())


def _view(item: Item) -> ItemView:
    return ItemView.of(item)
