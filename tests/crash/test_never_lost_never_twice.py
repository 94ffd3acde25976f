"""What the queue acknowledged is there, and nothing is judged twice, whatever happens to the processes around it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, make_url, text

from semgrad_guard.review import SETTLED, Event, Filters, QueueSettings, Sort, State, document_of, open_queue
from semgrad_guard.review.store import submission
from semgrad_guard.review.store.audit import replay
from tests.hostile_cases import CASES
from tests.review_queues import POSTGRES, doubtful, exchange, ready_url

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
KILLS = max(200, CASES)
ITEMS = 2000
REVIEWERS = 8


def run_processes(mode: str, url: str, folder: Path, count: int) -> int:
    """Return how many of the processes ended as they should."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.processes", mode, url, str(folder), str(count), "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return int(done.stdout)


def logged(folder: Path) -> list[list[str]]:
    """Return what the processes were told is done; a line cut off by a kill counts as never said."""
    lines = [line for path in folder.glob("*.log") for line in path.read_text().splitlines(keepends=True)]
    return [line.split() for line in lines if line.endswith("\n")]


def all_items(queue):
    """Return every item of the queue by id."""
    found, cursor = {}, None
    while True:
        page = queue.list(Filters(), sort=Sort.OLDEST, cursor=cursor, limit=200)
        found.update({item.id: item for item in page.items})
        cursor = page.next_cursor
        if cursor is None:
            return found


def trails(queue):
    """Return the whole audit trail by item."""
    found, seq = {}, 0
    while rows := queue.audit_after(seq, limit=5000):
        for row in rows:
            found.setdefault(row.item_id, []).append(row)
        seq = rows[-1].seq
    return found


def assert_whole(queue) -> None:
    """Check that every item is what its trail says, and has one verdict exactly when it is settled."""
    items, by_item = all_items(queue), trails(queue)
    assert set(items) == set(by_item)
    for review_id, rows in by_item.items():
        item, told = items[review_id], replay(rows)
        assert (told.state, told.version, told.holder) == (item.state, item.version, item.holder), review_id
        assert [row.version for row in rows if row.version] == list(range(1, item.version + 1)), review_id
        verdicts = sum(row.to_state in SETTLED for row in rows) - sum(row.event is Event.UNDO for row in rows)
        assert verdicts == (item.state in SETTLED), review_id
        assert (item.ruling_id is not None) == (item.state in SETTLED), review_id


def test_killed_processes_lose_nothing_and_judge_nothing_twice(queue_url, tmp_path):
    """A guard or a reviewer's program may die at any moment."""
    folder = tmp_path / "logs"
    folder.mkdir()
    assert run_processes("kill", queue_url, folder, KILLS) == KILLS
    said = logged(folder)
    kinds = Counter(line[0] for line in said)
    assert min(kinds["submitted"], kinds["claimed"], kinds["judged"], kinds["undone"]) > 0, kinds
    with closing(open_queue(queue_url)) as queue:
        items = all_items(queue)
        for kind, review_id, who in said:
            if kind == "submitted":
                assert items[review_id].exchange_id == who
                assert queue.get(review_id).document is not None
        judged = {line[1] for line in said if line[0] == "judged"}
        undone = {line[1] for line in said if line[0] == "undone"}
        by_item = trails(queue)
        for review_id in judged - undone:
            taken_back = any(row.event is Event.UNDO for row in by_item[review_id])
            assert items[review_id].state in SETTLED or taken_back, review_id
        assert_whole(queue)
        if queue.database.dialect == "sqlite":
            with queue.database.engine.connect() as conn:
                assert conn.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"


def test_eight_reviewers_judge_every_item_once(queue_url, tmp_path):
    """Reviewers who work at the same time never collide, and nothing is left over."""
    folder = tmp_path / "logs"
    folder.mkdir()
    with closing(open_queue(queue_url, settings=QueueSettings(retry_s=20))) as queue:
        settings = QueueSettings()

        def fill(tx):
            asked = [exchange(n) for n in range(ITEMS)]
            documents = [document_of(each, doubtful(each, n / ITEMS)) for n, each in enumerate(asked)]
            submission.submit_all(tx, [submission.Submission(document=each) for each in documents], settings)

        queue.database.write(fill)
        queue.close()
        assert run_processes("review", queue_url, folder, REVIEWERS) == REVIEWERS
        judged = Counter(line[1] for line in logged(folder))
        assert len(judged) == ITEMS
        assert set(judged.values()) == {1}
        assert len({line[2] for line in logged(folder)}) == REVIEWERS, "every reviewer got some"
        assert queue.counts()[State.APPROVED] == ITEMS
        assert_whole(queue)


class _Workers:
    """Guards and reviewers at work in threads, until told to stop."""

    def __init__(self, queue) -> None:
        self.queue = queue
        self.submitted, self.judged, self.errors = [], [], []
        self._stop = threading.Event()
        works = [(self._guard, f"g{n}") for n in range(2)] + [(self._review, f"r{n}") for n in range(2)]
        self._threads = [threading.Thread(target=self._run, args=each) for each in works]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work, me) -> None:
        try:
            while not self._stop.is_set():
                work(me)
        except Exception as error:  # noqa: BLE001 - the test fails with whatever it was
            self.errors.append(error)

    def _guard(self, _me) -> None:
        asked = exchange(len(self.submitted))
        self.submitted.append(self.queue.submit(asked, doubtful(asked)))

    def _review(self, me) -> None:
        item = self.queue.claim(me)
        if item is not None:
            self.judged.append(self.queue.approve(item.id, me).id)


def test_connections_that_break_all_the_time_cost_no_answer(tmp_path):
    """A database server that restarts breaks every connection, in the middle of whatever it does."""
    with ready_url("postgresql", tmp_path) as plain:
        name = f"crash-{os.getpid()}"
        url = make_url(plain).update_query_dict({"application_name": name}).render_as_string(hide_password=False)
        with closing(open_queue(url, settings=QueueSettings(retry_s=20))) as queue:
            with _Workers(queue) as workers:
                broken = _break_connections(name, 40, lambda: min(len(workers.submitted), len(workers.judged)) > 10)
            assert workers.errors == []
            assert broken > 40
            assert len(workers.submitted) == len(set(workers.submitted)) > 10
            assert len(workers.judged) == len(set(workers.judged)) > 10
            assert set(all_items(queue)) == set(workers.submitted)
            assert_whole(queue)


def _break_connections(name: str, times: int, is_enough: Callable[[], bool]) -> int:
    """End all connections of the queue at least so often, and until enough was done; return how many were ended."""
    rng = random.Random(7)  # noqa: S311 - a test repeats itself
    engine = create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    query = text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = :name")
    ended = 0
    with engine.connect() as conn:
        for n in range(10 * times):
            if n >= times and is_enough():
                break
            time.sleep(rng.uniform(0.01, 0.1))
            ended += conn.execute(query, {"name": name}).scalar_one()
    engine.dispose()
    return ended
