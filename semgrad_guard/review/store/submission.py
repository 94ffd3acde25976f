"""Store new items; callers that submit at the same time share one transaction."""

from __future__ import annotations

import json
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

from sqlalchemy import insert, select
from sqlalchemy.dialects import postgresql, sqlite

from semgrad_guard.errors import ExchangeIdTakenError, QueueUnavailableError
from semgrad_guard.flow import ReviewId
from semgrad_guard.review.store import audit, outbox
from semgrad_guard.review.store.audit import AuditEvent, Change
from semgrad_guard.review.store.document import question_key, shorten, storable
from semgrad_guard.review.store.items import Event, State, rank
from semgrad_guard.review.store.read import read_document
from semgrad_guard.review.store.schema import documents, items, search
from semgrad_guard.review.store.schema import tags as tag_table
from semgrad_guard.review.store.time_limits import call_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from semgrad_guard.review.store.database import Transaction
    from semgrad_guard.review.store.document import Document
    from semgrad_guard.review.store.items import QueueSettings

Given = TypeVar("Given")
Result = TypeVar("Result")

_MOST = 100
"""Most requests in one transaction, so that other writers do not wait long."""
_LEAST_S = 0.05
_TOO_LATE = 1 / 8
"""Share of the time limit that must be left for another try."""
_OVERTAKEN = "the review queue did not take the write in time: other writers came first; try again"


class Fate(Enum):
    """Whom an error of a shared call concerns."""

    OWN = "own"
    """One of the requests, for good: each is tried alone."""
    BLOCKED = "blocked"
    """One of the requests, perhaps only for now: each is tried alone, and again while it has time."""
    SHARED = "shared"
    """All alike."""


class _Call(Generic[Given, Result]):
    """One caller's request and its result."""

    __slots__ = ("ends_at", "error", "given", "is_blocked", "is_done", "result")

    def __init__(self, given: Given, ends_at: float) -> None:
        self.given = given
        self.ends_at = ends_at
        self.is_done = self.is_blocked = False
        self.result: Result | None = None
        self.error: Exception | None = None

    @property
    def left_s(self) -> float:
        return max(0.0, self.ends_at - time.monotonic())


class GroupCommit(Generic[Given, Result]):
    """Combines the requests of several threads into one call of a function.

    The first request is handled at once; those that arrive meanwhile are handled together by one of their threads. So
    no request waits for others to arrive, and the more callers there are, the fewer calls each needs. None waits longer
    than the time limit, and one that is blocked holds no other up.
    """

    def __init__(
        self,
        act: Callable[[Sequence[Given], float], Sequence[Result]],
        fate_of: Callable[[Exception], Fate],
        *,
        limit_s: float,
    ) -> None:
        """Keep the functions.

        Args:
            act: does all of what it is given within so many seconds or, raising an error, nothing; returns one result
                for each.
            fate_of: says whom an error of `act` concerns.
            limit_s: seconds for one request, from its arrival.
        """
        self._act, self._fate_of, self._limit_s = act, fate_of, limit_s
        self._lists, self._acts = threading.Lock(), threading.Lock()
        self._waiting: list[_Call[Given, Result]] = []
        call_after_fork(self._forget)  # its parent's threads do not exist there, but their locks do

    def __call__(self, given: Given) -> Result:
        """Carry out one request and return its result.

        Raises:
            QueueUnavailableError: others' requests took all of its time.
        """
        call = _Call[Given, Result](given, time.monotonic() + self._limit_s)
        with self._lists:
            self._waiting.append(call)
        while not call.is_done:
            if self._acts.acquire(timeout=max(call.left_s, _LEAST_S)):
                try:
                    if not call.is_done:
                        self._act_for_some(call)
                finally:
                    self._acts.release()
            else:
                self._withdraw(call)
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value] # set, as there was no error

    def _act_for_some(self, own: _Call[Given, Result]) -> None:
        calls = self._take(own)
        try:
            self._act_for(calls)
        except Exception as error:  # noqa: BLE001 - each caller gets the error, or another try
            if len(calls) > 1 and self._fate_of(error) is not Fate.SHARED:
                self._one_by_one(calls, own)
            else:
                self._fail_or_wait(calls, error)
        except BaseException:  # this thread must end: another one handles the waiting requests
            self._put_back(calls)
            raise

    def _take(self, own: _Call[Given, Result]) -> list[_Call[Given, Result]]:
        """Take the requests to act for: those that nothing blocks, or else this thread's own."""
        with self._lists:
            calls = [call for call in self._waiting if not call.is_blocked][:_MOST] or [own]
            self._waiting = [call for call in self._waiting if call not in calls]
        return calls

    def _one_by_one(self, calls: Sequence[_Call[Given, Result]], own: _Call[Given, Result]) -> None:
        for n, call in enumerate(calls):
            if own.is_done:  # the threads of the others go on
                self._put_back(calls[n:])
                return
            try:
                self._act_for([call])
            except Exception as error:  # noqa: BLE001 - its caller gets it
                self._fail_or_wait([call], error)

    def _act_for(self, calls: Sequence[_Call[Given, Result]]) -> None:
        results = self._act([call.given for call in calls], min(call.left_s for call in calls))
        for call, result in zip(calls, results, strict=True):
            call.result, call.error, call.is_done = result, None, True

    def _fail_or_wait(self, calls: Sequence[_Call[Given, Result]], error: Exception) -> None:
        """Hand an error to those whose time is over, or who alone are to blame; the others are tried again."""
        fate, too_late_s = self._fate_of(error), self._limit_s * _TOO_LATE
        first_end = min(call.ends_at for call in calls)  # `act` had the time until then
        for call in calls:
            call.error = error
            call.is_blocked = fate is Fate.BLOCKED
            is_over = call.left_s <= too_late_s or (fate is Fate.SHARED and call.ends_at <= first_end + too_late_s)
            call.is_done = fate is Fate.OWN or is_over
        self._put_back([call for call in calls if not call.is_done])

    def _put_back(self, calls: Sequence[_Call[Given, Result]]) -> None:
        with self._lists:
            self._waiting = [*calls, *self._waiting]

    def _withdraw(self, call: _Call[Given, Result]) -> None:
        """Give a request up whose time is over, unless a thread acts for it at this moment."""
        with self._lists:
            if call in self._waiting:
                self._waiting.remove(call)
                call.error = call.error or QueueUnavailableError(_OVERTAKEN)
                call.is_done = True

    def _forget(self) -> None:
        self._lists, self._acts = threading.Lock(), threading.Lock()
        self._waiting = []


