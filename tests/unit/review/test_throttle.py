"""Limits on log-ins below the page: counted before the password is looked at, and no way to lock somebody out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from semgrad_guard.review.access import Accounts
from semgrad_guard.review.throttle import Devices, Hashing, Limits, Throttle
from tests.review_site import HASHER, PASSWORD


def test_tries_are_counted_within_a_time(queue, clock):
    """The wait ends when the first failure is old enough."""
    throttle = Throttle(queue.database, Limits(by_account=2, by_account_everywhere=3, by_address=4, within_s=100))
    assert throttle.begin("ann", "1.1.1.1").wait_s == 0
    clock.advance(30)
    assert throttle.begin("ann", "1.1.1.1").wait_s == 0
    assert throttle.begin("ann", "1.1.1.1").wait_s == 70, "by account and address"
    assert throttle.begin("ann", "2.2.2.2").wait_s == 0
    assert throttle.begin("ann", "3.3.3.3").wait_s == 70, "by account, wherever from"
    assert throttle.begin("bob", "1.1.1.1").wait_s == 0
    assert throttle.begin("eve", "1.1.1.1").wait_s == 0
    assert throttle.begin("new", "1.1.1.1").wait_s > 0, "by address"
    clock.advance(71)
    assert throttle.begin("ann", "1.1.1.1").wait_s == 0


def test_a_refused_try_is_not_counted(queue, clock):
    """Knocking on does not keep the door shut."""
    throttle = Throttle(queue.database, Limits(by_account=1, within_s=100))
    throttle.begin("ann", "1.1.1.1")
    for _ in range(9):
        clock.advance(10)
        assert throttle.begin("ann", "1.1.1.1").wait_s > 0
    clock.advance(11)
    assert throttle.begin("ann", "1.1.1.1").wait_s == 0


def test_tries_at_the_same_time_count_each_other(queue):
    """Eighty at once are no more than ten, on both databases."""
    throttle = Throttle(queue.database, Limits(by_account=10))
    with ThreadPoolExecutor(16) as pool:
        waits = list(pool.map(lambda _: throttle.begin("ann", "1.1.1.1").wait_s, range(80)))
    assert waits.count(0) == 10


def test_a_right_password_is_not_counted(queue):
    """Somebody who logs in often never meets a limit."""
    throttle = Throttle(queue.database, Limits(by_account=2, by_account_everywhere=2, by_address=2))
    for _ in range(5):
        throttle.succeeded(throttle.begin("ann", "1.1.1.1"))
    throttle.begin("ann", "1.1.1.1")
    throttle.succeeded(throttle.begin("ann", "1.1.1.1"))
    assert throttle.begin("ann", "1.1.1.1").wait_s == 0


def test_strangers_do_not_lock_a_known_browser_out(queue):
    """However many there are, and wherever they knock from, the reviewer's own browser has its own tries."""
    Accounts(queue.database, HASHER).add("ann", PASSWORD)
    throttle = Throttle(queue.database, Limits(by_account=2, by_account_everywhere=5, by_address=5))
    device = Devices(queue.database).remember("ann")
    for n in range(20):
        throttle.begin("ann", f"10.0.0.{n}")
    assert throttle.begin("ann", "10.0.0.1").wait_s > 0
    assert throttle.begin("ann", "10.0.0.1", "made up").wait_s > 0, "a cookie that nobody was given is none"
    assert throttle.begin("bob", "10.0.0.99", device).wait_s == 0, "it is known for ann only"
    assert [throttle.begin("ann", "10.0.0.1", device).wait_s > 0 for _ in range(3)] == [False, False, True]


def test_a_changed_password_makes_all_browsers_strangers(queue):
    """What a thief remembers ends with the old password."""
    accounts = Accounts(queue.database, HASHER)
    accounts.add("ann", PASSWORD)
    throttle = Throttle(queue.database, Limits(by_account=1, by_account_everywhere=1))
    device = Devices(queue.database).remember("ann")
    assert Devices(queue.database).remember("ann", device) == device
    throttle.begin("ann", "1.1.1.1")
    accounts.set_password("ann", PASSWORD + "!")
    assert throttle.begin("ann", "1.1.1.1", device).wait_s > 0


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unknown", "unknown", True),
    ],
)
def test_an_address_is_what_one_customer_has(queue, one, other, is_same):
    """With IPv6, a single line has more addresses than there are tries."""
    throttle = Throttle(queue.database, Limits(by_address=1))
    throttle.begin("a", one)
    assert (throttle.begin("b", other).wait_s > 0) is is_same


def test_names_that_no_database_takes_are_counted_too(queue):
    """A flood need not be of plain letters."""
    throttle = Throttle(queue.database, Limits(by_account=1))
    for name in ("a\x00b", "\ud800", "x" * 5000, ""):
        assert throttle.begin(name, "1.1.1.1").wait_s == 0
        assert throttle.begin(name, "1.1.1.1").wait_s > 0
        assert Accounts(queue.database, HASHER).verify(name, "x") is None


def test_places_for_hashing_are_few_and_shared(queue):
    """One address cannot take them all."""
    hashing = Hashing(workers=1, waiting=2, by_address=2)
    with hashing.place("1.1.1.1") as one, hashing.place("1.1.1.1") as two, hashing.place("1.1.1.1") as three:
        assert (one, two, three) == (True, True, False)
        with hashing.place("2.2.2.2") as four, hashing.place("3.3.3.3") as five:
            assert (four, five) == (True, False)
    with hashing.place("3.3.3.3") as six:
        assert six
