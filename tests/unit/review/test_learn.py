"""What verdicts teach: labels, answers to questions asked before, and how well the guard agrees with people."""

from __future__ import annotations

from functools import partial

import pytest

from semgrad_guard.flow import Passage, Verdict
from semgrad_guard.review import AtExpiry, State
from semgrad_guard.review.store.document import passages_key
from semgrad_guard.review.store.learn import trigram_similarity
from tests.review_queues import exchange, submit


def test_verdicts_become_labels_once_they_stand(queue, clock):
    """Calibration learns from people, not from slips that are undone a moment later."""
    given = [exchange(n) for n in range(4)]
    ids = [submit(queue, n, id=given[n].id) for n in range(4)]
    queue.approve(ids[0], "ann")
    queue.edit(ids[1], "ann", "It is a gas.")
    queue.edit(ids[2], "ann", "Element 2 is a soft metal.", was_correct=True)
    queue.reject(ids[3], "ann")
    assert list(queue.labels()) == []
    clock.advance(61)
    labels = list(queue.labels())
    assert [(label.exchange.id, label.correct) for label in labels] == [
        (given[0].id, True),
        (given[1].id, False),
        (given[2].id, True),
        (given[3].id, False),
    ]
    assert labels[0].exchange == given[0]


def test_time_and_erased_items_teach_nothing(open_here, clock):
    """Nobody looked at what a deadline approved."""
    queue = open_here(deadline_s=10, at_expiry=AtExpiry.APPROVE)
    submit(queue, 1)
    clock.advance(11)
    queue.expire_deadlines()
    erased = submit(queue, 2)
    queue.approve(erased, "ann")
    queue.erase([erased], "ann")
    clock.advance(61)
    assert list(queue.labels()) == []


def test_an_undone_verdict_is_no_label(queue, clock):
    """Only the verdict that holds counts."""
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    queue.undo(review_id, "ann")
    queue.reject(review_id, "ann")
    clock.advance(61)
    assert [label.correct for label in queue.labels()] == [False]


def test_many_labels_come_in_pages(memory_queue, clock):
    """A year of verdicts does not fit in memory at once."""
    for n in range(205):
        memory_queue.approve(submit(memory_queue, n), "ann")
    clock.advance(61)
    assert len({label.exchange.id for label in memory_queue.labels()}) == 205


TAGGED = {"tags": ("faq",), "passages": ()}


def test_the_same_question_gets_the_newest_verdict(queue, clock):
    """A person answered it already."""
    first = submit(queue, 1, question="What is Gold?", **TAGGED)
    queue.reject(first, "ann", "no")
    clock.advance(10)
    second = submit(queue, 2, question="what is  GOLD?", **TAGGED)
    queue.edit(second, "bob", "Au")
    assert queue.reuse("What is gold?", tags=["faq"]) is None, "both can still be undone"
    clock.advance(61)
    found = queue.reuse("What is gold?", tags=["faq"])
    assert (found.ruling.text, found.ruling.verdict, found.similarity) == ("Au", Verdict.EDITED, 1.0)
    assert queue.reuse("What is silver?", tags=["faq"]) is None


def test_an_approved_answer_is_reused_with_its_text(queue, clock):
    """The approved text stands in the document."""
    review_id = submit(queue, 1, answer="It is gold.", **TAGGED)
    queue.approve(review_id, "ann")
    clock.advance(61)
    assert queue.reuse("What is element 1?", tags=["faq"]).ruling.text == "It is gold."


def test_reuse_obeys_tags_and_age(queue, clock):
    """A verdict on one customer's documents is not for another, and old truths expire."""
    queue.approve(submit(queue, 1, tags=("a", "b"), passages=()), "ann")
    clock.advance(100)
    assert queue.reuse("What is element 1?", tags=["a"]) is not None
    assert queue.reuse("What is element 1?", tags=["a", "c"]) is None
    assert queue.reuse("What is element 1?", tags=["a"], max_age_s=99) is None