_INSERT_DOCUMENT, _INSERT_SEARCH, _INSERT_TAGS = insert(documents), insert(search), insert(tag_table)
_INSERT_SQLITE = sqlite.insert(items).on_conflict_do_nothing(index_elements=["exchange_id"]).returning(items.c.id)
_INSERT_POSTGRES = postgresql.insert(items).on_conflict_do_nothing(index_elements=["exchange_id"]).returning(items.c.id)
SUBMITTER = "guard"
"""Who submits, in the audit trail, when the caller names no one."""
_TITLE = 200
_PREVIEW = 300
_SEARCHED = 50_000
"""Characters of a document that search looks at; PostgreSQL refuses to index a megabyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A document on its way into the queue."""

    document: Document
    by: str = SUBMITTER
    deadline_s: float | None = None
    """Seconds for a verdict; `None` takes the queue's setting."""


def submit(tx: Transaction, submission: Submission, settings: QueueSettings) -> ReviewId:
    """Store a document as a new item, or return the item that the exchange already has."""
    return submit_all(tx, [submission], settings)[0]


def submit_all(tx: Transaction, submissions: Sequence[Submission], settings: QueueSettings) -> list[ReviewId]:
    """Store documents as new items; return for each its item, or the one that the exchange already has."""
    by_exchange = {each.document.exchange_id: each for each in reversed(submissions)}  # the first of equal ones counts
    ids = {exchange_id: new_id() for exchange_id in by_exchange}
    # Always in one order: two transactions that store the same exchanges wait for each other, never in a circle.
    rows = [_row(tx, ids[each], by_exchange[each], settings) for each in sorted(by_exchange)]
    statement = _INSERT_SQLITE if tx.conn.dialect.name == "sqlite" else _INSERT_POSTGRES
    new = frozenset(tx.conn.execute(statement, rows).scalars())
    stored = {ids[each]: by_exchange[each] for each in by_exchange if ids[each] in new}
    insert_texts(tx, {review_id: each.document for review_id, each in stored.items()})
    insert_tags(tx, {review_id: each.document.tags for review_id, each in stored.items()})
    arrivals = [audit.row(tx, id_, _arrival(each), Change(None, State.PENDING, 1)) for id_, each in stored.items()]
    audit.record_all(tx, arrivals)
    outbox.announce(tx, stored, Event.SUBMIT)
    if len(stored) < len(ids):
        ids |= _known(tx, [each for each in ids if ids[each] not in new])
    for each in submissions:
        first = by_exchange[each.document.exchange_id]
        review_id = ids[each.document.exchange_id]
        if review_id not in new:
            _check_same(each, audit.submitter_of(tx.conn, review_id), read_document(tx.conn, review_id))
        elif each is not first:
            _check_same(each, first.by, first.document)
    return [ids[each.document.exchange_id] for each in submissions]


