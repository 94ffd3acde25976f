"""The plan of replicas, where its figures can be worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.serve_plan import Replica, needed, simulate

SLOW = Replica(batch_s=0.1, each_s=0.0, most=1)


def test_who_comes_alone_waits_for_the_service_alone():
    """One request a hundred seconds, each of 0.1 s, at one replica."""
    found = simulate(SLOW, 1, 0.01, arrivals=2_000)
    assert found.p50_s == pytest.approx(0.1)
    assert found.batch == 1
    assert found.busy == pytest.approx(0.001, rel=0.1)


def test_one_queue_waits_as_the_formula_says():
    """M/D/1 at 50 %: the mean wait is half a service time, and so the busy share is one half."""
    found = simulate(SLOW, 1, 5.0, arrivals=40_000)
    assert found.busy == pytest.approx(0.5, rel=0.03)
    assert 0.1 <= found.p50_s < 0.2 < found.p95_s


def test_batches_grow_with_the_load_and_carry_it():
    """A fixed cost of 0.1 s a batch: 10/s one by one, 160/s in batches of up to 32 that take 0.2 s."""
    replica = Replica(batch_s=0.1, each_s=0.1 / 32, most=32)
    assert replica.per_s == pytest.approx(160)
    found = simulate(replica, 1, 100.0, arrivals=20_000)
    assert found.batch > 8
    assert found.p95_s < 0.5


def test_replicas_are_as_many_as_the_load_needs_and_some_to_spare():
    """Eight replicas of 10/s carry 60/s; one more tenfold load takes ten times as many."""
    few, found = needed(SLOW, 60.0, p95_s=0.5)
    many, _ = needed(SLOW, 600.0, p95_s=0.5)
    assert 7 <= few <= 10
    assert found.p95_s <= 0.5
    assert many == pytest.approx(10 * few, rel=0.3)
    with pytest.raises(ValueError, match="allow more time"):
        needed(SLOW, 1.0, p95_s=0.05)
