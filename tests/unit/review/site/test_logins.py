"""Log-ins through the page: guessing, floods, and reviewers who must get in all the same."""

from __future__ import annotations

import re
import ssl
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest
from argon2 import PasswordHasher

from semgrad_guard.review import open_queue
from semgrad_guard.review.access import Role
from semgrad_guard.review.site.app import create_app
from semgrad_guard.review.site.desk import WebSettings
from tests.review_queues import submit
from tests.review_site import PASSWORD, serving, site_of

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Clients that only speak in the clear; reading the usual certificates for each would be most of a flood's work."""


def log_in(client, name, password):
    """Log in as a browser would, and return the answer."""
    page = client.get("/login").text
    csrf = re.search(r'name="csrf" value="([^"]*)"', page)[1]
    return client.post("/login", data={"csrf": csrf, "name": name, "password": password})


def test_guessing_passwords_is_slowed_down_by_account(visit, clock):
    """Three wrong passwords from one place close the account's door to that place for a while."""
    browser = visit(client=("10.0.0.1", 1))
    for _ in range(3):
        browser.log_in("ann", "wrong password")
        assert browser.status == 401
        assert "wrong name or password" in browser.page
    browser.log_in("ann")
    assert browser.status == 429
    assert int(browser.response.headers["retry-after"]) <= 600
    browser.log_in("bob")
    assert browser.response.url.path == "/"
    clock.advance(601)
    browser.log_in("ann")
    assert browser.response.url.path == "/"


def test_a_stranger_does_not_lock_a_reviewer_out(visit):
    """Neither on another machine, nor, however many strangers there are, in the browser that she has used before."""
    known = visit(client=("10.0.0.1", 1))
    known.log_in("ann")
    known.get("/")
    known.submit("/logout")
    stranger = visit(client=("10.6.6.6", 1))
    for _ in range(4):
        stranger.log_in("ann", "wrong password")
    assert stranger.status == 429
    elsewhere = visit(client=("10.0.0.2", 1))
    elsewhere.log_in("ann")
    assert elsewhere.response.url.path == "/"
    for n in range(12):
        visit(client=(f"10.7.7.{n}", 1)).log_in("ann", "wrong password")
    unknown = visit(client=("10.0.0.3", 1))
    unknown.log_in("ann")
    assert unknown.status == 429, "among so many strangers, a new browser is one of them"
    known.log_in("ann")
    assert known.response.url.path == "/"


def test_a_new_log_in_ends_the_session_before_it(visit, desk):
    """A copy of the old cookie is worth nothing any more."""
    browser = visit()
    browser.log_in("ann")
    old = browser.client.cookies["semgrad-session"]
    browser.log_in("ann")
    assert browser.client.cookies["semgrad-session"] != old
    assert desk.sessions.find(old) is None


@pytest.mark.timeout(60)
def test_a_flood_of_log_ins_guesses_no_more_and_leaves_the_site_working(tmp_path):
    """Eighty at once on one account: ten are looked at, the rest are told to wait, and submitters notice nothing."""
    with closing(open_queue(f"sqlite:///{tmp_path / 'review.db'}")) as queue:
        app = create_app(queue, WebSettings(), PasswordHasher(time_cost=2, memory_cost=32768, parallelism=1))
        app.state.desk.accounts.add("ann", PASSWORD, Role.REVIEWER)
        with serving(app) as url:
            statuses, stop, took = [], threading.Event(), []

            def guess(_n) -> None:
                with httpx.Client(base_url=url, verify=NO_TLS) as client:
                    statuses.append(log_in(client, "ann", "wrong password").status_code)

            def work() -> None:
                n = 0
                while not stop.is_set():
                    n, began = n + 1, time.monotonic()
                    submit(queue, n)
                    httpx.get(f"{url}/login", verify=NO_TLS).raise_for_status()
                    took.append(time.monotonic() - began)

            worker = threading.Thread(target=work)
            worker.start()
            with ThreadPoolExecutor(40) as pool:
                list(pool.map(guess, range(80)))
            stop.set()
            worker.join()
    assert set(statuses) == {401, 429}
    assert statuses.count(401) <= 10
    assert max(took) < 5
    assert statistics.median(took) < 1


def test_a_wrong_name_takes_as_long_as_a_wrong_password(memory_queue):
    """The clock tells no names."""
    hasher = PasswordHasher(time_cost=3, memory_cost=8192, parallelism=1)
    site = site_of(memory_queue)
    accounts = type(site.state.desk.accounts)(memory_queue.database, hasher)
    accounts.add("carl", PASSWORD)
    accounts.add("closed", PASSWORD)
    accounts.set_active("closed", active=False)

    def seconds(name):
        began = time.perf_counter()
        assert accounts.verify(name, "wrong password") is None
        return time.perf_counter() - began

    names = ("carl", "closed", "nobody", "no such name", "x" * 500)
    times = {name: [] for name in names}
    for _ in range(15):
        for name in names:
            times[name].append(seconds(name))
    medians = [min(each) for each in times.values()]
    assert max(medians) < 2 * min(medians)
