"""The review queue: it keeps what `ports.DecidableQueue` promises, and serves reviewers, the site and programs."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from semgrad_guard.errors import EmptyTextError, QueueUnavailableError, SemGradGuardError
from semgrad_guard.review.store import audit, outbox, read, submission, transitions
from semgrad_guard.review.store.audit import AuditEvent
from semgrad_guard.review.store.database import Database, is_blocked, is_passing
from semgrad_guard.review.store.document import document_of, passages_key, storable_document
from semgrad_guard.review.store.items import ALL_ITEMS, OPEN_ITEMS, Event, Filters, QueueSettings, Sort
from semgrad_guard.review.store.learn import (
    Reuse,
    earlier_verdict,
    judged_after,
    labels_after,
    last_ruling,
    trigram_similarity,
)
from semgrad_guard.review.store.read import insight
from semgrad_guard.review.store.submission import Fate, GroupCommit
from semgrad_guard.review.store.transfer import export_page, import_line, read_line
from semgrad_guard.review.store.transitions import Judgement
from semgrad_guard.review.store.waking import Waking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from pydantic import JsonValue

    from semgrad_guard.flow import Decision, Exchange, ReviewId, Ruling
    from semgrad_guard.review.store.database import Transaction
    from semgrad_guard.review.store.document import AttemptsLike, Document
    from semgrad_guard.review.store.items import AuditRow, Item, ItemDetail, Page, State
    from semgrad_guard.review.store.learn import EarlierVerdict, Judged, Label
    from semgrad_guard.review.store.outbox import Delivery
    from semgrad_guard.review.store.read import Insight
    from semgrad_guard.review.store.transitions import Sweep

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_PASSAGES = passages_key(())
_FIRST_S = 0.05
_LONGEST_S = 1.0
_GROWTH = 1.5
_BACKLOG_S = 60.0
"""Time for queueing all earlier verdicts for a new consumer."""


def poll(
    look: Callable[[], T | None],
    timeout_s: float,
    sleep: Callable[[float], None],
    elapsed: Callable[[], float] = time.monotonic,
) -> T | None:
    """Call `look` until it finds something or `timeout_s` seconds have passed, at least once; return what it found.

    Args:
        look: returns `None` while there is nothing.
        timeout_s: how long to continue.
        sleep: waits, in seconds.
        elapsed: a clock that never jumps, in seconds.
    """
    end = elapsed() + timeout_s
    pause = _FIRST_S
    while True:
        found = look()
        left = end - elapsed()
        if found is not None or left <= 0:
            return found
        sleep(min(pause, left))
        pause = min(pause * _GROWTH, _LONGEST_S)


class QueueKeeping:
    """What programs do with the queue behind the scenes; use it through `SqlReviewQueue`."""

    settings: QueueSettings
    _db: Database

    # --- learning -----------------------------------------------------------------------------------------------------

    def labels(self) -> Iterator[Label]:
        """Yield every answer that a person judged, oldest verdict first, once it can no longer be undone."""
        until = self._db.clock() - timedelta(seconds=self.settings.undo_s)
        seen: int | None = 0
        while seen is not None:
            found, seen = self._db.read(partial(labels_after, ruling_id=seen, until=until, limit=100))
            yield from found

    def last_ruling(self) -> int:
        """Return the number of the latest verdict, for `judged_after`."""
        return self._db.read(last_ruling)

    def judged_after(self, ruling_id: int, *, limit: int = 200) -> tuple[list[Judged], int]:
        """Return the confidences of answers judged after a verdict's number, and the number to continue from.

        A verdict that can still be undone is left for later.
        """
        until = self._db.clock() - timedelta(seconds=self.settings.undo_s)
        return self._db.read(partial(judged_after, ruling_id=ruling_id, until=until, limit=limit))

    def reuse(  # noqa: PLR0913 - each narrows the search
        self,
        question: str,
        *,
        tags: Iterable[str] = (),
        metadata: Mapping[str, JsonValue] | None = None,
        passages: str = NO_PASSAGES,
        similar: float | None = None,
        max_age_s: float | None = None,
        similarity: Callable[[str, str], float] = trigram_similarity,
    ) -> EarlierVerdict | None:
        """Return a person's earlier verdict on the same question, or on a similar one.

        There is none without tags or metadata: "What is my balance?" has another answer for each who asks.

        Args:
            question: the user's question alone.
            tags: the earlier item must have all of them.
            metadata: the earlier item must have the same values, for example of the user's id.
            passages: digest of the passages that the model read, from `passages_key`; the earlier item's are the same.
            similar: smallest similarity in [0, 1]; `None` takes the same question only, whatever its case and spacing.
            max_age_s: older verdicts don't count.
            similarity: compares two questions; by default by groups of letters.
        """
        now = self._db.clock()
        wanted = Reuse(
            tags=frozenset(tags),
            metadata=metadata or {},
            passages=passages,
            not_before=None if max_age_s is None else now - timedelta(seconds=max_age_s),
            not_after=now - timedelta(seconds=self.settings.undo_s),
            at_least=similar,
        )
        return self._db.read(lambda conn: earlier_verdict(conn, question, wanted, similarity))

    def insight(self) -> Insight:
        """Return statistics of the queue, including how well confidence agrees with reviewers."""
        now = self._db.clock()
        return self._db.read(lambda conn: insight(conn, now))

    # --- notifying consumers ------------------------------------------------------------------------------------------

    def subscribe(
        self, consumer: str, *, events: Iterable[str] = (outbox.VERDICT,), with_backlog: bool = False
    ) -> None:
        """Subscribe a consumer to what happens from now on; see `store.outbox.consume`.

        Args:
            consumer: its name; subscribing again changes nothing.
            events: `verdict` (told once it can't be undone any more) and `submit`.
            with_backlog: also tell it about verdicts given before.
        """

        def work(tx: Transaction) -> None:
            outbox.subscribe(tx, consumer, events)
            if with_backlog:
                outbox.backlog(tx, consumer, delay_s=self.settings.undo_s)

        self._db.write(work, limit_s=_BACKLOG_S if with_backlog else None)

    def unsubscribe(self, consumer: str) -> None:
        """Unsubscribe a consumer."""
        self._db.write(lambda tx: outbox.unsubscribe(tx, consumer))

    def take(self, consumer: str, *, limit: int = 20, lease_s: float = 60.0) -> tuple[Delivery, ...]:
        """Return the deliveries that are due for a consumer; they are leased to the caller for `lease_s` seconds."""
        return self._db.write(lambda tx: outbox.take(tx, consumer, limit=limit, lease_s=lease_s))

    def confirm(self, delivery: Delivery) -> None:
        """Mark a delivery as done."""
        self._db.write(lambda tx: outbox.confirm(tx, delivery))

    def postpone(self, delivery: Delivery, error: str) -> None:
        """Mark a delivery as failed; it is tried again later."""
        self._db.write(lambda tx: outbox.postpone(tx, delivery, error))

    # --- export, import and erasing -----------------------------------------------------------------------------------

    def export(self, filters: Filters = ALL_ITEMS) -> Iterator[str]:
        """Yield items as JSON lines, oldest first, with their verdicts, comments and audit trail."""
        cursor, more = None, True
        while more:
            lines, cursor = self._db.read(partial(export_page, filters=filters, cursor=cursor))
            yield from lines
            more = cursor is not None

    def import_lines(self, lines: Iterable[str], by: str, *, source: str = "import") -> tuple[int, int]:
        """Store items from JSON lines; exchanges already in the queue are left unchanged.

        Returns:
            How many items were new and how many were known.

        Raises:
            DataFileError: a line cannot be used; the lines before it are stored, and a second import skips them.
        """
        new = known = 0
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            line = read_line(text, source, number)
            if self._db.write(partial(import_line, line=line, settings=self.settings, by=by)):
                new += 1
            else:
                known += 1
        return new, known

    def erase(self, review_ids: Iterable[ReviewId], by: str) -> int:
        """Remove every text of the items and keep their audit rows; return how many had any.

        An open item ends as expired, since it cannot be judged any more.
        """
        ids = tuple(review_ids)
        erased = self._db.write(lambda tx: transitions.erase(tx, ids, by))
        self._db.truncate_log()
        return erased

    def erase_older_than(self, seconds: float, by: str) -> int:
        """Erase all settled items submitted more than `seconds` ago; return how many."""
        before = self._db.clock() - timedelta(seconds=seconds)
        erased = 0
        while ids := self._db.read(lambda conn: transitions.due(conn, before, 200)):
            erased += self.erase(ids, by)
        return erased


class SqlReviewQueue(QueueKeeping):
    """A durable queue in SQLite or PostgreSQL. Threads may share one; each process opens its own."""

    def __init__(
        self, url: str, settings: QueueSettings, *, clock: Callable[[], datetime], sleep: Callable[[float], None]
    ) -> None:
        """Set up the queue without connecting; see `open_queue`."""
        self.settings = settings
        self._sleep = sleep
        self._after_submit: Callable[[], object] | None = None
        self._reported: set[str] = set()
        self._db = Database(url, clock=clock, sleep=sleep, retry_s=settings.retry_s)
        self.waking = Waking(self._db)
        """Calls whoever waits for verdicts."""
        self._submit = GroupCommit(partial(_store, self._db, settings), _fate_of, limit_s=settings.retry_s)

    @property
    def url(self) -> str:
        """URL of the queue, without secrets."""
        return self._db.shown_url

    @property
    def database(self) -> Database:
        """The database, for parts of this package that have their own tables in it."""
        return self._db

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self.waking.close()
        self._db.close()

    # --- submitting and waiting ---------------------------------------------------------------------------------------

    def submit(
        self,
        exchange: Exchange,
        decision: Decision,
        attempts: AttemptsLike | None = None,
        *,
        deadline_s: float | None = None,
    ) -> ReviewId:
        """Store an answer for review, durably; the same exchange again gives the same id.

        Args:
            exchange: the answer to judge. `metadata["trace_url"]` is shown as the link to its trace.
            decision: why it needs a person.
            attempts: earlier attempts.
            deadline_s: time for a verdict; `None` takes the queue's setting.

        Raises:
            QueueUnavailableError: it could not be stored.
            ExchangeIdTakenError: another answer has the same exchange id.
        """
        return self.submit_document(document_of(exchange, decision, attempts), deadline_s=deadline_s)

    def submit_document(
        self, document: Document, *, deadline_s: float | None = None, by: str = submission.SUBMITTER
    ) -> ReviewId:
        """Store a finished document for review; see `submit`."""
        stored = storable_document(document)
        review_id = self._submit(submission.Submission(document=stored, by=by, deadline_s=deadline_s))
        if self._after_submit is not None:
            self._after_submit()
        return review_id

    def call_after_submit(self, act: Callable[[], object]) -> None:
        """Call a function after each answer that this object stores; it must not raise."""
        self._after_submit = act

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:
        """Wait up to `timeout_s` seconds for the verdict and return it, or `None`; 0 checks once.

        A verdict that was returned here can no longer be undone.

        Raises:
            ItemNotFoundError: there is no such item.
            QueueUnavailableError: the database could not be reached.
        """
        end, woken = time.monotonic() + timeout_s, threading.Event()

        def look() -> Ruling | None:
            with self.waking.turn(max(end - time.monotonic(), self.settings.retry_s)):
                return self._take_ruling(review_id)

        if timeout_s <= 0 or self._db.dialect == "sqlite" or self._sleep is not time.sleep:
            return poll(look, timeout_s, self._sleep)
        with self.waking.calling(review_id, woken.set):
            while woken.wait(max(0.0, end - time.monotonic())):
                woken.clear()
                found = look()
                if found is not None:
                    return found
        return look()

    def is_submitter(self, review_id: ReviewId, account: str) -> bool:
        """True when a program with a token of this account submitted the item."""
        by = self._db.read(lambda conn: audit.submitter_of(conn, read.read_item(conn, review_id).id))
        return by is not None and by.startswith(f"{account}/")

    def ruling(self, review_id: ReviewId) -> Ruling | None:
        """Return the verdict without marking it as delivered, so it can still be undone."""
        return self._db.read(lambda conn: read.read_ruling(conn, read.read_item(conn, review_id)))

    def _take_ruling(self, review_id: ReviewId) -> Ruling | None:
        item = self._db.read(lambda conn: read.read_item(conn, review_id))
        late = item.is_open and item.deadline_at is not None and item.deadline_at <= self._db.clock()
        if item.is_open and not late:
            return None

        def work(tx: Transaction) -> Ruling | None:
            current = read.read_item(tx.conn, review_id, lock=True)
            if current.is_open and current.deadline_at is not None and current.deadline_at <= tx.now:
                current = transitions.expire(tx, current)
            if current.is_open:
                return None
            transitions.deliver(tx, current, submission.SUBMITTER)
            return read.read_ruling(tx.conn, current)

        return self._db.write(work)

    # --- reading ------------------------------------------------------------------------------------------------------

    def find_id(self, prefix: str) -> ReviewId:
        """Return the full id that begins with these characters."""
        return self._db.read(lambda conn: read.find_id(conn, prefix))

    def item(self, review_id: ReviewId) -> Item:
        """Return an item without its texts.

        Raises:
            ItemNotFoundError: there is none.
        """
        return self._db.read(lambda conn: read.read_item(conn, review_id))

    def can_undo(self, item: Item, by: str) -> bool:
        """True when `by` gave the item's verdict and may still take it back."""
        return (
            self._db.read(lambda conn: transitions.why_not_undo(conn, item, by, self._db.clock(), self.settings))
            is None
        )

    def get(self, review_id: ReviewId, *, viewer: str | None = None) -> ItemDetail:
        """Return an item with everything that a reviewer sees.

        Args:
            review_id: the full id.
            viewer: who views it; if given, the audit trail records the view.

        Raises:
            ItemNotFoundError: there is none.
        """
        if viewer is None:
            return self._db.read(lambda conn: read.read_detail(conn, review_id))

        def work(tx: Transaction) -> ItemDetail:
            detail = read.read_detail(tx.conn, review_id)
            if audit.row_of_operation(tx) is None:
                audit.record(tx, review_id, AuditEvent(Event.VIEW, viewer))
            return detail

        return self._db.write(work)

    def list(
        self, filters: Filters = OPEN_ITEMS, *, sort: Sort = Sort.RISK, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """Return one page of items; its cost does not grow with the queue."""
        return self._db.read(lambda conn: read.list_items(conn, filters, sort, cursor, limit))

    def search(self, text: str, *, limit: int = 50) -> Page:
        """Return the newest items, open or settled, whose texts contain all the words."""
        return self.list(Filters(text=text), sort=Sort.NEWEST, limit=limit)

    def counts(self) -> dict[State, int]:
        """Return how many items are in each state."""
        return self._db.read(read.counts)

    def count_up_to(self, filters: Filters, limit: int) -> int:
        """Return how many items match the filters, counting no further than `limit`."""
        return self._db.read(lambda conn: read.count_up_to(conn, filters, limit))

    def audit(self, review_id: ReviewId) -> tuple[AuditRow, ...]:
        """Return everything that happened to an item, oldest first."""
        return self._db.read(lambda conn: audit.rows_of(conn, read.read_item(conn, review_id).id))

    def audit_after(self, seq: int = 0, *, limit: int = 1000) -> tuple[AuditRow, ...]:
        """Return what happened to any item after audit row `seq`, oldest first."""
        return self._db.read(lambda conn: audit.rows_after(conn, seq, limit))

    # --- deciding -----------------------------------------------------------------------------------------------------

    def claim(self, reviewer: str, *, skip: Iterable[str] = ()) -> Item | None:
        """Claim the riskiest free item for a reviewer until the lease ends; return `None` when none is free.

        Args:
            reviewer: who claims it.
            skip: ids of items to leave out.
        """
        skipped = frozenset(skip)

        def work(tx: Transaction) -> Item | None:
            done = audit.row_of_operation(tx)
            if done is not None:
                return read.read_item(tx.conn, done.item_id)
            return transitions.claim_next(tx, reviewer, self.settings, skipped)

        return self._db.write(work)

    def claim_item(self, review_id: ReviewId, reviewer: str) -> Item:
        """Claim this item for a reviewer, or renew its holder's lease.

        Raises:
            AlreadyClaimedError: someone else holds it.
            IllegalMoveError: it already has a verdict.
        """
        return self._once(lambda tx: transitions.claim(tx, review_id, reviewer, self.settings))

    def release(
        self,
        review_id: ReviewId,
        reviewer: str,
        *,
        force: bool = False,
        op: str | None = None,
        on_behalf_of: str | None = None,
    ) -> Item:
        """Put a claimed item back; `force` also puts back what another reviewer holds. See `approve` for the rest."""

        def move(tx: Transaction) -> Item:
            return transitions.release(tx, review_id, reviewer, force=force, on_behalf_of=on_behalf_of)

        return self._once(move, op=_operation(op, Event.RELEASE, review_id, reviewer, force, on_behalf_of))

    def approve(
        self,
        review_id: ReviewId,
        by: str,
        *,
        op: str | None = None,
        on_behalf_of: str | None = None,
        seen: int | None = None,
    ) -> Item:
        """Approve the answer as it is.

        Args:
            review_id: the item.
            by: who decides.
            op: name of the operation; repeating the very same call returns the first result and changes nothing.
            on_behalf_of: person for whom `by`, a program, decides; recorded in the audit trail only.
            seen: version of the item that `by` looked at; a verdict given or undone since then refuses this one.

        Raises:
            AlreadyClaimedError: someone else holds it.
            IllegalMoveError: it already has a verdict.
            VerdictChangedError: a verdict was given or undone since `seen`, or the operation was undone.
        """
        judgement = Judgement(None, correct=True, on_behalf_of=on_behalf_of)
        return self._settle(review_id, Event.APPROVE, by, judgement, op=op, seen=seen)

    def edit(  # noqa: PLR0913 - each is one fact of the verdict
        self,
        review_id: ReviewId,
        by: str,
        text: str,
        *,
        was_correct: bool = False,
        op: str | None = None,
        on_behalf_of: str | None = None,
        seen: int | None = None,
    ) -> Item:
        """Replace the answer with an edited text.

        Args:
            review_id: the item.
            by: who decides.
            text: what the caller gets.
            was_correct: the model's answer was right and only its wording changes; calibration learns from it.
            op: as for `approve`.
            on_behalf_of: as for `approve`.
            seen: as for `approve`.

        Raises:
            EmptyTextError: the text is blank.
        """
        if not text.strip():
            msg = "an edited answer needs a text: reject the item if there is nothing to say"
            raise EmptyTextError(msg)
        judgement = Judgement(text, correct=was_correct, on_behalf_of=on_behalf_of)
        return self._settle(review_id, Event.EDIT, by, judgement, op=op, seen=seen)

    def reject(
        self,
        review_id: ReviewId,
        by: str,
        reason: str = "",
        *,
        op: str | None = None,
        on_behalf_of: str | None = None,
        seen: int | None = None,
    ) -> Item:
        """Reject the answer, so that the caller never gets it; see `approve`."""
        judgement = Judgement(reason, correct=False, on_behalf_of=on_behalf_of)
        return self._settle(review_id, Event.REJECT, by, judgement, op=op, seen=seen)

    def undo(self, review_id: ReviewId, by: str, *, force: bool = False, seen: int | None = None) -> Item:
        """Undo a verdict; the item returns to the reviewer. See `QueueSettings.undo_s`, and `approve` for `seen`.

        Raises:
            UndoRefusedError: it is too late, a caller has the verdict, or (without `force`) another reviewer gave it.
            VerdictChangedError: the verdict is not the one that was seen.
        """
        return self._once(
            lambda tx: transitions.undo(tx, review_id, by, self.settings, force=force), at=(review_id, seen)
        )

    def comment(self, review_id: ReviewId, by: str, text: str) -> None:
        """Add a comment to an item."""
        if not text.strip():
            msg = "a comment needs a text"
            raise EmptyTextError(msg)

        def work(tx: Transaction) -> None:
            if audit.row_of_operation(tx) is None:
                transitions.comment(tx, review_id, by, text)

        self._db.write(work)

    def assign(self, review_id: ReviewId, by: str, assignee: str | None) -> Item:
        """Assign an item to a reviewer; `None` leaves it to all."""
        return self._once(lambda tx: transitions.assign(tx, review_id, by, assignee))

    def each(
        self, review_ids: Iterable[ReviewId], action: Callable[[ReviewId], Item]
    ) -> dict[ReviewId, Item | SemGradGuardError]:
        """Apply an action to many items and return what it did to each; one that fails does not stop the others."""
        done: dict[ReviewId, Item | SemGradGuardError] = {}
        for review_id in dict.fromkeys(review_ids):
            try:
                done[review_id] = action(review_id)
            except SemGradGuardError as error:
                done[review_id] = error
        return done

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def migrate(self) -> tuple[str | None, str]:
        """Set the database up or upgrade it to the newest revision, completely or not at all.

        Returns:
            The revision before (`None` for an empty database) and the one now.

        Raises:
            SchemaVersionError: the database is newer than this code.
            MissingExtraError: the migration tool is not installed.
        """
        return self._db.migrate()

    def expire_leases(self, *, limit: int = 500) -> int:
        """Put back items whose lease has ended; return how many. Claiming does the same."""
        return self._sweep(transitions.LAPSES, limit)

    def expire_deadlines(self, *, limit: int = 500) -> int:
        """Settle items whose deadline has passed; return how many. Waiting for an item does the same for it."""
        return self._sweep(transitions.EXPIRIES, limit)

    def _sweep(self, sweep: Sweep, limit: int) -> int:
        """Change all items that are due; one that cannot be changed is reported and stops no other."""
        try:
            return self._db.write(partial(sweep.all, limit=limit))
        except Exception as error:
            if _fate_of(error) is not Fate.OWN:
                raise  # no item can be reached
        done, after = 0, ""
        while ids := self._db.read(partial(sweep.ids, now=self._db.clock(), after=after, limit=limit)):
            done += sum(self._sweep_one(sweep, item_id) for item_id in ids)
            after = ids[-1]
        return done

    def _sweep_one(self, sweep: Sweep, item_id: str) -> int:
        try:
            return self._db.write(partial(sweep.one, item_id=item_id))
        except Exception as error:  # noqa: BLE001 - the other items have their turn
            if item_id not in self._reported:
                logger.warning("review item %s could not be changed in time: %s", item_id, type(error).__name__)
                self._reported.add(item_id)
            return 0

    def _settle(
        self, review_id: ReviewId, event: Event, by: str, judgement: Judgement, *, op: str | None, seen: int | None
    ) -> Item:
        delay_s = self.settings.undo_s
        name = _operation(op, event, review_id, by, judgement.text, judgement.correct, judgement.on_behalf_of)
        move = partial(transitions.settle, item_id=review_id, event=event, by=by, judgement=judgement, delay_s=delay_s)
        settled = self._once(move, op=name, at=(review_id, seen))
        self.waking.wake([review_id])
        return settled

    def _once(
        self,
        move: Callable[[Transaction], Item],
        *,
        op: str | None = None,
        at: tuple[ReviewId, int | None] | None = None,
    ) -> Item:
        """Make a move once, even if its transaction is tried again, and return its result.

        Args:
            move: makes it.
            op: name of the operation, if it may be repeated in a later call.
            at: the item, and the version that was seen of it, if its verdict must be the one that was seen.
        """

        def work(tx: Transaction) -> Item:
            done = audit.row_of_operation(tx)
            if done is not None:
                return transitions.result_of(tx, done)
            if at is not None and at[1] is not None:
                transitions.check_seen(tx, at[0], at[1])
            return move(tx)

        return self._db.write(work, op=op)


def _operation(op: str | None, event: Event, review_id: ReviewId, by: str, *content: object) -> str | None:
    """Return the name of an operation: of this verb on this item with this content, and of nothing else."""
    if op is None:
        return None
    return hashlib.sha256(json.dumps([op, event, review_id, by, *content]).encode()).hexdigest()


def _store(
    database: Database, settings: QueueSettings, submissions: Sequence[submission.Submission], left_s: float
) -> list[ReviewId]:
    def work(tx: Transaction) -> list[ReviewId]:
        return submission.submit_all(tx, submissions, settings)

    return database.write(work, limit_s=left_s, waits_again=False)


def _fate_of(error: Exception) -> Fate:
    cause = error.__cause__ if isinstance(error, QueueUnavailableError) else None
    if cause is None:
        return Fate.OWN
    return Fate.BLOCKED if is_blocked(cause) else Fate.SHARED if is_passing(cause) else Fate.OWN