def test_nothing_is_reused_unless_something_says_that_it_means_the_same(queue, clock):
    """Neither the words of a question alone, nor a verdict on other passages or of another user."""
    passages = (Passage("one"), Passage("two"))
    fields = {"tags": ("faq",), "passages": passages, "metadata": {"user": 7}}
    queue.approve(submit(queue, 1, **fields), "ann")
    clock.advance(100)
    same, asked = passages_key(["two", "one"]), "What is element 1?"
    assert queue.reuse(asked, passages=same) is None
    for similar in (None, 0.5):
        assert queue.reuse(asked, tags=["faq"], passages=same, similar=similar) is not None
        assert queue.reuse(asked, metadata={"user": 7}, passages=same, similar=similar) is not None
        assert queue.reuse(asked, metadata={"user": 8}, passages=same, similar=similar) is None
        assert queue.reuse(asked, metadata={"other": None}, passages=same, similar=similar) is None
        assert queue.reuse(asked, tags=["faq"], passages=passages_key(["one"]), similar=similar) is None
        assert queue.reuse(asked, tags=["faq"], similar=similar) is None


def test_a_similar_question_is_found_when_allowed(queue, clock):
    """Words change, the question stays."""
    queue.approve(submit(queue, 1, question="Which year was gold discovered?", **TAGGED), "ann")
    queue.approve(submit(queue, 2, question="Who discovered oxygen?", **TAGGED), "ann")
    clock.advance(61)
    asked = "In which year was gold discovered?"
    reuse = partial(queue.reuse, tags=["faq"])
    assert reuse(asked) is None
    found = reuse(asked, similar=0.7)
    assert found.question == "Which year was gold discovered?"
    assert 0.7 < found.similarity < 1
    assert reuse(asked, similar=0.99) is None
    assert reuse("?", similar=0.5) is None
    assert reuse(asked, similar=0.5, similarity=lambda _, other: 0.6 * ("oxygen" in other)) is not None


def test_time_and_erased_items_are_not_reused(open_here, clock):
    """Nobody said so, or it may not be said any more."""
    queue = open_here(deadline_s=10, at_expiry=AtExpiry.APPROVE)
    submit(queue, 1, **TAGGED)
    clock.advance(11)
    queue.expire_deadlines()
    erased = submit(queue, 2, **TAGGED)
    queue.approve(erased, "ann")
    queue.erase([erased], "ann")
    clock.advance(61)
    assert queue.reuse("What is element 1?", tags=["faq"], similar=0.1) is None


@pytest.mark.parametrize(
    ("one", "other", "low", "high"), [("a b", "A  b", 1, 1), ("", "", 1, 1), ("gold", "silver", 0, 0.2)]
)
def test_trigram_similarity_is_a_share(one, other, low, high):
    """Thresholds are written in [0, 1]."""
    assert low <= trigram_similarity(one, other) <= high


def test_insight_shows_waiting_age_and_agreement(queue, clock):
    """The dashboard's numbers, worked out by hand: in [0.3, 0.4) one of two was right, in [0.9, 1] one of one."""
    start = clock.now
    submit(queue, 0)
    clock.advance(5)
    for n, (confidence, good) in enumerate([(0.3, True), (0.35, False), (1.0, True), (None, True)], start=1):
        review_id = submit(queue, n, confidence=confidence)
        _ = queue.approve(review_id, "ann") if good else queue.reject(review_id, "ann")
    seen = queue.insight()
    assert seen.by_state[State.PENDING] == 1
    assert seen.by_state[State.APPROVED] == 3
    assert seen.oldest_at == start
    assert seen.judged_last_day == 4
    assert [(band.low, band.n, band.n_correct) for band in seen.bands] == [(0.3, 2, 1), (0.9, 1, 1)]
    assert seen.n_judged == 3
    assert seen.calibration_error == pytest.approx((2 * abs(0.325 - 0.5) + 0) / 3)


def test_insight_of_an_empty_queue_is_empty(memory_queue):
    """The dashboard opens on the first day too."""
    seen = memory_queue.insight()
    assert (seen.bands, seen.oldest_at, seen.calibration_error) == ((), None, None)
