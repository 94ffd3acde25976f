"""The queue against a model of it: whatever reviewers do in whatever order, nobody collides and nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from semgrad_guard.errors import AlreadyClaimedError, IllegalMoveError, UndoRefusedError
from semgrad_guard.review import OPEN, SETTLED, Event, Filters, QueueSettings, State, open_queue
from semgrad_guard.review.store.audit import replay
from tests.review_queues import FakeClock, doubtful, exchange

if TYPE_CHECKING:
    from semgrad_guard.flow import ReviewId

LEASE_S, UNDO_S, DEADLINE_S = 60.0, 30.0, 200.0
REVIEWERS = st.sampled_from(["ann", "bob", "cy"])


@dataclass(frozen=True)
class Known:
    """What the model knows about an item; moments are seconds since the start."""

    number: int
    rank: float
    deadline: float
    state: State = State.PENDING
    holder: str | None = None
    held_until: float = 0.0
    judge: str | None = None
    judged_at: float = 0.0
    taken: bool = False
    assignee: str | None = None


class QueueMachine(RuleBasedStateMachine):
    """Every rule does one thing to the queue and the same to the model."""

    @initialize()
    def open(self) -> None:
        """Start with an empty queue."""
        self.clock = FakeClock()
        self.start = self.clock.now
        wanted = QueueSettings(lease_s=LEASE_S, undo_s=UNDO_S, deadline_s=DEADLINE_S, head_start_s=100)
        self.queue = open_queue("sqlite://", settings=wanted, clock=self.clock, sleep=self.clock.sleep)
        self.known: dict[ReviewId, Known] = {}

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return (self.clock.now - self.start).total_seconds()

    def pick(self, data: st.DataObject) -> ReviewId:
        """Return one of the items."""
        return data.draw(st.sampled_from(sorted(self.known)))

    def change(self, review_id: ReviewId, **values: object) -> None:
        """Change the model of an item."""
        self.known[review_id] = replace(self.known[review_id], **values)

    def lapse(self) -> None:
        """End the leases that ended, in the model."""
        for review_id, item in self.known.items():
            if item.state is State.CLAIMED and item.held_until <= self.now:
                self.change(review_id, state=State.PENDING, holder=None)

    def held_by_other(self, item: Known, who: str) -> bool:
        """True when somebody else's lease runs."""
        return item.state is State.CLAIMED and item.holder != who and item.held_until > self.now

    @rule(confidence=st.one_of(st.none(), st.floats(0, 1)))
    def submit(self, confidence: float | None) -> None:
        """A guard submits."""
        number = len(self.known)
        asked = exchange(number, id=f"x{number}")
        review_id = self.queue.submit(asked, doubtful(asked, confidence))
        assert review_id not in self.known
        rank = self.now - (1 - (confidence or 0)) * 100
        self.known[review_id] = Known(number, rank, self.now + DEADLINE_S)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        """A guard submits what it submitted before."""
        review_id = self.pick(data)
        number = self.known[review_id].number
        asked = exchange(number, id=f"x{number}")
        assert self.queue.submit(asked, doubtful(asked)) == review_id

    @rule(who=REVIEWERS)
    def claim(self, who: str) -> None:
        """A reviewer takes the next item."""
        self.lapse()
        free = [
            (item.rank, review_id)
            for review_id, item in self.known.items()
            if item.state is State.PENDING and item.assignee in {None, who}
        ]
        got = self.queue.claim(who)
        assert (got is None) == (not free)
        if got is not None:
            assert self.known[got.id].rank == pytest.approx(min(free)[0])
            self.change(got.id, state=State.CLAIMED, holder=who, held_until=self.now + LEASE_S)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), who=REVIEWERS)
    def claim_one(self, data: st.DataObject, who: str) -> None:
        """A reviewer takes an item of their choice."""
        review_id = self.pick(data)
        item = self.known[review_id]
        if self.held_by_other(item, who):
            with pytest.raises(AlreadyClaimedError):
                self.queue.claim_item(review_id, who)
        elif item.state in SETTLED:
            with pytest.raises(IllegalMoveError):
                self.queue.claim_item(review_id, who)
        else:
            self.queue.claim_item(review_id, who)
            self.change(review_id, state=State.CLAIMED, holder=who, held_until=self.now + LEASE_S)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), who=REVIEWERS)
    def release(self, data: st.DataObject, who: str) -> None:
        """A reviewer puts an item back."""
        review_id = self.pick(data)
        item = self.known[review_id]
        if self.held_by_other(item, who):
            with pytest.raises(AlreadyClaimedError):
                self.queue.release(review_id, who)
        elif item.state is not State.CLAIMED:
            with pytest.raises(IllegalMoveError):
                self.queue.release(review_id, who)
        else:
            self.queue.release(review_id, who)
            self.change(review_id, state=State.PENDING, holder=None)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), who=REVIEWERS, verdict=st.sampled_from([State.APPROVED, State.EDITED, State.REJECTED]))
    def judge(self, data: st.DataObject, who: str, verdict: State) -> None:
        """A reviewer gives a verdict."""
        review_id = self.pick(data)
        item = self.known[review_id]

        def act() -> None:
            if verdict is State.APPROVED:
                self.queue.approve(review_id, who)
            elif verdict is State.EDITED:
                self.queue.edit(review_id, who, "better")
            else:
                self.queue.reject(review_id, who)

        if self.held_by_other(item, who):
            with pytest.raises(AlreadyClaimedError):
                act()
        elif item.state in SETTLED:
            with pytest.raises(IllegalMoveError):
                act()
        else:
            act()
            self.change(review_id, state=verdict, holder=None, judge=who, judged_at=self.now)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), who=REVIEWERS)
    def undo(self, data: st.DataObject, who: str) -> None:
        """A reviewer takes a verdict back."""
        review_id = self.pick(data)
        item = self.known[review_id]
        if item.state not in {State.APPROVED, State.EDITED, State.REJECTED}:
            with pytest.raises(IllegalMoveError):
                self.queue.undo(review_id, who)
        elif item.judge != who or item.taken or self.now > item.judged_at + UNDO_S:
            with pytest.raises(UndoRefusedError):
                self.queue.undo(review_id, who)
        else:
            self.queue.undo(review_id, who)
            self.change(review_id, state=State.CLAIMED, holder=who, held_until=self.now + LEASE_S)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        """A caller asks for the verdict."""
        review_id = self.pick(data)
        item = self.known[review_id]
        if item.state in OPEN and item.deadline <= self.now:
            self.change(review_id, state=State.EXPIRED, holder=None)
        ruling = self.queue.wait(review_id, 0)
        state = self.known[review_id].state
        assert (ruling is not None) == (state in SETTLED)
        if ruling is not None:
            assert ruling.verdict == state
            self.change(review_id, taken=True)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), who=st.one_of(st.none(), REVIEWERS))
    def assign(self, data: st.DataObject, who: str | None) -> None:
        """Somebody says who is to judge an item."""
        review_id = self.pick(data)
        if self.known[review_id].state in SETTLED:
            with pytest.raises(IllegalMoveError):
                self.queue.assign(review_id, "boss", who)
        else:
            self.queue.assign(review_id, "boss", who)
            self.change(review_id, assignee=who)

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0, 61.0, 150.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    @rule()
    def end_leases(self) -> None:
        """Upkeep ends the leases."""
        before = sum(item.state is State.CLAIMED for item in self.known.values())
        self.lapse()
        after = sum(item.state is State.CLAIMED for item in self.known.values())
        assert self.queue.expire_leases() == before - after

    @rule()
    def end_deadlines(self) -> None:
        """Upkeep ends the items that are late."""
        late = [i for i, item in self.known.items() if item.state in OPEN and item.deadline <= self.now]
        assert self.queue.expire_deadlines() == len(late)
        for review_id in late:
            self.change(review_id, state=State.EXPIRED, holder=None)

    @invariant()
    def the_queue_is_what_the_model_says(self) -> None:
        """States, holders and the audit trail agree."""
        if not hasattr(self, "queue"):
            return
        items = {item.id: item for item in self.queue.list(Filters(), limit=200).items}
        assert set(items) == set(self.known)
        for review_id, item in items.items():
            known = self.known[review_id]
            assert (item.state, item.holder, item.assignee) == (known.state, known.holder, known.assignee)
            rows = self.queue.audit(review_id)
            told = replay(rows)
            assert (told.state, told.version, told.holder, told.assignee) == (
                item.state,
                item.version,
                item.holder,
                item.assignee,
            )
            verdicts = sum(row.to_state in SETTLED for row in rows) - sum(row.event is Event.UNDO for row in rows)
            assert verdicts == (item.state in SETTLED)

    def teardown(self) -> None:
        """Close the queue."""
        if hasattr(self, "queue"):
            self.queue.close()


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
