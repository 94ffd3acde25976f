"""How long a reviewer waits for a page, in queues of growing size."""

from __future__ import annotations

import re
import statistics
import time
from typing import TYPE_CHECKING

from argon2 import PasswordHasher
from starlette.testclient import TestClient

from benchmarks.review_items import fill
from semgrad_guard.review import ALL_ITEMS, OPEN, Filters, QueueSettings, Sort, open_queue
from semgrad_guard.review.access import Role
from semgrad_guard.review.site.app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from semgrad_guard.review import SqlReviewQueue

_TIMES = 30
_DEEP = 20
"""Pages turned before the deep page."""
_PASSWORD = "correct horse battery"  # noqa: S105 - of an account in a database that is dropped


def measure_pages(url: str, sizes: Iterable[int]) -> Iterator[dict[str, float]]:
    """Give, for each size of the queue in turn, milliseconds for its pages: the median of many, and the slowest."""
    queue = open_queue(url, settings=QueueSettings(retry_s=30))
    app = create_app(queue, hasher=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    app.state.desk.accounts.add("ann", _PASSWORD, Role.REVIEWER)
    with TestClient(app, base_url="http://127.0.0.1") as browser:
        _log_in(browser)
        already = 0
        for size in sizes:
            fill(queue, size, already)
            already = size
            yield {"items": size} | _pages(queue, browser)
    queue.close()


def _pages(queue: SqlReviewQueue, browser: TestClient) -> dict[str, float]:
    cursor = None
    for _ in range(_DEEP):
        cursor = queue.list(cursor=cursor, limit=30).next_cursor or cursor
    ids = [item.id for item in queue.list(limit=_TIMES).items]
    times = {
        "list": lambda _: queue.list(),
        "deep_list": lambda _: queue.list(cursor=cursor),
        "all_newest": lambda _: queue.list(ALL_ITEMS, sort=Sort.NEWEST),
        "one_tag": lambda _: queue.list(Filters(states=OPEN, tags=frozenset({"tag-7"}))),
        "mine": lambda _: queue.list(Filters(states=OPEN, assignee="ann")),
        "queue_page": lambda _: _load(browser, "/"),
        "item_page": lambda n: _load(browser, f"/items/{ids[n]}"),
    }
    return {f"{name}_{kind}": ms for name, act in times.items() for kind, ms in _timed(act).items()}


def _timed(act: Callable[[int], object]) -> dict[str, float]:
    took: list[float] = []
    for n in range(_TIMES):
        began = time.perf_counter()
        act(n)
        took.append(1000 * (time.perf_counter() - began))
    return {"ms": round(statistics.median(took), 1), "slowest_ms": round(max(took), 1)}


def _load(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    if answer.status_code != 200:
        msg = f"{path} answered {answer.status_code}"
        raise RuntimeError(msg)


def _log_in(browser: TestClient) -> None:
    form = browser.get("/login").text
    token = re.search(r'name="csrf" value="([^"]+)"', form)
    fields = {"name": "ann", "password": _PASSWORD, "csrf": token[1] if token else ""}
    browser.post("/login", data=fields, headers={"Origin": "http://127.0.0.1"})
