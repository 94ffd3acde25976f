"""A policy's review section at work: the queue's settings, verdicts given again, and what verdicts teach."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from semgrad_guard.flow import HumanReview, Status
from semgrad_guard.guard import Guard
from semgrad_guard.guard.assembly import parts_of, queue_of
from semgrad_guard.guard.verdict_loop import EarlierVerdicts, VerdictLoop
from semgrad_guard.policy import parse_policy
from semgrad_guard.policy.review import ReuseVerdicts, ReviewSettings
from semgrad_guard.review import AtExpiry, open_queue
from semgrad_guard.review.client import ReviewClient
from semgrad_guard.telemetry import record_fields
from tests.fakes import LadderDecider, MemorySink, TableScorer, guard_of
from tests.review_queues import FakeClock, doubtful, exchange, submit

REVIEW = HumanReview(message="A person will answer this.")
FAQ = ReuseVerdicts(tags="faq")


def common(n: int, **fields: object):
    """Return an exchange about a question that means the same for all."""
    return exchange(n, **{"tags": ("faq",), "metadata": {"user": "ann"}, **fields})


@pytest.fixture(name="clock")
def _clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(name="queue")
def _queue(clock):
    with closing(open_queue("sqlite://", clock=clock, sleep=clock.sleep)) as queue:
        yield queue


def guard_with(queue, wanted: ReuseVerdicts | None, sink: MemorySink | None = None) -> Guard:
    """Return a guard that hands every answer to a person, unless one said something before."""
    guard = guard_of(decider=LadderDecider([REVIEW]), sink=sink)
    earlier = EarlierVerdicts(queue, wanted) if wanted is not None else None
    return Guard(replace(guard.parts, queue=queue, earlier=earlier))


def test_the_queue_behaves_as_the_policy_says(tmp_path):
    """Lease, deadline, weights and retention reach the queue that the guard submits to."""
    policy = parse_policy(
        f"accept: 0.7\nreview: {{url: 'sqlite:///{tmp_path}/r.db', deadline_s: 60, at_deadline: approve, lease_s: 5, "
        "tag_weights: {a: 2}, retention_days: 2, reuse_verdicts: {}}"
    )
    parts = parts_of(policy, TableScorer({}))
    settings = parts.queue.settings
    assert (settings.deadline_s, settings.at_expiry, settings.lease_s) == (60, AtExpiry.APPROVE, 5)
    assert (settings.tag_weights, settings.retention_s) == ({"a": 2}, 2 * 86_400)
    assert parts.earlier is not None
    assert parts_of(parse_policy("accept: 0.7\nreview: {url: 'sqlite://'}"), TableScorer({})).earlier is None


def test_an_https_url_is_a_review_site():
    """The same section names a database or a site."""
    queue = queue_of(ReviewSettings(url="https://review.example.com", token="t", deadline_s=60))
    assert isinstance(queue, ReviewClient)
    assert queue.deadline_s == 60
    queue.close()


def test_the_same_question_is_answered_by_the_earlier_verdict(queue, clock):
    """A person is asked once; outcome and record say that it was reused, and by whom it was said."""
    sink = MemorySink()
    guard = guard_with(queue, FAQ, sink)
    first = guard.run(common(1))
    assert (first.status, first.reused) == (Status.PENDING, False)
    queue.edit(first.review_id, "ann", "Element 1 is hydrogen.")
    clock.advance(61)
    again = guard.run(common(1, question="what is  ELEMENT 1?", answer="Element 1 is gold."))
    assert (again.text, again.status, again.reused) == ("Element 1 is hydrogen.", Status.REVIEWED, True)
    assert again.review_id == first.review_id
    assert "ann answered this question before" in again.decision.why
    said = [record_fields(record, log_text=False)["reused"] for record in sink.records]
    assert said == [False, True]
    assert sum(queue.counts().values()) == 1


@pytest.mark.parametrize(
    ("wanted", "seconds", "asked"),
    [
        (None, 61, {}),
        (FAQ, 59, {}),  # it can still be undone
        (ReuseVerdicts(tags="faq", expires_days=1), 86_401, {}),
        (FAQ, 61, {"question": "What is element 10?"}),
        (FAQ, 61, {"tags": ("faq", "private")}),  # the earlier answer was not meant for these
        (ReuseVerdicts(), 61, {}),  # nothing says that it means the same
        (FAQ, 61, {"tags": ()}),
        (FAQ, 61, {"passages": ()}),  # the model read something else
        (ReuseVerdicts(same_metadata="user"), 61, {"metadata": {"user": "bob"}}),
        (ReuseVerdicts(same_metadata="user"), 61, {"metadata": {}}),
        (FAQ, 61, {"question": None}),
    ],
)
def test_otherwise_a_person_looks_again(queue, clock, wanted, seconds, asked):
    """A verdict given where it does not belong is worse than none."""
    guard = guard_with(queue, wanted)
    queue.approve(guard.run(common(1)).review_id, "ann")
    clock.advance(seconds)
    assert guard.run(common(1, **asked)).status is Status.PENDING


def test_a_rejection_is_not_given_again(queue, clock):
    """It says that an answer was wrong, not what is right."""
    guard = guard_with(queue, FAQ)
    queue.reject(guard.run(common(1)).review_id, "ann", "no")
    clock.advance(61)
    assert guard.run(common(1)).status is Status.PENDING


def test_a_similar_question_is_answered_when_the_policy_allows_it(queue, clock):
    """Above the threshold only."""
    queue.approve(submit(queue, 1, question="What is the symbol of gold?", tags=("faq",), passages=()), "ann")
    clock.advance(61)
    asked = common(2, question="What is the symbol of gold, please?", passages=())
    assert guard_with(queue, ReuseVerdicts(tags="faq", mode="similar", threshold=0.7)).run(asked).reused
    assert not guard_with(queue, ReuseVerdicts(tags="faq", mode="similar", threshold=0.95)).run(asked).reused


def test_a_users_own_question_is_answered_to_that_user_only(queue, clock):
    """The question for a balance has another answer for each who asks."""
    guard = guard_with(queue, ReuseVerdicts(same_metadata=["tenant", "user"]))
    ann = {"tenant": 1, "user": "ann"}
    queue.approve(guard.run(common(1, metadata=ann)).review_id, "reviewer")
    clock.advance(61)
    assert guard.run(common(1, metadata=ann)).reused
    for other in ({**ann, "user": "bob"}, {**ann, "tenant": 2}, {"user": "ann"}, {**ann, "tenant": "1"}, {}):
        assert not guard.run(common(1, metadata=other)).reused, other


def test_a_queue_that_cannot_be_asked_costs_no_answer(queue, caplog):
    """Then a person is asked, or `on_error` decides."""
    broken = SimpleNamespace(reuse=lambda *_, **__: (_ for _ in ()).throw(RuntimeError("away")))
    guard = guard_of(decider=LadderDecider([REVIEW]))
    guard = Guard(replace(guard.parts, queue=queue, earlier=EarlierVerdicts(broken, FAQ)))
    assert guard.run(common(1)).status is Status.PENDING
    assert "could not look for an earlier verdict" in caplog.text


class Watch:
    """What the watch for drift is told."""

    profile = SimpleNamespace(name="rag")

    def __init__(self) -> None:
        """Nothing yet."""
        self.told: list[tuple[float, bool]] = []

    def observe_outcome(self, confidence: float, *, correct: bool) -> None:
        """Take note."""
        self.told.append((confidence, correct))


def test_the_watch_for_drift_hears_whether_confidences_came_true(queue, clock):
    """Only of its own profile, once each, and not before a verdict is final."""

    def hand_over(n, confidence, profile="rag"):
        asked = exchange(n)
        decision = doubtful(asked, confidence)
        return queue.submit(asked, replace(decision, confidence=replace(decision.confidence, profile=profile)))

    queue.approve(hand_over(0, 0.9), "ann")
    clock.advance(100)
    watch = Watch()
    loop = VerdictLoop(queue, drift=watch)
    loop.prepare()
    queue.approve(hand_over(1, 0.4), "ann")
    queue.reject(hand_over(2, 0.3), "ann")
    queue.approve(hand_over(3, 0.2, profile="other"), "ann")
    queue.approve(hand_over(4, None), "ann")
    assert loop.look() == 0
    clock.advance(61)
    assert loop.look() == 2
    assert loop.look() == 0
    assert watch.told == [(0.4, True), (0.3, False)]


def test_the_loop_starts_with_the_first_answer_that_is_handed_over(queue, clock):
    """A guard that never asks a person never touches the queue's database."""
    watch, looked = Watch(), threading.Event()
    loop = VerdictLoop(queue, drift=watch)
    loop.every_s = 0.01
    look = loop.look
    loop.look = lambda: (look(), looked.set())
    queue.call_after_submit(loop.start)
    assert loop._thread is None
    submit(queue, 1)
    assert looked.wait(10)
    loop.close()
    assert not loop._thread.is_alive()
