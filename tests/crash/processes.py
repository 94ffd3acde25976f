"""A program that works on a queue in many short-lived processes; the tests start it and look at what is left.

It imports everything once and then forks, so a process costs milliseconds. What a process was told is done, it writes
to its log at once: what stands there must be in the queue, whatever happened to the process.

Usage: python -m tests.crash.processes kill|review URL FOLDER COUNT SEED
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from semgrad_guard.errors import ReviewError
from semgrad_guard.review import QueueSettings, SqlReviewQueue, open_queue
from tests.review_queues import doubtful, exchange, without_waiting_for_the_disk

if TYPE_CHECKING:
    from collections.abc import Callable

_LANES = 2
_LONGEST_LIFE_S = 0.05
"""Counted from the first thing that a process got done, or from its start for every fourth process."""
_SHORT_LEASE_S = 0.05
"""Leases end within the test, so that what a killed process held is taken by the next."""
_STARTED = os.pipe()
"""Every process puts a byte here once it got something done."""


def work_at_random(queue: SqlReviewQueue, log: int, seed: int) -> None:
    """Submit, claim, judge and undo until killed; log each thing that was acknowledged."""
    rng = random.Random(seed)  # noqa: S311 - a test repeats itself
    me = f"p{seed}"
    for n in range(1_000_000):
        try:
            _one_step(queue, rng, me, log, n)
        except ReviewError as error:
            os.write(log, f"refused {type(error).__name__} {me}\n".encode())
        if n == 0:
            os.write(_STARTED[1], b".")


def _one_step(queue: SqlReviewQueue, rng: random.Random, me: str, log: int, n: int) -> None:
    step = rng.random()
    if step < 0.5:
        asked = exchange(n, id=f"{me}-{n}")
        os.write(log, f"submitted {queue.submit(asked, doubtful(asked, rng.random()))} {asked.id}\n".encode())
        return
    item = queue.claim(me)
    if item is None:
        return
    os.write(log, f"claimed {item.id} {me}\n".encode())
    if step < 0.6:
        return
    acts: tuple[Callable[[], object], ...] = (
        lambda: queue.approve(item.id, me),
        lambda: queue.edit(item.id, me, "edited"),
        lambda: queue.reject(item.id, me, "rejected"),
    )
    rng.choice(acts)()
    os.write(log, f"judged {item.id} {me}\n".encode())
    if step > 0.9:
        queue.undo(item.id, me)
        os.write(log, f"undone {item.id} {me}\n".encode())


def review_all(queue: SqlReviewQueue, log: int, seed: int) -> None:
    """Claim and approve until nothing waits; log each."""
    me = f"p{seed}"
    while (item := queue.claim(me)) is not None:
        queue.approve(item.id, me)
        os.write(log, f"judged {item.id} {me}\n".encode())


def _fork(url: str, folder: Path, seed: int, work: Callable[[SqlReviewQueue, int, int], None], lease_s: float) -> int:
    child = os.fork()
    if child:
        return child
    try:
        log = os.open(folder / f"{seed}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        queue = open_queue(url, settings=QueueSettings(lease_s=lease_s, retry_s=20))
        without_waiting_for_the_disk(queue)
        work(queue, log, seed)
        queue.close()
    except BaseException as error:  # noqa: BLE001 - a fork must never return into the parent's code
        os.write(2, f"process {seed}: {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def kill_many(url: str, folder: Path, count: int, seed: int) -> int:
    """Start processes and kill each at a random moment; return how many died of that."""
    rng = random.Random(seed)  # noqa: S311 - a test repeats itself
    killed = 0
    for first in range(0, count, _LANES):
        lane = [_fork(url, folder, seed + first + n, work_at_random, _SHORT_LEASE_S) for n in range(_LANES)]
        if first % (4 * _LANES):
            os.read(_STARTED[0], 1)
        for child in lane:
            time.sleep(rng.uniform(0, _LONGEST_LIFE_S))
            os.kill(child, signal.SIGKILL)
        killed += sum(os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL for child in lane)
    return killed


def review_in_many(url: str, folder: Path, count: int, seed: int) -> int:
    """Let processes review until nothing waits; return how many ended well."""
    children = [_fork(url, folder, seed + n, review_all, 60.0) for n in range(count)]
    return sum(os.waitpid(child, 0)[1] == 0 for child in children)


if __name__ == "__main__":
    _, mode, _url, _folder, _count, _seed = sys.argv
    run = kill_many if mode == "kill" else review_in_many
    sys.stdout.write(str(run(_url, Path(_folder), int(_count), int(_seed))))
