"""Many callers that wait for verdicts: what they cost those who submit, by polling and by notifications.

Usage: python -m benchmarks.review_waiting --url postgresql+psycopg://ann@host/review --waiting 1000 --json waiting.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from benchmarks.review_places import empty_queue
from semgrad_guard.flow import Confidence, Decision, Exchange, HumanReview, ReviewId
from semgrad_guard.review import SqlReviewQueue, open_queue

if TYPE_CHECKING:
    from collections.abc import Sequence

_READY = "ready"
_WAIT_S = 3600.0
_WAYS = ("polling", "notified")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as asked, and print the result as JSON."""
    asked = _parser().parse_args(arguments)
    if asked.role is not None:
        return _wait_for_all(asked.url, asked.role, sys.stdin.read().split())
    report: dict[str, Any] = {"database": make_url(asked.url).get_backend_name(), "waiting": asked.waiting}
    with empty_queue(asked.url) as url, closing(open_queue(url)) as queue:
        ids = [_submit(queue, n) for n in range(asked.waiting)]
        _measure(queue, 0.2 * asked.seconds, "warm")
        report["none"] = _measure(queue, asked.seconds, "none")
        for way in _WAYS:
            report[way] = _beside_waiting(queue, url, way, ids, asked.seconds)
        again = _measure(queue, asked.seconds, "again")
    report["none_again"] = again
    alone_s = (report["none"]["p95_ms"] + again["p95_ms"]) / 2
    report["p95_ratio"] = {way: round(report[way]["p95_ms"] / alone_s, 2) for way in _WAYS}
    if asked.json:
        Path(asked.json).parent.mkdir(parents=True, exist_ok=True)
        Path(asked.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


def _beside_waiting(queue: SqlReviewQueue, url: str, way: str, ids: list[ReviewId], seconds: float) -> dict[str, Any]:
    """Measure while another process waits for all items; also how soon one of them hears of its verdict."""
    command = [sys.executable, "-m", "benchmarks.review_waiting", "--url", url, "--role", way]
    with subprocess.Popen(  # noqa: S603 - this very program
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError
        process.stdin.write("\n".join(ids))
        process.stdin.close()
        if process.stdout.readline().strip() != _READY:
            raise RuntimeError
        found = _measure(queue, seconds, way)
        item = queue.claim("ann")
        if item is not None:
            queue.approve(item.id, "ann")
            ids.remove(item.id)
            approved_at = time.time()
            found["woken_after_ms"] = round(1000 * (float(process.stdout.readline()) - approved_at), 1)
        process.kill()
    return found


def _wait_for_all(url: str, way: str, ids: list[str]) -> int:
    """Wait for every item in a thread of its own; say when all wait, and when the first has its verdict."""

    def slowly(seconds: float) -> None:  # a clock of its own makes the queue poll
        time.sleep(seconds)

    queue = open_queue(url, sleep=slowly) if way == "polling" else open_queue(url)
    say = threading.Lock()

    def wait(review_id: ReviewId) -> None:
        if queue.wait(review_id, _WAIT_S) is not None:
            with say:
                sys.stdout.write(f"{time.time()}\n")
                sys.stdout.flush()

    threads = [threading.Thread(target=wait, args=[ReviewId(each)], daemon=True) for each in ids]
    for thread in threads:
        thread.start()
    time.sleep(5 + len(ids) / 100)
    sys.stdout.write(f"{_READY}\n")
    sys.stdout.flush()
    for thread in threads:
        thread.join()
    return 0


def _measure(queue: SqlReviewQueue, seconds: float, name: str) -> dict[str, Any]:
    """Return how long submitting takes, one after the other with a pause between."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        _submit(queue, len(took), name)
        took.append(1000 * (time.perf_counter() - began))
        time.sleep(0.02)
    cuts = statistics.quantiles(took, n=100)
    return {
        "n": len(took),
        "median_ms": round(cuts[49], 2),
        "p95_ms": round(cuts[94], 2),
        "max_ms": round(max(took), 2),
    }


def _submit(queue: SqlReviewQueue, n: int, name: str = "waited") -> ReviewId:
    exchange = Exchange(question=f"What is {name} {n}?", prompt="Answer.", answer=f"It is {n}. " * 20)
    confidence = Confidence(value=0.0 if name == "waited" else 0.9)
    return queue.submit(
        exchange,
        Decision(step=HumanReview(), rule="bench", why="", exchange_id=exchange.id, confidence=confidence),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="a PostgreSQL database")
    parser.add_argument("--waiting", type=int, default=1000, help="callers that wait")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--json", help="also write the result to this file")
    parser.add_argument("--role", choices=_WAYS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
