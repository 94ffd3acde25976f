"""Consumers hear of each happening once, again after a failure, and never of what was undone."""

from __future__ import annotations

import threading

import pytest

from semgrad_guard.errors import UndoRefusedError
from semgrad_guard.flow import Verdict
from semgrad_guard.review.store.outbox import consume, consume_until
from tests.review_queues import submit


def test_a_verdict_is_told_once_it_stands(queue, clock):
    """What a consumer does with a verdict can't be undone, so it hears after the undo time."""
    queue.subscribe("langsmith")
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    assert queue.take("langsmith") == ()
    clock.advance(60)
    (delivery,) = queue.take("langsmith")
    assert (delivery.item_id, delivery.event, delivery.tries) == (review_id, "verdict", 1)
    assert queue.take("langsmith") == (), "it is leased"
    queue.confirm(delivery)
    clock.advance(10_000)
    assert queue.take("langsmith") == ()


def test_every_consumer_is_told(queue, clock):
    """One part's progress is not another's."""
    for name in ("one", "two"):
        queue.subscribe(name)
    queue.subscribe("submissions", events=["submit"])
    queue.approve(submit(queue), "ann")
    (told,) = queue.take("submissions")
    assert told.event == "submit"
    clock.advance(60)
    assert len(queue.take("one")) == len(queue.take("two")) == 1


def test_an_undone_verdict_is_never_told(queue, clock):
    """Others act on what holds."""
    queue.subscribe("labels")
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    queue.undo(review_id, "ann")
    clock.advance(1000)
    assert queue.take("labels") == ()


def test_undo_is_refused_once_a_consumer_took_the_verdict(open_here, clock):
    """Even if the undo time is longer than the consumer's wait."""
    queue = open_here(undo_s=0)
    queue.subscribe("labels")
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    assert len(queue.take("labels")) == 1
    with pytest.raises(UndoRefusedError, match="delivered"):
        queue.undo(review_id, "ann")


def test_what_failed_is_told_again_later_with_the_same_key(queue, clock):
    """Acting twice is made harmless by the key."""
    queue.subscribe("web")
    queue.approve(submit(queue), "ann")
    clock.advance(60)
    seen = []

    def act(delivery):
        seen.append(delivery)
        if len(seen) < 3:
            msg = "no route"
            raise OSError(msg)

    assert consume(queue, "web", act) == 0
    assert consume(queue, "web", act) == 0, "not at once"
    clock.advance(2)
    assert consume(queue, "web", act) == 0
    clock.advance(4)
    assert consume(queue, "web", act) == 1
    assert [each.tries for each in seen] == [1, 2, 3]
    assert len({each.key for each in seen}) == 1


def test_a_consumer_that_dies_is_told_again(queue, clock):
    """A lease ends; nothing is lost."""
    queue.subscribe("web")
    queue.approve(submit(queue), "ann")
    clock.advance(60)
    (first,) = queue.take("web", lease_s=30)
    clock.advance(31)
    (again,) = queue.take("web", lease_s=30)
    assert again.key == first.key


def test_what_fails_for_ever_is_given_up(queue, clock):
    """A dead address does not keep a queue busy for years."""
    queue.subscribe("web")
    queue.approve(submit(queue), "ann")
    tries = 0
    for _ in range(40):
        clock.advance(4000)
        for delivery in queue.take("web"):
            tries = delivery.tries
            queue.postpone(delivery, "no route")
    assert tries == 12
    assert queue.take("web") == ()


def test_a_late_consumer_can_ask_for_what_it_missed(queue, clock):
    """Feedback that is switched on in spring covers the winter."""
    old = submit(queue, 1)
    queue.approve(old, "ann")
    submit(queue, 2)
    queue.subscribe("labels", with_backlog=True)
    queue.subscribe("labels", with_backlog=True)
    clock.advance(60)
    assert [each.item_id for each in queue.take("labels")] == [old]


def test_an_unsubscribed_consumer_is_told_nothing(queue, clock):
    """Nothing piles up for who left."""
    queue.subscribe("web")
    queue.approve(submit(queue, 1), "ann")
    queue.unsubscribe("web")
    queue.approve(submit(queue, 2), "ann")
    clock.advance(60)
    assert queue.take("web") == ()


def test_consuming_goes_on_when_the_queue_cannot_be_reached(memory_queue, clock, caplog):
    """A background thread must survive a restart of the database."""
    memory_queue.subscribe("web")
    memory_queue.approve(submit(memory_queue), "ann")
    clock.advance(60)
    stop, seen = threading.Event(), []

    def act(delivery):
        seen.append(delivery)
        stop.set()

    real, failed = memory_queue.take, []

    def take(*args, **kwargs):
        if not failed:
            failed.append(True)
            msg = "database is down"
            raise RuntimeError(msg)
        return real(*args, **kwargs)

    memory_queue.take = take
    consume_until(stop, memory_queue, "web", act, every_s=0)
    assert len(seen) == 1
    assert "could not reach the queue" in caplog.text


def test_a_backlog_holds_back_what_can_still_be_undone(queue, clock):
    """Subscribing late must not take away a reviewer's minute."""
    old, young = submit(queue, 1), submit(queue, 2)
    queue.approve(old, "ann")
    clock.advance(100)
    queue.approve(young, "ann")
    queue.subscribe("late", with_backlog=True)
    assert [each.item_id for each in queue.take("late")] == [old]
    queue.undo(young, "ann")
    queue.reject(young, "ann")
    clock.advance(61)
    (delivery, *again) = [each for each in queue.take("late") if each.item_id == young]
    assert again == []
    assert queue.ruling(delivery.item_id).verdict is Verdict.REJECTED
