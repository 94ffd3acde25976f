"""What the queue offers beside judging: learning from verdicts, telling others, carrying over and erasing."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from semgrad_guard.review.store import outbox, transitions
from semgrad_guard.review.store.items import ALL_ITEMS, Filters, QueueSettings
from semgrad_guard.review.store.learn import (
    Reuse,
    earlier_verdict,
    judged_after,
    labels_after,
    last_ruling,
    trigram_similarity,
)
from semgrad_guard.review.store.read import insight
from semgrad_guard.review.store.transfer import export_page, import_line, read_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from semgrad_guard.flow import ReviewId
    from semgrad_guard.review.store.database import Database, Transaction
    from semgrad_guard.review.store.learn import EarlierVerdict, Judged, Label
    from semgrad_guard.review.store.outbox import Delivery
    from semgrad_guard.review.store.read import Insight


class QueueKeeping:
    """The part of the queue that no reviewer sees; use it through `SqlReviewQueue`."""

    settings: QueueSettings
    _db: Database

    # --- learning -----------------------------------------------------------------------------------------------------

    def labels(self) -> Iterator[Label]:
        """Give every answer that a person judged, oldest verdict first, once the verdict can't be undone any more."""
        until = self._db.clock() - timedelta(seconds=self.settings.undo_s)
        seen: int | None = 0
        while seen is not None:
            found, seen = self._db.read(partial(labels_after, ruling_id=seen, until=until, limit=100))
            yield from found

    def last_ruling(self) -> int:
        """Return the number of the latest verdict, for `judged_after`."""
        return self._db.read(last_ruling)

    def judged_after(self, ruling_id: int, *, limit: int = 200) -> tuple[list[Judged], int]:
        """Return confidences that people's verdicts behind a verdict's number speak of, and the number to go on from.

        A verdict that can still be undone is left for later.
        """
        until = self._db.clock() - timedelta(seconds=self.settings.undo_s)
        return self._db.read(partial(judged_after, ruling_id=ruling_id, until=until, limit=limit))

    def reuse(
        self,
        question: str,
        *,
        tags: Iterable[str] = (),
        similar: float | None = None,
        max_age_s: float | None = None,
        similarity: Callable[[str, str], float] = trigram_similarity,
    ) -> EarlierVerdict | None:
        """Return what a person said when the same question, or one like it, was asked before.

        Args:
            question: the user's question alone.
            tags: the earlier item must have all of them.
            similar: smallest similarity in [0, 1]; `None` takes the same question only, whatever its case and spacing.
            max_age_s: older verdicts don't count.
            similarity: compares two questions; by default their letters.
        """
        now = self._db.clock()
        wanted = Reuse(
            tags=frozenset(tags),
            not_before=None if max_age_s is None else now - timedelta(seconds=max_age_s),
            not_after=now - timedelta(seconds=self.settings.undo_s),
            at_least=similar,
        )
        return self._db.read(lambda conn: earlier_verdict(conn, question, wanted, similarity))

    def insight(self) -> Insight:
        """Return the queue in numbers, with how well confidence and people agree."""
        now = self._db.clock()
        return self._db.read(lambda conn: insight(conn, now))

    # --- telling others -----------------------------------------------------------------------------------------------

    def subscribe(
        self, consumer: str, *, events: Iterable[str] = (outbox.VERDICT,), with_backlog: bool = False
    ) -> None:
        """Let a part of the program be told what happens from now on; see `consuming.consume`.

        Args:
            consumer: its name; subscribing again changes nothing.
            events: `verdict` (told once it can't be undone any more) and `submit`.
            with_backlog: also tell it about verdicts given before.
        """

        def work(tx: Transaction) -> None:
            outbox.subscribe(tx, consumer, events)
            if with_backlog:
                outbox.backlog(tx, consumer, delay_s=self.settings.undo_s)

        self._db.write(work)

    def unsubscribe(self, consumer: str) -> None:
        """Stop telling a consumer."""
        self._db.write(lambda tx: outbox.unsubscribe(tx, consumer))

    def take(self, consumer: str, *, limit: int = 20, lease_s: float = 60.0) -> tuple[Delivery, ...]:
        """Return what the consumer is to be told now; nobody else gets the same for `lease_s` seconds."""
        return self._db.write(lambda tx: outbox.take(tx, consumer, limit=limit, lease_s=lease_s))

    def confirm(self, delivery: Delivery) -> None:
        """Note that the consumer was told."""
        self._db.write(lambda tx: outbox.confirm(tx, delivery))

    def postpone(self, delivery: Delivery, error: str) -> None:
        """Note that telling the consumer failed; it is tried again later."""
        self._db.write(lambda tx: outbox.postpone(tx, delivery, error))

    # --- carrying over and erasing ------------------------------------------------------------------------------------

    def export(self, filters: Filters = ALL_ITEMS) -> Iterator[str]:
        """Give items as JSON lines, oldest first, with their verdicts, comments and trail."""
        cursor, more = None, True
        while more:
            lines, cursor = self._db.read(partial(export_page, filters=filters, cursor=cursor))
            yield from lines
            more = cursor is not None

    def import_lines(self, lines: Iterable[str], by: str, *, source: str = "import") -> tuple[int, int]:
        """Store items from JSON lines; exchanges already in the queue are left as they are.

        Returns:
            How many items were new and how many were known.

        Raises:
            DataFileError: a line can't be used; those before it are stored, and importing again passes over them.
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

        An open item ends as expired, since nobody can judge it any more.
        """
        ids = tuple(review_ids)
        erased = self._db.write(lambda tx: transitions.erase(tx, ids, by))
        self._db.truncate_log()
        return erased

    def erase_older_than(self, seconds: float, by: str) -> int:
        """Erase all settled items submitted longer ago than that; return how many."""
        before = self._db.clock() - timedelta(seconds=seconds)
        erased = 0
        while ids := self._db.read(lambda conn: transitions.due(conn, before, 200)):
            erased += self.erase(ids, by)
        return erased
