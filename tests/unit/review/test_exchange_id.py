"""An exchange id stands for one answer of one submitter: nobody gets another's item by knowing its id."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from semgrad_guard.errors import ExchangeIdTakenError
from semgrad_guard.flow import Passage
from semgrad_guard.review import AtExpiry, QueueSettings, document_of
from tests.review_queues import doubtful, exchange

OTHER = {
    "answer": "Element 1 is a gas.",
    "question": "Another?",
    "prompt": "Another?",
    "passages": (Passage("Another."),),
}


def hand_in(queue, asked, by="ann/guard"):
    return queue.submit_document(document_of(asked, doubtful(asked)), by=by)


@pytest.mark.parametrize("field", list(OTHER))
def test_the_same_id_with_other_content_is_refused(queue, field):
    """The second caller would otherwise get a verdict on something else."""
    asked = exchange(1, id="x1")
    first = hand_in(queue, asked)
    with pytest.raises(ExchangeIdTakenError) as caught:
        hand_in(queue, replace(asked, **{field: OTHER[field]}))
    assert caught.value.exchange_id == "x1"
    assert hand_in(queue, asked, "ann/another-program") == first
    assert hand_in(queue, replace(asked, tags=frozenset({"later"}))) == first, "what a verdict is about is the same"


def test_the_same_id_of_another_submitter_is_refused(queue):
    """Even the very same answer: the verdict and what reviewers wrote are the first submitter's."""
    asked = exchange(1, id="x1")
    hand_in(queue, asked)
    for by in ("bob/guard", "guard", "ann2/guard"):
        with pytest.raises(ExchangeIdTakenError):
            hand_in(queue, asked, by)


def test_of_two_at_the_same_time_one_is_refused_and_no_other(queue):
    """They may well share a transaction, with others who have nothing to do with it."""
    asked = exchange(1, id="x1")
    all_ = [asked, replace(asked, answer="Another."), *[exchange(n) for n in range(2, 10)]]
    outcomes, ready = {}, threading.Barrier(len(all_))

    def run(n):
        ready.wait()
        try:
            outcomes[n] = hand_in(queue, all_[n])
        except ExchangeIdTakenError as error:
            outcomes[n] = error

    threads = [threading.Thread(target=run, args=[n]) for n in range(len(all_))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcomes[n], ExchangeIdTakenError) for n in (0, 1)) == 1
    assert not any(isinstance(outcomes[n], ExchangeIdTakenError) for n in range(2, len(all_)))


@pytest.mark.parametrize(
    ("settings", "shortest_s"),
    [
        ({}, 0),
        ({"at_expiry": AtExpiry.REJECT, "deadline_s": 60}, 0),
        ({"at_expiry": AtExpiry.APPROVE}, 3600),
        ({"at_expiry": AtExpiry.APPROVE, "deadline_s": 600}, 600),
        ({"at_expiry": AtExpiry.APPROVE, "deadline_s": 600, "least_deadline_s": 5}, 5),
        ({"least_deadline_s": 30}, 30),
    ],
)
def test_deadlines_that_approve_have_a_bound(settings, shortest_s):
    """It is the site's to set."""
    assert QueueSettings(**settings).shortest_deadline_s == shortest_s
