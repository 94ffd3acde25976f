"""The review queue: every promise of `ports.DecidableQueue`, and all that reviewers and other parts need beside it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from semgrad_guard.errors import EmptyTextError, QueueUnavailableError, SemGradGuardError
from semgrad_guard.review import intake, listing, moves, reading, trail
from semgrad_guard.review.database import Database
from semgrad_guard.review.document import document_of
from semgrad_guard.review.faults import is_passing
from semgrad_guard.review.items import OPEN_ITEMS, Filters, Sort
from semgrad_guard.review.keeping import QueueKeeping
from semgrad_guard.review.moves import Judgement
from semgrad_guard.review.states import Event
from semgrad_guard.review.together import Together
from semgrad_guard.review.trail import Happening
from semgrad_guard.review.waiting import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from semgrad_guard.flow import Decision, Exchange, ReviewId, Ruling
    from semgrad_guard.review.database import Transaction
    from semgrad_guard.review.document import AttemptsLike, Document
    from semgrad_guard.review.items import AuditRow, Item, ItemDetail, Page, QueueSettings
    from semgrad_guard.review.states import State


class SqlReviewQueue(QueueKeeping):
    """A durable queue in SQLite or PostgreSQL. Share one between threads; every process opens its own."""

    def __init__(
        self, url: str, settings: QueueSettings, *, clock: Callable[[], datetime], sleep: Callable[[float], None]
    ) -> None:
        """Keep where the queue lives; see `open_queue`."""
        self.settings = settings
        self._sleep = sleep
        self._after_submit: Callable[[], object] | None = None
        self._db = Database(url, clock=clock, sleep=sleep, retry_s=settings.retry_s)
        self._submit = Together(partial(_store, self._db, settings), _is_database_away)

    @property
    def url(self) -> str:
        """Where the queue lives, without secrets."""
        return self._db.shown_url

    @property
    def database(self) -> Database:
        """The database, for parts of this package that keep their own tables beside the queue's."""
        return self._db

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
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
            attempts: the attempts before it.
            deadline_s: time for a verdict; `None` takes the queue's setting.

        Raises:
            QueueUnavailableError: it could not be stored.
        """
        return self.submit_document(document_of(exchange, decision, attempts), deadline_s=deadline_s)

    def submit_document(
        self, document: Document, *, deadline_s: float | None = None, by: str = intake.SUBMITTER
    ) -> ReviewId:
        """Store a document that was already made; see `submit`."""
        review_id = self._submit(intake.Submission(document=document, by=by, deadline_s=deadline_s))
        if self._after_submit is not None:
            self._after_submit()
        return review_id

    def call_after_submit(self, act: Callable[[], object]) -> None:
        """Call a function after each answer that this object stores; it must not raise."""
        self._after_submit = act

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:
        """Return the verdict, or `None` when there is none after `timeout_s` seconds; 0 looks once.

        A verdict that was handed out can't be undone any more.

        Raises:
            ItemNotFoundError: there is no such item.
            QueueUnavailableError: the database could not be asked.
        """
        return poll(lambda: self._take_ruling(review_id), timeout_s, self._sleep)

    def ruling(self, review_id: ReviewId) -> Ruling | None:
        """Return the verdict without taking it: it can still be undone."""
        return self._db.read(lambda conn: reading.read_ruling(conn, reading.read_item(conn, review_id)))

    def _take_ruling(self, review_id: ReviewId) -> Ruling | None:
        item = self._db.read(lambda conn: reading.read_item(conn, review_id))
        late = item.is_open and item.deadline_at is not None and item.deadline_at <= self._db.clock()
        if item.is_open and not late:
            return None

        def work(tx: Transaction) -> Ruling | None:
            current = reading.read_item(tx.conn, review_id, lock=True)
            if current.is_open and current.deadline_at is not None and current.deadline_at <= tx.now:
                current = moves.expire(tx, current)
            if current.is_open:
                return None
            moves.deliver(tx, current, intake.SUBMITTER)
            return reading.read_ruling(tx.conn, current)

        return self._db.write(work)

    # --- looking ------------------------------------------------------------------------------------------------------

    def find_id(self, prefix: str) -> ReviewId:
        """Return the full id that starts like this."""
        return self._db.read(lambda conn: reading.find_id(conn, prefix))

    def item(self, review_id: ReviewId) -> Item:
        """Return an item without its texts.

        Raises:
            ItemNotFoundError: there is none.
        """
        return self._db.read(lambda conn: reading.read_item(conn, review_id))

    def can_undo(self, item: Item, by: str) -> bool:
        """True when `by` gave the item's verdict and may still take it back."""
        return self._db.read(lambda conn: moves.why_not_undo(conn, item, by, self._db.clock(), self.settings)) is None

    def get(self, review_id: ReviewId, *, viewer: str | None = None) -> ItemDetail:
        """Return an item with all that a reviewer reads.

        Args:
            review_id: the full id.
            viewer: who reads it; named, the reading is put on the audit trail.

        Raises:
            ItemNotFoundError: there is none.
        """
        if viewer is None:
            return self._db.read(lambda conn: reading.read_detail(conn, review_id))

        def work(tx: Transaction) -> ItemDetail:
            detail = reading.read_detail(tx.conn, review_id)
            trail.record(tx, review_id, Happening(Event.VIEW, viewer))
            return detail

        return self._db.write(work)

    def list(
        self, filters: Filters = OPEN_ITEMS, *, sort: Sort = Sort.RISK, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """Return one page of items; its cost does not depend on how many there are."""
        return self._db.read(lambda conn: listing.list_items(conn, filters, sort, cursor, limit))

    def search(self, text: str, *, limit: int = 50) -> Page:
        """Return the newest items, open or settled, in whose texts all the words occur."""
        return self.list(Filters(text=text), sort=Sort.NEWEST, limit=limit)

    def counts(self) -> dict[State, int]:
        """Return how many items are in each state."""
        return self._db.read(listing.counts)

    def count_up_to(self, filters: Filters, limit: int) -> int:
        """Return how many items pass the filters, counting no further than `limit`."""
        return self._db.read(lambda conn: listing.count_up_to(conn, filters, limit))

    def audit(self, review_id: ReviewId) -> tuple[AuditRow, ...]:
        """Return everything that happened to an item, oldest first."""
        return self._db.read(lambda conn: trail.rows_of(conn, reading.read_item(conn, review_id).id))

    def audit_after(self, seq: int = 0, *, limit: int = 1000) -> tuple[AuditRow, ...]:
        """Return what happened to any item behind audit row `seq`, oldest first."""
        return self._db.read(lambda conn: trail.rows_after(conn, seq, limit))

    # --- deciding -----------------------------------------------------------------------------------------------------

    def claim(self, reviewer: str, *, skip: Iterable[str] = ()) -> Item | None:
        """Give the reviewer the riskiest free item, or `None`; it is theirs until the lease ends.

        Args:
            reviewer: who takes it.
            skip: ids that the reviewer does not want now.
        """
        skipped = frozenset(skip)

        def work(tx: Transaction) -> Item | None:
            done = trail.item_of_operation(tx)
            if done is not None:
                return reading.read_item(tx.conn, done)
            return moves.claim_next(tx, reviewer, self.settings, skipped)

        return self._db.write(work)

    def claim_item(self, review_id: ReviewId, reviewer: str) -> Item:
        """Give the reviewer this item, or renew the lease of its holder.

        Raises:
            AlreadyClaimedError: somebody else holds it.
            IllegalMoveError: it has its verdict.
        """
        return self._once(lambda tx: moves.claim(tx, review_id, reviewer, self.settings))

    def release(
        self,
        review_id: ReviewId,
        reviewer: str,
        *,
        force: bool = False,
        op: str | None = None,
        on_behalf_of: str | None = None,
    ) -> Item:
        """Put a claimed item back; `force` does so for somebody else's. See `approve` for the rest."""

        def move(tx: Transaction) -> Item:
            return moves.release(tx, review_id, reviewer, force=force, on_behalf_of=on_behalf_of)

        return self._once(move, op=op)

    def approve(self, review_id: ReviewId, by: str, *, op: str | None = None, on_behalf_of: str | None = None) -> Item:
        """Let the answer out as it is.

        Args:
            review_id: the item.
            by: who decides.
            op: name of the operation; given the same name again, the first result is returned and nothing is done.
            on_behalf_of: the person for whom `by` decides, where `by` is a program; only the audit trail keeps it.

        Raises:
            AlreadyClaimedError: somebody else holds it.
            IllegalMoveError: it has its verdict.
        """
        return self._settle(review_id, Event.APPROVE, by, Judgement(None, correct=True, on_behalf_of=on_behalf_of), op)

    def edit(
        self,
        review_id: ReviewId,
        by: str,
        text: str,
        *,
        was_correct: bool = False,
        op: str | None = None,
        on_behalf_of: str | None = None,
    ) -> Item:
        """Let out a text in place of the answer.

        Args:
            review_id: the item.
            by: who decides.
            text: what the caller gets.
            was_correct: the model's answer was right, and only its wording is changed; calibration learns from it.
            op: as for `approve`.
            on_behalf_of: as for `approve`.

        Raises:
            EmptyTextError: the text is blank.
        """
        if not text.strip():
            msg = "an edited answer needs a text: reject the item if there is nothing to say"
            raise EmptyTextError(msg)
        return self._settle(
            review_id, Event.EDIT, by, Judgement(text, correct=was_correct, on_behalf_of=on_behalf_of), op
        )

    def reject(
        self, review_id: ReviewId, by: str, reason: str = "", *, op: str | None = None, on_behalf_of: str | None = None
    ) -> Item:
        """Hold the answer back for good; see `approve`."""
        return self._settle(
            review_id, Event.REJECT, by, Judgement(reason, correct=False, on_behalf_of=on_behalf_of), op
        )

    def undo(self, review_id: ReviewId, by: str, *, force: bool = False) -> Item:
        """Take a verdict back; the item returns to the reviewer. See `QueueSettings.undo_s`.

        Raises:
            UndoRefusedError: it is too late, a caller already has the verdict, or (without `force`) another gave it.
        """
        return self._once(lambda tx: moves.undo(tx, review_id, by, self.settings, force=force))

    def comment(self, review_id: ReviewId, by: str, text: str) -> None:
        """Note something beside an item."""
        if not text.strip():
            msg = "a comment needs a text"
            raise EmptyTextError(msg)
        self._db.write(lambda tx: moves.comment(tx, review_id, by, text))

    def assign(self, review_id: ReviewId, by: str, assignee: str | None) -> Item:
        """Say who is to judge an item; `None` leaves it to anybody."""
        return self._once(lambda tx: moves.assign(tx, review_id, by, assignee))

    def each(
        self, review_ids: Iterable[ReviewId], action: Callable[[ReviewId], Item]
    ) -> dict[ReviewId, Item | SemGradGuardError]:
        """Return what an action did to each of many items; one that fails does not hold up the others."""
        done: dict[ReviewId, Item | SemGradGuardError] = {}
        for review_id in dict.fromkeys(review_ids):
            try:
                done[review_id] = action(review_id)
            except SemGradGuardError as error:
                done[review_id] = error
        return done

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def migrate(self) -> tuple[str | None, str]:
        """Set the database up or bring it to the newest revision, all of it or nothing.

        Returns:
            The revision before (`None` for an empty database) and the one now.

        Raises:
            SchemaVersionError: the database is newer than this code.
            MissingExtraError: the migration tool is not installed.
        """
        return self._db.migrate()

    def expire_leases(self, *, limit: int = 500) -> int:
        """Put back items whose lease has ended; return how many. Claiming does the same by itself."""
        return self._db.write(lambda tx: moves.lapse_all(tx, limit=limit))

    def expire_deadlines(self, *, limit: int = 500) -> int:
        """End items whose deadline has passed; return how many. Waiting for an item does the same for that item."""
        return self._db.write(lambda tx: moves.expire_all(tx, limit=limit))

    def _settle(self, review_id: ReviewId, event: Event, by: str, judgement: Judgement, op: str | None) -> Item:
        delay_s = self.settings.undo_s
        return self._once(lambda tx: moves.settle(tx, review_id, event, by, judgement, delay_s=delay_s), op=op)

    def _once(self, move: Callable[[Transaction], Item], *, op: str | None = None) -> Item:
        """Return the result of a move that is made once even if its transaction is tried again."""

        def work(tx: Transaction) -> Item:
            done = trail.item_of_operation(tx)
            return move(tx) if done is None else reading.read_item(tx.conn, done)

        return self._db.write(work, op=op)


def _store(database: Database, settings: QueueSettings, submissions: Sequence[intake.Submission]) -> list[ReviewId]:
    return database.write(lambda tx: intake.submit_all(tx, submissions, settings))


def _is_database_away(error: Exception) -> bool:
    return isinstance(error, QueueUnavailableError) and error.__cause__ is not None and is_passing(error.__cause__)
