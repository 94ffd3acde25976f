"""Reaching a queue: the database at a URL, or a review site through its API, by the same names."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pydantic import BaseModel, RootModel, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from semgrad_guard.deadline import Deadline, call_before
from semgrad_guard.errors import (
    AlreadyClaimedError,
    AssignedError,
    EmptyTextError,
    ExchangeIdTakenError,
    IllegalMoveError,
    ItemNotFoundError,
    QueueUnavailableError,
    ReviewError,
    UndoRefusedError,
    VerdictChangedError,
)
from semgrad_guard.extras import require
from semgrad_guard.flow import ReviewId, Ruling, utc_now
from semgrad_guard.review.queue import NO_PASSAGES, SqlReviewQueue
from semgrad_guard.review.store.document import document_of
from semgrad_guard.review.store.items import OPEN_ITEMS, Filters, QueueSettings, Sort
from semgrad_guard.review.store.learn import EarlierVerdict
from semgrad_guard.review.views import AuditView, DetailView, EarlierView, InsightView, ItemView, PageView, RulingView
from semgrad_guard.wire import TooLargeError, read_json, whole_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    import httpx
    from pydantic import JsonValue

    from semgrad_guard.flow import Decision, Exchange
    from semgrad_guard.review.store.document import AttemptsLike

T = TypeVar("T", bound=BaseModel)


class _Submitted(BaseModel):
    """What the site says of an answer that it stored."""

    id: str


class _RulingAnswer(BaseModel):
    """What the site says of an item's verdict."""

    ruling: RulingView | None


class _AuditRows(RootModel[list[AuditView]]):
    """The trail of an item."""


class _MaybeItem(RootModel[ItemView | None]):
    """An item, or nothing."""


_KNOWN: dict[str, type[ReviewError]] = {
    each.__name__: each
    for each in (
        AlreadyClaimedError,
        AssignedError,
        ExchangeIdTakenError,
        IllegalMoveError,
        ItemNotFoundError,
        UndoRefusedError,
        VerdictChangedError,
    )
}
_LONGEST_POLL_S = 30.0
_UNAVAILABLE = frozenset({502, 503, 504})


