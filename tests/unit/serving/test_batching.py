"""Exchanges of many threads are scored together, and none waits longer than it must."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from semgrad_guard.errors import EmptyAnswerError, ScoringEndedError, ScoringError
from semgrad_guard.flow import Exchange
from semgrad_guard.serving import BatchingScorer, BusyError
from semgrad_guard.serving.batching import ClosedError
from tests.fakes import TableScorer


@dataclass
class HeldScorer(TableScorer):
    """Notes the answers of each batch, and scores only while the gate is open."""

    batches: list[list[str]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    cancels: list[threading.Event | None] = field(default_factory=list)

    def score_batch(self, exchanges, *, timeout_s=None, cancel=None):
        self.batches.append([exchange.answer for exchange in exchanges])
        self.cancels.append(cancel)
        self.begun.release()
        assert self.gate.wait(timeout=30)
        return super().score_batch(exchanges, timeout_s=timeout_s, cancel=cancel)


@contextmanager
def batching(scorer, **settings):
    """Give a scorer that batches, and end its thread."""
    made = BatchingScorer(scorer, **{"window_s": 0.0, **settings})
    try:
        yield made
    finally:
        if isinstance(scorer, HeldScorer):
            scorer.gate.set()
        made.close(timeout_s=30)


def waits_for(n: int, made: BatchingScorer) -> None:
    """Wait until so many exchanges wait."""
    for _ in range(3000):
        if made.waiting == n:
            return
        threading.Event().wait(0.01)
    pytest.fail(f"{made.waiting} wait, not {n}")


def test_what_arrives_while_a_batch_runs_is_scored_together():
    """The padded batch is what makes a server cheaper than its callers one by one."""
    scorer = HeldScorer({"a": 0.1, "b": 0.2, "c": 0.3})
    with batching(scorer) as made, ThreadPoolExecutor(3) as pool:
        first = pool.submit(made.score, Exchange(prompt="1", answer="a"))
        assert scorer.begun.acquire(timeout=30)
        others = [pool.submit(made.score, Exchange(prompt=f"p{answer}", answer=answer)) for answer in "bc"]
        waits_for(2, made)
        scorer.gate.set()
        assert [one.result(30).value for one in (first, *others)] == [0.1, 0.2, 0.3]
    assert sorted(map(len, scorer.batches)) == [1, 2]


def test_the_window_collects_calls_that_come_close_together():
    """Without load nothing runs while the second call comes."""
    scorer = HeldScorer()
    scorer.gate.set()
    with batching(scorer, window_s=60, max_batch=2) as made, ThreadPoolExecutor(2) as pool:
        list(pool.map(made.score, [Exchange(prompt="p", answer="a"), Exchange(prompt="q", answer="b")]))
    assert [len(batch) for batch in scorer.batches] == [2]


def test_a_caller_who_was_answered_and_asks_again_is_in_the_next_batch():
    """Otherwise callers that ask one thing after another are scored in two batches by turns, each half empty."""
    scorer = HeldScorer()
    with batching(scorer, window_s=1.0) as made, ThreadPoolExecutor(2) as pool:
        asks = pool.submit(lambda: [made.score(Exchange(prompt="p", answer=answer)) for answer in ("a", "again")])
        assert scorer.begun.acquire(timeout=30)
        other = pool.submit(made.score, Exchange(prompt="q", answer="other"))
        threading.Event().wait(1.5)  # so that the other has waited longer than the window
        scorer.gate.set()
        asks.result(30)
        other.result(30)
    assert scorer.batches == [["a"], ["other", "again"]]


def test_the_oldest_goes_first_and_prompts_that_begin_alike_go_with_it():
    """A stream of callers with one long prompt must not starve the others."""
    scorer = HeldScorer()
    with batching(scorer, max_batch=2) as made, ThreadPoolExecutor(6) as pool:
        pool.submit(made.score, Exchange(prompt="first", answer="first"))
        assert scorer.begun.acquire(timeout=30)
        for n, (prompt, answer) in enumerate([("x", "old"), ("y", "y1"), ("x", "young"), ("y", "y2")], start=1):
            pool.submit(made.score, Exchange(prompt=prompt, answer=answer))
            waits_for(n, made)
        scorer.gate.set()
    assert scorer.batches[1:] == [["old", "young"], ["y1", "y2"]]


def test_too_many_waiting_are_refused_with_the_time_to_come_back():
    """A queue that grows without end makes everybody late."""
    scorer = HeldScorer()
    with batching(scorer, max_waiting=2) as made, ThreadPoolExecutor(3) as pool:
        pool.submit(made.score, Exchange(prompt="p", answer="a"))
        assert scorer.begun.acquire(timeout=30)
        pool.submit(made.score_batch, [Exchange(prompt="p", answer="b")] * 2)
        waits_for(2, made)
        with pytest.raises(BusyError) as caught:
            made.score(Exchange(prompt="p", answer="c"))
        scorer.gate.set()
    assert (caught.value.waiting, caught.value.limit) == (2, 2)
    assert caught.value.retry_after_s >= 1
    assert ["c"] not in scorer.batches


def test_a_call_larger_than_the_queue_is_taken_when_nothing_waits():
    """Otherwise it could never be taken."""
    with batching(TableScorer(default=0.5), max_waiting=2) as made:
        assert [score.value for score in made.score_batch([Exchange(prompt="p", answer="a")] * 5)] == [0.5] * 5


def test_a_caller_who_waits_no_longer_costs_nothing():
    """What nobody wants is not scored."""
    scorer = HeldScorer()
    cancel = threading.Event()
    with batching(scorer) as made, ThreadPoolExecutor(3) as pool:
        pool.submit(made.score, Exchange(prompt="p", answer="a"))
        assert scorer.begun.acquire(timeout=30)
        gone = pool.submit(made.score, Exchange(prompt="p", answer="gone"), cancel=cancel)
        late = pool.submit(made.score, Exchange(prompt="p", answer="late"), timeout_s=0.0)
        waits_for(2, made)
        cancel.set()
        for one in (gone, late):
            with pytest.raises(ScoringEndedError):
                one.result(30)
        scorer.gate.set()
    assert scorer.batches == [["a"]]


def test_a_running_batch_ends_only_when_nobody_of_it_waits():
    """One client that goes must not take the others' scores with it."""
    scorer = HeldScorer()
    leaving = [threading.Event(), threading.Event()]
    with batching(scorer, window_s=60, max_batch=2) as made, ThreadPoolExecutor(2) as pool:
        for event, answer in zip(leaving, "ab", strict=True):
            pool.submit(made.score, Exchange(prompt="p", answer=answer), cancel=event)
        assert scorer.begun.acquire(timeout=30)
        (cancel,) = scorer.cancels
        assert cancel is not None
        leaving[0].set()
        assert not cancel.is_set()
        leaving[1].set()
        assert cancel.is_set()
        scorer.gate.set()


