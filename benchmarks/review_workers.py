"""Programs that hand over answers, and reviewers who judge them: each a process of its own, until time is up."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from benchmarks.review_items import document
from semgrad_guard.review import Event, QueueSettings, open_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from semgrad_guard.review import SqlReviewQueue

_SETTINGS = QueueSettings(retry_s=30)


@dataclass(kw_only=True)
class Load:
    """What was done, and what became of it."""

    seconds: float
    submitted: list[str] = field(repr=False)
    """Ids that were acknowledged."""
    judged: list[str] = field(repr=False)
    """Ids whose verdict was acknowledged."""
    slowest_submit_s: float
    median_submit_s: float
    errors: list[str]
    lost: int = 0
    """Acknowledged items or verdicts that are not there."""
    twice: int = 0
    """Items with more than one verdict."""


def run_load(url: str, *, seconds: float, programs: int, threads: int, reviewers: int, pause_s: float) -> Load:
    """Return what programs and reviewers did in so many seconds, all at once.

    Args:
        url: the queue.
        seconds: for how long.
        programs: processes that submit.
        threads: requests that each of them serves at one time.
        reviewers: processes that claim and judge.
        pause_s: how long a reviewer looks at an item.
    """
    spawn = multiprocessing.get_context("spawn")
    results: Any = spawn.Queue()
    start: Any = spawn.Barrier(programs + reviewers + 1)
    works = [(_submit_from, (url, n, threads, seconds)) for n in range(programs)]
    works += [(_review, (url, n, seconds, pause_s)) for n in range(reviewers)]
    processes = [spawn.Process(target=_run, args=(work, args, start, results)) for work, args in works]
    for process in processes:
        process.start()
    start.wait()
    began = time.perf_counter()
    parts = [results.get() for _ in processes]
    took = time.perf_counter() - began
    for process in processes:
        process.join()
    delays = sorted(delay for part in parts for delay in part["delays"])
    load = Load(
        seconds=took,
        submitted=[each for part in parts for each in part["submitted"]],
        judged=[each for part in parts for each in part["judged"]],
        slowest_submit_s=delays[-1] if delays else 0.0,
        median_submit_s=delays[len(delays) // 2] if delays else 0.0,
        errors=[part["error"] for part in parts if part["error"]],
    )
    _check(url, load)
    return load


def _run(work: Callable[..., dict[str, Any]], args: tuple[Any, ...], start: Any, results: Any) -> None:
    nothing = {"submitted": [], "judged": [], "delays": [], "error": ""}
    try:
        queue = open_queue(args[0], settings=_SETTINGS)
        queue.counts()  # connected
        start.wait()
        results.put(nothing | work(queue, *args[1:]))
        queue.close()
    except Exception as error:  # noqa: BLE001 - the report tells what failed
        results.put(nothing | {"error": f"{type(error).__name__}: {error}"})


def _submit_from(queue: SqlReviewQueue, program: int, threads: int, seconds: float) -> dict[str, Any]:
    end = time.perf_counter() + seconds
    submitted: list[str] = []
    delays: list[float] = []
    errors: list[str] = []
    numbers: Iterator[int] = count()

    def serve() -> None:
        try:
            while (began := time.perf_counter()) < end:
                submitted.append(queue.submit_document(document(next(numbers), f"program-{program}")))
                delays.append(time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001 - the report tells what failed
            errors.append(f"{type(error).__name__}: {error}")

    serving = [threading.Thread(target=serve) for _ in range(threads)]
    for each in serving:
        each.start()
    for each in serving:
        each.join()
    return {"submitted": submitted, "delays": delays, "error": "; ".join(errors)}


def _review(queue: SqlReviewQueue, reviewer: int, seconds: float, pause_s: float) -> dict[str, Any]:
    end = time.perf_counter() + seconds
    me = f"reviewer-{reviewer}"
    judged: list[str] = []
    while time.perf_counter() < end:
        item = queue.claim(me)
        time.sleep(pause_s if item is not None else 0.05)
        if item is not None:
            judged.append(queue.approve(item.id, me).id)
    return {"judged": judged}


def _check(url: str, load: Load) -> None:
    """Count in the trail what was lost and what was judged twice."""
    stored: set[str] = set()
    verdicts: Counter[str] = Counter()
    queue, seq = open_queue(url, settings=_SETTINGS), 0
    while rows := queue.audit_after(seq, limit=5000):
        stored |= {row.item_id for row in rows if row.event is Event.SUBMIT}
        verdicts.update(row.item_id for row in rows if row.event is Event.APPROVE)
        seq = rows[-1].seq
    queue.close()
    load.lost = len(set(load.submitted) - stored) + len(set(load.judged) - set(verdicts))
    load.twice = sum(n > 1 for n in verdicts.values()) + len(load.judged) - len(set(load.judged))