class ReviewClient:
    """A review queue served by `semgrad-guard review serve`. It is safe to share between threads.

    It implements `ports.DecidableQueue`, given a token that allows `submit` and `judge`. The token's account acts and
    holds the leases; the audit trail also records `by`.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 10.0,
        retry_s: float = 5.0,
        sleep: Callable[[float], None] = time.sleep,
        client: httpx.Client | None = None,
    ) -> None:
        """Connect to a review site.

        Args:
            url: address of the site, for example `https://review.example.com`.
            token: from `semgrad-guard review token add`.
            timeout_s: seconds for one request.
            retry_s: seconds for which an unreachable site is tried again.
            sleep: waits, in seconds.
            client: sends the requests; by default a new `httpx.Client`.
        """
        library = require("httpx", extra="review")
        self._base = url.rstrip("/") + "/api/v1"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._client: httpx.Client = client or library.Client(follow_redirects=False)
        self.deadline_s: float | None = None
        """Seconds for a verdict when `submit` names none; `None` takes the site's setting."""
        self._timeout_s, self._retry_s, self._sleep = timeout_s, retry_s, sleep
        self._broken: type[Exception] = library.RequestError

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # --- submitting and waiting ---------------------------------------------------------------------------------------

    def submit(
        self,
        exchange: Exchange,
        decision: Decision,
        attempts: AttemptsLike | None = None,
        *,
        deadline_s: float | None = None,
    ) -> ReviewId:
        """Store an answer for review; the same exchange again gives the same id.

        Raises:
            QueueUnavailableError: the site could not be reached or could not store it.
            ReviewError: the token does not allow it.
        """
        document = document_of(exchange, decision, attempts).model_dump(mode="json")
        body = {"document": document, "deadline_s": self.deadline_s if deadline_s is None else deadline_s}
        return ReviewId(self._read(_Submitted, "/items", method="POST", json=body).id)

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:
        """Wait up to `timeout_s` seconds for the verdict and return it, or `None`; 0 checks once."""
        end = time.monotonic() + timeout_s
        while True:
            left = max(0.0, end - time.monotonic())
            span = min(left, _LONGEST_POLL_S)
            path = f"/items/{review_id}/ruling"
            answer = self._read(_RulingAnswer, path, method="POST", params={"wait_s": span}, extra_s=span)
            if answer.ruling is not None:
                return _ruling(answer.ruling)
            if end - time.monotonic() <= 0:
                return None

    def reuse(
        self,
        question: str,
        *,
        tags: Iterable[str] = (),
        metadata: Mapping[str, JsonValue] | None = None,
        passages: str = NO_PASSAGES,
        similar: float | None = None,
        max_age_s: float | None = None,
    ) -> EarlierVerdict | None:
        """Return a person's earlier verdict on the same question, or on a similar one; see `SqlReviewQueue.reuse`."""
        wanted = {
            "question": question,
            "tags": sorted(tags),
            "metadata": dict(metadata or {}),
            "passages": passages,
            "similar": similar,
            "max_age_s": max_age_s,
        }
        found = self._read(EarlierView, "/earlier-verdict", method="POST", json=wanted)
        if found.ruling is None:
            return None
        return EarlierVerdict(found.question, _ruling(found.ruling), found.similarity)

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, review_id: ReviewId) -> DetailView:
        """Return an item with everything that a reviewer sees; the audit trail records the view."""
        return self._read(DetailView, f"/items/{review_id}")

    def list(
        self, filters: Filters = OPEN_ITEMS, *, sort: Sort = Sort.RISK, cursor: str | None = None, limit: int = 50
    ) -> PageView:
        """Return one page of items. The API has no filters for `holder`, `rule` and `created_before`."""
        params: dict[str, Any] = {
            "state": sorted(filters.states),
            "tag": sorted(filters.tags),
            "assignee": filters.assignee,
            "text": filters.text,
            "min_confidence": filters.min_confidence,
            "max_confidence": filters.max_confidence,
            "created_after": filters.created_after.isoformat() if filters.created_after else None,
            "sort": sort,
            "cursor": cursor,
            "limit": limit,
        }
        return self._read(PageView, "/items", params={key: each for key, each in params.items() if each is not None})

    def each(self, filters: Filters = OPEN_ITEMS, *, sort: Sort = Sort.RISK) -> Iterator[ItemView]:
        """Yield all items that match the filters, page by page."""
        cursor, more = None, True
        while more:
            page = self.list(filters, sort=sort, cursor=cursor, limit=200)
            yield from page.items
            cursor, more = page.next_cursor, page.next_cursor is not None

    def audit(self, review_id: ReviewId) -> tuple[AuditView, ...]:
        """Return everything that happened to an item, oldest first."""
        return tuple(self._read(_AuditRows, f"/items/{review_id}/audit").root)

    def insight(self) -> InsightView:
        """Return statistics of the queue."""
        return self._read(InsightView, "/stats")

    # --- deciding -----------------------------------------------------------------------------------------------------

    def claim(self) -> ItemView | None:
        """Claim the riskiest free item, or return `None`."""
        return self._read(_MaybeItem, "/items/claim-next", method="POST").root

    def claim_item(self, review_id: ReviewId) -> ItemView:
        """Claim this item, or renew the claim."""
        return self._move(review_id, "claim")

    def release(self, review_id: ReviewId, reviewer: str, *, force: bool = False) -> ItemView:
        """Put a claimed item back; `force` also puts back what another reviewer holds.

        Raises:
            AlreadyClaimedError: somebody else holds it.
            IllegalMoveError: no reviewer holds it.
            ReviewError: `force` needs the token of an administrator's account.
        """
        return self._move(review_id, "release", {"on_behalf_of": reviewer, "force": force})

    def approve(self, review_id: ReviewId, by: str, *, op: str | None = None) -> ItemView:
        """Approve the answer as it is.

        Args:
            review_id: the item.
            by: the person who decided, for the audit trail.
            op: name of the operation; repeating it with the same token has no further effect.

        Raises:
            AlreadyClaimedError: someone else holds it.
            IllegalMoveError: it already has a verdict.
        """
        return self._move(review_id, "approve", {"on_behalf_of": by}, op)

    def edit(
        self, review_id: ReviewId, by: str, text: str, *, was_correct: bool = False, op: str | None = None
    ) -> ItemView:
        """Replace the answer with an edited text; see `approve`.

        Raises:
            EmptyTextError: the text is blank.
        """
        body = {"on_behalf_of": by, "text": text, "was_correct": was_correct}
        return self._move(review_id, "edit", body, op)

    def reject(self, review_id: ReviewId, by: str, reason: str = "", *, op: str | None = None) -> ItemView:
        """Reject the answer, so that the caller never gets it; see `approve`."""
        return self._move(review_id, "reject", {"on_behalf_of": by, "reason": reason}, op)

    def undo(self, review_id: ReviewId) -> ItemView:
        """Take back a verdict that this client gave."""
        return self._move(review_id, "undo")

    def assign(self, review_id: ReviewId, assignee: str | None) -> ItemView:
        """Assign an item to a reviewer; `None` leaves it to all."""
        return self._move(review_id, "assign", {"assignee": assignee})

    def comment(self, review_id: ReviewId, text: str) -> None:
        """Add a comment to an item."""
        self._send("POST", f"/items/{review_id}/comments", json={"text": text})

    # --- sending ------------------------------------------------------------------------------------------------------

    def _move(
        self, review_id: ReviewId, name: str, body: dict[str, Any] | None = None, op: str | None = None
    ) -> ItemView:
        # a digest, because not every operation name is a valid header
        key = secrets.token_hex(16) if op is None else hashlib.sha256(op.encode()).hexdigest()
        headers = {"Idempotency-Key": key}
        return self._read(ItemView, f"/items/{review_id}/{name}", method="POST", json=body, headers=headers)

    def _read(self, kind: type[T], path: str, *, method: str = "GET", **content: Any) -> T:
        try:
            return kind.model_validate(self._send(method, path, **content))
        except ValidationError as error:
            msg = f"{self._base}{path} did not answer as this version expects: use the same version on both sides"
            raise ReviewError(msg) from error

    def _send(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, extra_s: float = 0.0, **content: Any
    ) -> Any:
        """Send a request and return the site's answer; retry while the site cannot be reached."""
        retrying = Retrying(
            stop=stop_after_delay(self._retry_s),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            retry=retry_if_exception_type(QueueUnavailableError),
            sleep=self._sleep,
            reraise=True,
        )
        sent = {**self._headers, **(headers or {})}
        return retrying(self._once, method, path, headers=sent, timeout=self._timeout_s + extra_s, **content)

    def _once(self, method: str, path: str, *, timeout: float, **content: Any) -> Any:
        def ask() -> tuple[int, bytes]:
            with self._client.stream(method, self._base + path, timeout=timeout, **content) as response:
                return response.status_code, whole_body(response)

        try:  # in a thread, because a site that sends a byte now and then breaks no limit of the connection
            status, told = call_before(Deadline.after(timeout), ask, f"the review site at {self._base}")
        except (self._broken, TimeoutError) as error:
            msg = f"the review site at {self._base} cannot be reached: {type(error).__name__}; check the address"
            raise QueueUnavailableError(msg) from error
        except TooLargeError as error:
            msg = f"the review site at {self._base} answered too much: {error}"
            raise ReviewError(msg) from error
        try:
            answer = read_json(told)
        except ValueError:  # among them the empty text
            answer = None
        if status in _UNAVAILABLE:
            msg = f"the review site at {self._base} is not available: it answered {status}"
            raise QueueUnavailableError(msg)
        if not 200 <= status < 300:
            raise _error_of(status, answer)
        return answer


