"""Erasing: every text goes, also from the file; the audit rows stay."""

from __future__ import annotations

from contextlib import closing

from sqlalchemy import inspect, select, text

from semgrad_guard.flow import Verdict
from semgrad_guard.review import Event, State, open_queue
from semgrad_guard.review.store.read import ERASED
from semgrad_guard.review.store.schema import metadata
from tests.review_queues import submit

NAME = "Quicksilverspecimen"


def _everything(queue) -> str:
    """Return all that stands in the queue's tables."""
    with queue.database.engine.connect() as conn:
        names = inspect(conn).get_table_names()
        rows = [conn.execute(select(t)).all() for t in metadata.tables.values() if t.name in names]
        if conn.dialect.name == "sqlite":
            rows.append(conn.execute(text("SELECT body FROM semgrad_search_fts")).all())
    return str(rows)


def _secret_item(queue, n: int = 1):
    return submit(
        queue,
        n,
        question=f"Who is {NAME}?",
        answer=f"{NAME} {n}",
        prompt=NAME,
        metadata={"user": NAME},
        tags=("public",),
    )


def test_erasing_removes_every_text_and_keeps_the_audit_rows(queue):
    """A person's data goes, the account of what was done stays."""
    review_id = _secret_item(queue)
    queue.comment(review_id, "ann", f"I know {NAME}")
    queue.edit(review_id, "ann", f"not {NAME}")
    before = queue.audit(review_id)
    assert NAME in _everything(queue)
    assert queue.erase([review_id], "boss") == 1
    assert NAME not in _everything(queue)
    assert queue.audit(review_id)[:-1] == before
    assert queue.audit(review_id)[-1].event is Event.ERASE
    detail = queue.get(review_id)
    assert detail.document is None
    assert detail.item.erased_at is not None
    assert (detail.item.state, detail.item.tags, detail.item.confidence) == (State.EDITED, ("public",), 0.3)
    assert queue.search(NAME).items == ()
    assert queue.erase([review_id], "boss") == 0, "there is nothing left"


def test_erasing_an_open_item_ends_it(queue):
    """Nobody can judge what nobody can read; the caller that waits is released."""
    review_id = _secret_item(queue)
    queue.erase([review_id], "boss")
    ruling = queue.wait(review_id, 0)
    assert (ruling.verdict, ruling.text, ruling.by) == (Verdict.EXPIRED, ERASED, "boss")
    assert queue.claim("ann") is None


def test_submitting_an_erased_exchange_again_brings_no_text_back(queue):
    """A guard that is restarted must not undo an erasure."""
    review_id = submit(queue, 1, id="x1", answer=NAME)
    queue.erase([review_id], "boss")
    assert submit(queue, 1, id="x1", answer=NAME) == review_id
    assert NAME not in _everything(queue)


def test_old_items_are_erased_and_young_and_open_ones_kept(queue, clock):
    """Retention is a matter of age, and never takes work away."""
    old, still_open = _secret_item(queue, 1), submit(queue, 2)
    queue.approve(old, "ann")
    clock.advance(1000)
    young = submit(queue, 3)
    queue.approve(young, "ann")
    assert queue.erase_older_than(900, "clock") == 1
    assert queue.get(old).document is None
    assert queue.get(still_open).document is not None
    assert queue.get(young).document is not None


def test_erased_texts_are_gone_from_the_file(tmp_path):
    """A copy of the file must not hold them either."""
    path = tmp_path / "review.db"
    with closing(open_queue(f"sqlite:///{path}")) as queue:
        review_id = _secret_item(queue)
        queue.approve(review_id, "ann")
        for n in range(20):
            submit(queue, n)
        queue.erase([review_id], "boss")
        for file in tmp_path.iterdir():
            content = file.read_bytes().lower()
            assert NAME.lower().encode() not in content, file.name
