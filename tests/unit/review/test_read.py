"""Lists: the right items, in the right order, page by page."""

from __future__ import annotations

import itertools
from contextlib import closing
from types import SimpleNamespace

import pytest
from sqlalchemy import event, text

from semgrad_guard.errors import AmbiguousIdError, CursorError, ItemNotFoundError
from semgrad_guard.review import OPEN, SETTLED, Filters, Sort, State, document_of, open_queue
from semgrad_guard.review.store import schema, submission
from tests.review_queues import doubtful, exchange, ready_url, submit


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
    monkeypatch.setattr(schema, "has_fts5", lambda _: False)
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
    monkeypatch.setattr("semgrad_guard.review.store.submission.secrets", SimpleNamespace(token_hex=lambda _: next(ids)))
    for n in range(2):
        submit(memory_queue, n)
    with pytest.raises(AmbiguousIdError) as caught:
        memory_queue.find_id("aaaa")
    assert set(caught.value.found) == {"aaaa1111", "aaaa2222"}


_LISTS = [Filters(states=frozenset({State.PENDING})), Filters(states=OPEN), Filters()]


def _fill(queue, numbers) -> None:
    asked = {n: exchange(n) for n in numbers}
    submissions = [
        submission.Submission(document=document_of(each, doubtful(each)), deadline_s=n + 100 if n % 2 else None)
        for n, each in asked.items()
    ]
    queue.database.write(lambda tx: submission.submit_all(tx, submissions, queue.settings))


def _steps(queue, act) -> int:
    """Return how many steps SQLite's machine takes."""
    taken = []
    with queue.database.engine.connect() as conn:
        conn.connection.dbapi_connection.set_progress_handler(lambda: taken.append(1), 1)
    act()
    with queue.database.engine.connect() as conn:
        conn.connection.dbapi_connection.set_progress_handler(None, 0)
    return len(taken)


@pytest.mark.parametrize(
    ("filters", "sort"), [*itertools.product(_LISTS, Sort), (Filters(states=OPEN, assignee="ann"), Sort.RISK)]
)
def test_a_page_of_a_long_list_costs_no_more_than_one_of_a_short_list(memory_queue, filters, sort):
    """Reviewers of a hundred thousand answers wait no longer than those of a hundred."""
    _fill(memory_queue, range(50))
    for item in memory_queue.list(limit=5).items:
        memory_queue.assign(item.id, "boss", "ann")
    second = memory_queue.list(filters, sort=sort, limit=3).next_cursor

    def steps(cursor):
        return _steps(memory_queue, lambda: memory_queue.list(filters, sort=sort, limit=3, cursor=cursor))

    short = [steps(cursor) for cursor in (None, second)]
    _fill(memory_queue, range(50, 1000))
    long = [steps(cursor) for cursor in (None, second)]
    assert min(short) > 100
    assert long[0] < 1.2 * short[0]
    assert long[1] < 1.2 * short[1]


@pytest.mark.parametrize("sort", list(Sort))
@pytest.mark.parametrize("filters", _LISTS, ids=["one state", "open", "all"])
def test_postgresql_reads_a_page_in_order_from_indexes(tmp_path, filters, sort):
    """Nothing is sorted that an index could give in order."""
    plans = []

    def explain(conn, cursor, statement, parameters, context, many):
        if statement.startswith("SELECT") and "semgrad_items" in statement and not plans:
            plans.append("placeholder")
            plans[:] = [str(row) for row in conn.exec_driver_sql("EXPLAIN " + statement, parameters)]

    with ready_url("postgresql", tmp_path) as url, closing(open_queue(url)) as queue:
        for way in ("seqscan", "bitmapscan", "sort"):  # the planner prefers these for three rows
            event.listen(
                queue.database.engine,
                "begin",
                lambda conn, way=way: conn.execute(text(f"SET LOCAL enable_{way} = off")),
            )
        _fill(queue, range(3))
        event.listen(queue.database.engine, "before_cursor_execute", explain)
        queue.list(filters, sort=sort, limit=2)
    assert not any("Sort  (" in line for line in plans), plans
    assert sum("ix_semgrad_items_state_" in line for line in plans) == len(filters.states or State), plans