def test_one_exchange_that_breaks_the_scorer_does_not_break_the_others():
    """A batch is made of strangers' exchanges."""

    class Brittle(TableScorer):
        def score_batch(self, exchanges, *, timeout_s=None, cancel=None):
            if any(exchange.answer == "bad" for exchange in exchanges):
                msg = "secret text"
                raise RuntimeError(msg)
            return super().score_batch(exchanges)

    with batching(Brittle({"good": 0.25, "none": EmptyAnswerError()})) as made:
        good, bad, none = made.score_batch([Exchange(prompt="p", answer=answer) for answer in ("good", "bad", "none")])
    assert good.value == 0.25
    assert isinstance(bad, ScoringError)
    assert "RuntimeError" in str(bad)
    assert "secret text" not in str(bad)
    assert isinstance(none, EmptyAnswerError)


def test_closing_finishes_what_was_accepted_and_takes_nothing_new():
    """A replica that is replaced must not lose a request."""
    scorer = HeldScorer(default=0.5)
    with batching(scorer, max_batch=1) as made, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(made.score, Exchange(prompt="p", answer=answer)) for answer in "ab"]
        assert scorer.begun.acquire(timeout=30)
        waits_for(1, made)
        closing = pool.submit(made.close)
        while not made._closing:
            threading.Event().wait(0.01)
        with pytest.raises(ClosedError):
            made.score(Exchange(prompt="p", answer="c"))
        scorer.gate.set()
        closing.result(30)
        assert [one.result(30).value for one in accepted] == [0.5, 0.5]
