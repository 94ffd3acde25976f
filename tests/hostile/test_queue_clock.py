"""The machine's clock fails or jumps under a queue: errors of ours, nothing lost, and no verdict changed."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from semgrad_guard.errors import QueueUnavailableError, ReviewError
from semgrad_guard.review import QueueSettings, State, open_queue
from semgrad_guard.review.access import Scope
from tests.review_queues import QUEUE_CALLS, FakeClock, submit
from tests.review_site import site_of

FAULTS = {
    "raises": ValueError("year 60000 is out of range"),
    "cannot be read": OSError("no clock"),
    "is at the beginning of time": datetime(1, 1, 1, tzinfo=UTC),
    "is at its end": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    "has no zone": datetime(2026, 1, 1),  # noqa: DTZ001 - the fault
    "is no date": None,
}
CALLS = QUEUE_CALLS | {
    "undo": lambda queue, review_id: queue.undo(review_id, "ann"),
    "labels": lambda queue, _: list(queue.labels()),
    "reuse": lambda queue, _: queue.reuse("What is element 1?", tags=["a"], max_age_s=60),
    "judged": lambda queue, _: queue.judged_after(0),
    "erase": lambda queue, _: queue.erase_older_than(60, "root"),
    "take": lambda queue, _: queue.take("somebody"),
}


@dataclass
class BreakableClock(FakeClock):
    """A clock that moves only when told to, and may break."""

    fault: object = None
    is_broken: bool = False

    def __call__(self) -> datetime:
        """Return the moment, or do what is wrong with it."""
        if not self.is_broken:
            return self.now
        if isinstance(self.fault, Exception):
            raise self.fault
        return self.fault


@pytest.mark.parametrize("fault", FAULTS)
def test_a_clock_that_fails_is_an_unavailable_queue(queue_url, fault):
    """No call ends in an error of another kind, and what it was about is as it was."""
    clock = BreakableClock(fault=FAULTS[fault])
    with closing(open_queue(queue_url, settings=QueueSettings(retry_s=5), clock=clock, sleep=clock.sleep)) as queue:
        review_id = submit(queue, 1, tags=("a",))
        before, trail = queue.item(review_id), queue.audit(review_id)
        clock.is_broken = True
        for name, call in CALLS.items():
            if name in {"list", "wait"}:  # these need no time
                call(queue, review_id)
            else:
                with pytest.raises(QueueUnavailableError, match="clock"):
                    call(queue, review_id)
        clock.is_broken = False
        assert (queue.item(review_id), queue.audit(review_id)) == (before, trail)
        assert len(queue.list().items) == 1
        assert queue.approve(review_id, "ann").state is State.APPROVED


@pytest.mark.parametrize("fault", FAULTS)
def test_the_site_says_that_it_cannot_work(queue_url, fault):
    """Not a fault of the server, whatever is asked."""
    clock = BreakableClock(fault=FAULTS[fault])
    with closing(open_queue(queue_url, settings=QueueSettings(retry_s=5), clock=clock, sleep=clock.sleep)) as queue:
        review_id = submit(queue, 1)
        app = site_of(queue)
        _, secret = app.state.desk.tokens.issue("p", app.state.desk.accounts.get("ann"), list(Scope))
        headers = {"Authorization": f"Bearer {secret}"}
        with TestClient(app, base_url="http://review.test", headers=headers) as client:
            clock.is_broken = True
            for verb, path in (
                ("get", "/"),
                ("get", "/login"),
                ("get", "/api/v1/items"),
                ("get", f"/api/v1/items/{review_id}"),
                ("post", f"/api/v1/items/{review_id}/approve"),
                ("post", "/api/v1/claim-next"),
                ("get", "/healthz"),
            ):
                status = getattr(client, verb)(path).status_code
                assert status < 500 or status == 503, path


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(days=400)])
def test_a_jump_of_the_clock_takes_no_verdict(open_here, clock, jump):
    """A lease that ends early costs its holder the turn, not the item its verdict."""
    queue = open_here(lease_s=60, undo_s=30)
    ids = [submit(queue, n) for n in range(3)]
    queue.approve(ids[0], "ann")
    queue.claim_item(ids[1], "ann")
    clock.now += jump
    queue.expire_leases()
    queue.expire_deadlines()
    assert queue.item(ids[0]).state is State.APPROVED
    if jump > timedelta():
        assert queue.claim_item(ids[1], "bob").holder == "bob"
        with pytest.raises(ReviewError):
            queue.approve(ids[1], "ann")
    else:
        with pytest.raises(ReviewError):
            queue.claim_item(ids[1], "bob")
        assert queue.approve(ids[1], "ann").state is State.APPROVED
    clock.now -= jump
    assert queue.wait(ids[0], 0).by == "ann"
    assert queue.item(ids[2]).state is State.PENDING
