"""SQLite files that are damaged in any place: errors of ours, and nothing is taken for stored that is not."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing

import pytest

from semgrad_guard.errors import ReviewError
from semgrad_guard.review import QueueSettings, open_queue
from tests.hostile_cases import CASES
from tests.review_queues import submit


@pytest.fixture(name="whole", scope="module")
def _whole(tmp_path_factory):
    """A file with some items in every state."""
    path = tmp_path_factory.mktemp("whole") / "review.db"
    with closing(open_queue(f"sqlite:///{path}")) as queue:
        ids = [submit(queue, n) for n in range(30)]
        for n, each in enumerate(ids[:20]):
            (queue.approve, queue.reject, queue.claim_item)[n % 3](each, "ann")
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def damage(path, rng) -> str:
    """Damage a file in one of the ways in which files are damaged."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "zero", "cut", "noise", "swap", "grow"])
    at = rng.randrange(len(data))
    if kind == "flip":
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    elif kind == "cut":
        del data[at:]
    elif kind == "noise":
        data[at : at + 512] = rng.randbytes(len(data[at : at + 512]))
    elif kind == "swap":
        one, other = (4096 * rng.randrange(max(1, len(data) // 4096)) for _ in range(2))
        data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]
    else:
        data += rng.randbytes(rng.randint(1, 9000))
    path.write_bytes(data)
    return kind


def test_a_damaged_file_is_an_error_of_ours(whole, tmp_path):
    """Every call, on every kind of damage: it works, or says that the queue cannot be used."""
    refused = 0
    for seed in range(CASES):
        rng = random.Random(seed)  # noqa: S311 - a test repeats itself
        path = tmp_path / f"{seed}.db"
        shutil.copy(whole, path)
        kind = damage(path, rng)
        with closing(open_queue(f"sqlite:///{path}", settings=QueueSettings(retry_s=0.05))) as queue:
            stored = None
            calls = {
                "list": queue.list,
                "count": queue.counts,
                "submit": lambda queue=queue, seed=seed: submit(queue, 1000 + seed),
                "claim": lambda queue=queue: queue.claim("bob"),
                "expire": queue.expire_deadlines,
                "search": lambda queue=queue: queue.search("metal"),
                "export": lambda queue=queue: list(queue.export()),
                "insight": queue.insight,
            }
            for name, call in calls.items():
                try:
                    result = call()
                except ReviewError:
                    refused += 1
                except Exception as error:
                    msg = f"case {seed}: {name} after {kind}: {type(error).__name__}: {error}"
                    raise AssertionError(msg) from error
                else:
                    stored = result if name == "submit" else stored
            if stored is not None:
                try:
                    assert queue.item(stored).id == stored
                except ReviewError:
                    assert kind != "grow"
        path.unlink()
    assert refused > 0
