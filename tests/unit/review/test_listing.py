"""Lists: the right items, in the right order, page by page."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from sqlalchemy import event, text

from semgrad_guard.errors import AmbiguousIdError, CursorError, ItemNotFoundError
from semgrad_guard.review import OPEN, SETTLED, Filters, Sort, State, ddl
from tests.review_queues import doubtful, exchange, submit


def _all(queue, **options):
    found, cursor = [], None
    while True:
        page = queue.list(cursor=cursor, limit=3, **options)
        found += [item.id for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("sort", [Sort.RISK, Sort.NEWEST, Sort.OLDEST])
def test_pages_show_every_item_once_even_with_equal_keys(queue, clock, sort):
    """Items submitted in the same instant must not fall between two pages."""
    ids = [submit(queue, n, confidence=0.1 * (n % 3)) for n in range(8)]
    clock.advance(5)
    ids += [submit(queue, n) for n in range(8, 11)]
    found = _all(queue, sort=sort)
    assert sorted(found) == sorted(ids)
    moments = [queue.get(each).item.created_at for each in found]
    if sort is Sort.RISK:
        ranks = [queue.get(each).item.rank for each in found]
        assert ranks == sorted(ranks)
    else:
        assert moments == sorted(moments, reverse=sort is Sort.NEWEST)


def test_an_item_settled_between_two_pages_does_not_shift_the_next(queue):
    """Others work while a reviewer reads the list."""
    ids = [submit(queue, n, confidence=0.1 * n) for n in range(6)]
    first = queue.list(limit=2)
    queue.approve(ids[0], "ann")
    assert [item.id for item in queue.list(limit=2, cursor=first.next_cursor).items] == ids[2:4]


def test_the_deadline_order_leaves_out_items_without_one(queue):
    """What has no deadline can't be late."""
    asked = [exchange(n) for n in range(3)]
    late = queue.submit(asked[0], doubtful(asked[0]), deadline_s=500)
    soon = queue.submit(asked[1], doubtful(asked[1]), deadline_s=60)
    queue.submit(asked[2], doubtful(asked[2]))
    assert _all(queue, sort=Sort.DEADLINE) == [soon, late]


def test_filters_narrow_the_list(queue, clock):
    """Each filter lets pass what it names."""
    one = submit(queue, 1, confidence=0.1, tags=("a", "b"))
    clock.advance(10)
    middle = clock.now
    two = submit(queue, 2, confidence=0.5, tags=("b",))
    queue.assign(two, "boss", "ann")
    queue.claim_item(one, "bob")
    three = submit(queue, 3, confidence=None)
    queue.approve(three, "ann")
    cases = [
        (Filters(), {one, two, three}),
        (Filters(states=OPEN), {one, two}),
        (Filters(states=SETTLED), {three}),
        (Filters(states=frozenset({State.CLAIMED})), {one}),
        (Filters(tags=frozenset({"b"})), {one, two}),
        (Filters(tags=frozenset({"a", "b"})), {one}),
        (Filters(assignee="ann"), {two}),
        (Filters(holder="bob"), {one}),
        (Filters(rule="escalate[0].human_review"), {one, two, three}),
        (Filters(rule="other"), set()),
        (Filters(max_confidence=0.2), {one}),
        (Filters(min_confidence=0.2), {two}),
        (Filters(created_after=middle), {two, three}),
        (Filters(created_before=middle), {one}),
        (Filters(text="element 2"), {two}),
    ]
    for filters, expected in cases:
        assert set(_all(queue, filters=filters)) == expected, filters
        assert queue.count_up_to(filters, 2) == min(2, len(expected))


def test_words_are_found_in_question_answer_and_passages(queue):
    """A reviewer remembers a word, not where it stood."""
    review_id = submit(queue, 1, answer="Quicksilver shines.")
    submit(queue, 2)
    for words in ("quicksilver", "SHINES what", "1 soft elements.txt"):
        assert [item.id for item in queue.search(words).items] == [review_id], words
    assert queue.search("quicksilver gold").items == ()


@pytest.mark.parametrize(
    "query", ['"', "a OR", "NEAR(", "x' OR '1'='1", "%", "_", "-", "(((", "\x00", "\ud800", "* ^", ":a :words"]
)
def test_any_text_can_be_searched_for(queue, query):
    """What a reviewer types is words, never a query language."""
    submit(queue)
    assert len(queue.search(query).items) <= 1


def test_search_works_where_sqlite_cannot_index_words(memory_queue, monkeypatch):
    """Some builds of SQLite lack the index: the search is slower, not absent."""
    monkeypatch.setattr(ddl, "has_fts5", lambda _: False)
    review_id = submit(memory_queue, 1, answer="100% Quicksilver")
    submit(memory_queue, 2)
    assert [item.id for item in memory_queue.search("100% quick").items] == [review_id]


@pytest.mark.parametrize("cursor", ["", "zzz", "W10=", "WyJuZXdlc3QiLCAiMjAyNiIsICJ4Il0=", "WyJyaXNrIiwgIngiLCAieCJd"])
def test_a_foreign_cursor_is_refused(memory_queue, cursor):
    """A cursor from another order would silently skip items."""
    with pytest.raises(CursorError):
        memory_queue.list(cursor=cursor, sort=Sort.RISK)


def test_an_id_may_be_shortened(queue):
    """Nobody types sixteen characters."""
    review_id = submit(queue)
    assert queue.find_id(review_id[:4]) == review_id
    assert queue.find_id(review_id) == review_id
    for wrong in (review_id[:3], "zzzz", "%%%%", "____"):
        with pytest.raises(ItemNotFoundError):
            queue.find_id(wrong)


def test_an_ambiguous_start_of_an_id_is_refused(memory_queue, monkeypatch):
    """Approving the wrong answer would be worse than typing more."""
    ids = iter(["aaaa1111", "aaaa2222"])
    monkeypatch.setattr("semgrad_guard.review.intake.secrets", SimpleNamespace(token_hex=lambda _: next(ids)))
    for n in range(2):
        submit(memory_queue, n)
    with pytest.raises(AmbiguousIdError) as caught:
        memory_queue.find_id("aaaa")
    assert set(caught.value.found) == {"aaaa1111", "aaaa2222"}


def test_the_lists_use_an_index(queue):
    """The cost of a page must not grow with the queue, so nothing is sorted or scanned."""
    for n in range(3):
        submit(queue, n)
    plans = []

    def explain(conn, cursor, statement, parameters, context, many):
        if statement.startswith("SELECT") and "semgrad_items" in statement and not plans:
            prefix = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
            plans.append("placeholder")
            rows = conn.exec_driver_sql(prefix + statement, parameters).all()
            plans[0] = "\n".join(str(row) for row in rows)

    engine = queue.database.engine
    for sort in Sort:
        plans.clear()
        event.listen(engine, "before_cursor_execute", explain)
        if engine.dialect.name == "postgresql":
            event.listen(engine, "begin", lambda conn: conn.execute(text("SET LOCAL enable_seqscan = off")))
        queue.list(Filters(states=frozenset({State.PENDING})), sort=sort, limit=2)
        event.remove(engine, "before_cursor_execute", explain)
        assert "ix_semgrad_items_state" in plans[0], plans[0]
        assert "TEMP B-TREE" not in plans[0]