def _error_of(status: int, told: Any) -> ReviewError:
    """Return the error that the site told of, as the type it had there."""
    try:
        kind, message, details = str(told["error"]), str(told["message"]), told.get("details", {})
    except (KeyError, TypeError, AttributeError):
        return ReviewError(f"the review site answered {status}: is this its address?")
    if kind == EmptyTextError.__name__:
        return EmptyTextError(message)
    known = _KNOWN.get(kind)
    try:
        return ReviewError(message) if known is None else known(**details)
    except TypeError:
        return ReviewError(message)


def _ruling(view: RulingView) -> Ruling:
    return Ruling(review_id=ReviewId(view.review_id), verdict=view.verdict, text=view.text, by=view.by, at=view.at)


@overload
def open_queue(
    url: str,
    *,
    token: None = None,
    settings: QueueSettings | None = None,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], None] = time.sleep,
) -> SqlReviewQueue: ...
@overload
def open_queue(
    url: str,
    *,
    token: str,
    settings: QueueSettings | None = None,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], None] = time.sleep,
) -> ReviewClient: ...
def open_queue(
    url: str,
    *,
    token: str | None = None,
    settings: QueueSettings | None = None,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], None] = time.sleep,
) -> SqlReviewQueue | ReviewClient:
    """Return the queue at a URL; the first use connects to it and sets up a new SQLite file.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory, for trying out), `postgresql://user:password@host/name`, or
            `https://review.example.com`, where `semgrad-guard review serve` runs.
        token: API token, for a review site.
        settings: lease, deadline, undo time, ranking; of these a review site uses only the deadline.
        clock: returns the current time.
        sleep: waits, in seconds.

    Raises:
        ReviewError: the URL does not name a queue, or a token is missing or has no use.
        MissingExtraError: the database driver or the web client is not installed.
    """
    if not url.startswith(("https://", "http://")):
        if token is not None:
            msg = "a token is for a review site, https://review.example.com: a database has its password in the url"
            raise ReviewError(msg)
        return SqlReviewQueue(url, settings or QueueSettings(), clock=clock, sleep=sleep)
    if token is None:
        msg = (
            "a review site needs an API token, and programs that need its database can't work through it: pass "
            "token=..., made there by `semgrad-guard review token add`, or name the database"
        )
        raise ReviewError(msg)
    client = ReviewClient(url, token, sleep=sleep)
    client.deadline_s = settings.deadline_s if settings else None
    return client
