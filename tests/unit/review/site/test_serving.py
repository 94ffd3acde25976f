"""Where the page may listen, and the upkeep beside it."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from semgrad_guard.errors import ReviewError
from semgrad_guard.review import QueueSettings, State, open_queue
from semgrad_guard.review.site import serving
from semgrad_guard.review.site.serving import Binding
from tests.review_queues import FakeClock, submit


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_alone_needs_no_encryption(host):
    """Trying it out takes one command."""
    binding = Binding(host=host)
    assert not binding.is_encrypted
    assert "localhost" in binding.hosts


@pytest.mark.parametrize("host", ["::", "10.1.2.3", "review.example.com", ""])
def test_beyond_this_machine_encryption_is_required(host):
    """Passwords and answers must not be readable on the way."""
    with pytest.raises(ReviewError, match="--tls-cert"):
        Binding(host=host)
    for safe in ({"certificate": Path("c"), "key": Path("k")}, {"is_behind_proxy": True}, {"allow_plain": True}):
        assert not Binding(host=host, **safe).is_local


def test_a_certificate_without_its_key_is_refused():
    """Half of TLS is none."""
    for half in ({"certificate": Path("c")}, {"key": Path("k")}):
        with pytest.raises(ReviewError, match="both"):
            Binding(**half)


def test_host_names_are_restricted_where_they_are_known():
    """Behind a proxy the names are the proxy's, unless given."""
    assert Binding(host="10.1.2.3", allow_plain=True).hosts == frozenset()
    assert Binding(is_behind_proxy=True).hosts == frozenset()
    assert "review.example.com" in Binding(is_behind_proxy=True, names=frozenset({"Review.example.com"})).hosts


def test_a_site_that_nobody_can_log_in_to_is_not_served(memory_queue):
    """The message says which command makes an account."""
    with pytest.raises(ReviewError, match="review user add"):
        serving.serve(memory_queue, Binding())


def test_upkeep_ends_leases_and_deadlines_and_survives_trouble(clock, caplog):
    """Nobody has to start a second program."""
    settings = QueueSettings(lease_s=10, deadline_s=100)
    with closing(open_queue("sqlite://", settings=settings, clock=clock, sleep=clock.sleep)) as queue:
        held, late = submit(queue, 1), submit(queue, 2)
        queue.claim_item(held, "ann")
        leases, deadlines, failed, rounds = queue.expire_leases, queue.expire_deadlines, [], threading.Semaphore(0)

        def expire_leases():
            if not failed:
                failed.append(True)
                msg = "trouble"
                raise RuntimeError(msg)
            return leases()

        def expire_deadlines():
            n = deadlines()
            rounds.release()
            return n

        def wait_for(review_id, state):
            # Asked once a round: this queue has one connection, and asking all the time would keep it from the thread.
            while queue.item(review_id).state is not state:
                assert rounds.acquire(timeout=30)

        queue.expire_leases, queue.expire_deadlines = expire_leases, expire_deadlines
        clock.advance(11)
        with serving.upkeep(queue, every_s=0.01):
            wait_for(held, State.PENDING)
            clock.advance(90)
            wait_for(late, State.EXPIRED)
    assert "upkeep of the review queue failed" in caplog.text


def test_upkeep_erases_what_is_too_old_and_does_further_works():
    """Retention needs no cron job."""
    clock, done = FakeClock(), threading.Semaphore(0)
    settings = QueueSettings(retention_s=100)
    with closing(open_queue("sqlite://", settings=settings, clock=clock, sleep=clock.sleep)) as queue:
        old, open_one = submit(queue, 1), submit(queue, 2)
        queue.approve(old, "ann")
        clock.advance(101)
        young = submit(queue, 3)
        queue.approve(young, "ann")
        with serving.upkeep(queue, done.release, every_s=0.01):
            assert done.acquire(timeout=30)
        assert queue.get(old).document is None
        assert queue.get(young).document is not None
        assert queue.get(open_one).document is not None
        assert queue.audit(old)[-1].by == serving.RETENTION