def _check_same(submission: Submission, by: str | None, stored: Document | None) -> None:
    """Refuse a submission that has the exchange id of another answer, or of another account's.

    Raises:
        ExchangeIdTakenError: it has.
    """
    is_others = by is not None and _account(by) != _account(submission.by)
    if is_others or (stored is not None and _content(stored) != _content(submission.document)):
        raise ExchangeIdTakenError(submission.document.exchange_id)


def _account(by: str) -> str:
    """Return the account of a program's name in the audit trail."""
    return by.partition("/")[0]


def _content(document: Document) -> tuple[object, ...]:
    """Return what a verdict is about."""
    passages = tuple(passage.text for passage in document.passages)
    return storable(document.answer), document.question, document.prompt, passages


def _arrival(submission: Submission) -> AuditEvent:
    """Return the audit event of a submission; repeated submissions are recognised by the exchange, not by `op`."""
    return AuditEvent(Event.SUBMIT, submission.by, is_main=False)


def _known(tx: Transaction, exchange_ids: list[str]) -> dict[str, ReviewId]:
    """Return the items that exchanges already have."""
    query = select(items.c.exchange_id, items.c.id).where(items.c.exchange_id.in_(exchange_ids))
    return {exchange_id: ReviewId(review_id) for exchange_id, review_id in tx.conn.execute(query)}


def new_id() -> ReviewId:
    """Return a fresh random id."""
    return ReviewId(secrets.token_hex(8))


def insert_texts(tx: Transaction, texts: Mapping[ReviewId, Document]) -> None:
    """Store the texts of new items and index them for search."""
    if not texts:
        return
    bodies = [{"item_id": review_id, "body": each.model_dump_json()} for review_id, each in texts.items()]
    tx.conn.execute(_INSERT_DOCUMENT, bodies)
    tx.conn.execute(_INSERT_SEARCH, [{"item_id": id_, "body": searched_text(each)} for id_, each in texts.items()])


def insert_tags(tx: Transaction, tags: Mapping[ReviewId, Iterable[str]]) -> None:
    """Store the tags of new items."""
    rows = [{"item_id": review_id, "tag": tag} for review_id, names in tags.items() for tag in tag_names(names)]
    if rows:
        tx.conn.execute(_INSERT_TAGS, rows)


def tag_names(tags: Iterable[str]) -> list[str]:
    """Return the tags as they are stored: shortened, cleaned and without duplicates."""
    return sorted({storable(tag)[:200] for tag in tags})


def key_of(document: Document | None) -> str | None:
    """Return the digest that identifies the question, if there is one."""
    return question_key(document.question) if document is not None and document.question else None


def searched_text(document: Document) -> str:
    """Return the text in which search looks for words."""
    parts = [document.title[: _TITLE * 10], document.answer]
    parts += [f"{passage.source or ''} {passage.text}" for passage in document.passages]
    return storable("\n".join(parts)[:_SEARCHED])


def _row(tx: Transaction, review_id: ReviewId, submission: Submission, settings: QueueSettings) -> dict[str, object]:
    """Return the row of a new item."""
    document = submission.document
    lifetime = settings.deadline_s if submission.deadline_s is None else submission.deadline_s
    return {
        "id": review_id,
        "exchange_id": document.exchange_id,
        "state": State.PENDING,
        "version": 1,
        "title": shorten(document.title, _TITLE),
        "preview": shorten(document.answer, _PREVIEW),
        "question_key": key_of(document),
        "rank": rank(tx.now, document.confidence, document.tags, settings),
        "confidence": document.confidence,
        "rule": storable(document.rule)[:200],
        "tags": json.dumps(tag_names(document.tags)),
        "created_at": tx.now,
        "updated_at": tx.now,
        "deadline_at": None if lifetime is None else tx.now + timedelta(seconds=lifetime),
        "at_expiry": settings.at_expiry,
    }
