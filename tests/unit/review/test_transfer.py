"""Items as JSON lines: out of one queue, into another, nothing lost on the way."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.review import ALL_ITEMS, Filters, State, open_queue
from tests.review_queues import submit


@pytest.fixture(name="full")
def _full(queue, clock):
    """A queue with items in every state and a life behind them."""
    waiting, claimed, approved, edited, rejected, erased, undone = [
        submit(queue, n, tags=("a", "b"), confidence=n / 10) for n in range(7)
    ]
    queue.comment(waiting, "ann", "later\u202e")
    queue.assign(waiting, "boss", "ann")
    queue.claim_item(claimed, "bob")
    queue.approve(approved, "ann")
    queue.edit(edited, "ann", "better")
    queue.reject(rejected, "ann", "no")
    queue.erase([erased], "boss")
    queue.approve(undone, "bob")
    queue.undo(undone, "bob")
    queue.reject(undone, "bob", "after all")
    clock.advance(5)
    return queue


def test_a_queue_comes_back_whole(full, clock):
    """Moving from a file to a server keeps every verdict, comment and audit row."""
    lines = list(full.export())
    with closing(open_queue("sqlite://", clock=clock)) as other:
        assert other.import_lines(lines, "ann") == (7, 0)
        assert other.counts() == full.counts()
        for item in full.list(ALL_ITEMS).items:
            mine, theirs = full.get(item.id), other.get(item.id)
            assert theirs.document == mine.document
            assert theirs.ruling == mine.ruling
            assert [(c.by, c.at, c.text) for c in theirs.comments] == [(c.by, c.at, c.text) for c in mine.comments]
            assert (theirs.item.state, theirs.item.version, theirs.item.tags) == (item.state, item.version, item.tags)
            assert (theirs.item.holder, theirs.item.assignee) == (item.holder, item.assignee)
            old = [(row.event, row.by, row.at, row.version) for row in full.audit(item.id)]
            assert [(row.event, row.by, row.at, row.version) for row in other.audit(item.id)][:-1] == old
        assert other.search("element 3").items[0].id == full.search("element 3").items[0].id
        assert other.claim("ann").id == full.claim("ann").id
        again = [json.loads(line) for line in other.export()]
        assert len(again) == 7


def test_importing_twice_changes_nothing(full):
    """A broken-off import is simply started again."""
    lines = list(full.export(Filters(states=frozenset({State.APPROVED}))))
    assert len(lines) == 1
    with closing(open_queue("sqlite://")) as other:
        assert other.import_lines(lines, "ann") == (1, 0)
        assert other.import_lines([*lines, "", "\n"], "ann") == (0, 1)


def test_a_bare_document_becomes_a_new_item(memory_queue):
    """Answers from elsewhere can be put up for review."""
    line = json.dumps({"document": {"exchange_id": "x1", "question": "Why?", "answer": "So.", "confidence": 0.2}})
    assert memory_queue.import_lines([line], "ann") == (1, 0)
    (item,) = memory_queue.list().items
    assert (item.title, item.state) == ("Why?", State.PENDING)


def test_an_item_without_a_trail_starts_one(memory_queue):
    """A file that another program wrote has no audit rows."""
    with closing(open_queue("sqlite://")) as source:
        review_id = submit(source)
        source.claim("bob")
        (line,) = source.export()
    item = {**json.loads(line), "audit": []}
    memory_queue.import_lines([json.dumps(item)], "ann")
    assert memory_queue.get(review_id).item.state is State.PENDING, "a claim without a trail is no claim"
    assert [row.by for row in memory_queue.audit(review_id)] == ["ann"]


def test_an_id_that_is_taken_is_replaced(memory_queue):
    """Two queues may have given the same id to different answers."""
    with closing(open_queue("sqlite://")) as source:
        review_id = submit(source, 1)
        (line,) = source.export()
    other = json.loads(line)
    other["item"]["exchange_id"] = other["document"]["exchange_id"] = "x2"
    assert memory_queue.import_lines([line, json.dumps(other)], "ann") == (2, 0)
    assert len(memory_queue.list().items) == 2
    assert memory_queue.get(review_id).document.exchange_id != "x2"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda line: line["item"].update(state="lost"), "item.state"),
        (lambda line: line["item"].update(id="'; --"), "item.id"),
        (lambda line: line["item"].update(created_at="2026-01-01T00:00:00"), "timezone"),
        (lambda line: line["item"].update(version=9), "do not lead to the state"),
        (lambda line: line.update(document=None), "unless it was erased"),
        (lambda line: line["document"].update(exchange_id="other"), "different exchanges"),
        (lambda line: line.update(rulings=[]), "without a ruling"),
        (lambda line: line.update(item=None, document=None), "neither"),
        (lambda line: line.update(extra=1), "extra"),
    ],
)
def test_a_line_that_cannot_be_is_refused_by_its_number(memory_queue, change, why):
    """One mistake names its place; what came before it is kept."""
    with closing(open_queue("sqlite://")) as source:
        source.reject(submit(source, 1), "ann")
        (good,) = source.export()
    bad = json.loads(good)
    change(bad)
    other = good.replace(json.loads(good)["item"]["exchange_id"], "x9")
    with pytest.raises(DataFileError, match=why) as caught:
        memory_queue.import_lines([other, json.dumps(bad)], "ann", source="items.jsonl")
    assert caught.value.line == 2
    assert sum(memory_queue.counts().values()) == 1


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "null", "\ud800", '{"document": {"exchange_id": ""}}'])
def test_text_that_is_no_item_is_refused(memory_queue, text):
    """Not every file is an export."""
    with pytest.raises(DataFileError, match="review export"):
        memory_queue.import_lines([text], "ann")
