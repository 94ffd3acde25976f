"""How many scoring replicas a number of answers a second needs: a simulation with service times that were measured.

A batch of n exchanges takes `--batch-ms` + n * `--each-ms` at a replica. Requests come at random times; each goes to
the less busy of two replicas that are drawn at random.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGETS = (10.0, 1_000.0, 100_000.0)
"""Answers a second."""
SPARE = 1.25
"""Replicas beyond what the mean load needs: bursts, restarts and deployments take some."""
_SIZES = (1, 16)
"""Sizes of the batches that are measured."""
_TRIES = 3
_SIMULATED = 64
"""Most replicas that are simulated; beyond that, each has the same share of the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What one scoring replica does."""

    batch_s: float
    """Seconds of a batch, however small."""
    each_s: float
    """Seconds that each exchange of it adds."""
    most: int = 32
    """Most exchanges in a batch."""

    def seconds(self, n: int) -> float:
        """Return how long a batch of `n` exchanges takes."""
        return self.batch_s + n * self.each_s

    @property
    def per_s(self) -> float:
        """Most answers a second, with full batches."""
        return self.most / self.seconds(self.most)


@dataclass(frozen=True, slots=True)
class Found:
    """What a simulation found."""

    p50_s: float
    p95_s: float
    p99_s: float
    batch: float
    """Mean number of exchanges in a batch."""
    busy: float
    """Share of the time in which a replica works."""


@dataclass(slots=True)
class _State:
    """One replica of a simulation."""

    waiting: deque[float] = field(default_factory=deque[float])
    """When the exchanges that wait came."""
    in_work: list[float] = field(default_factory=list[float])
    busy_s: float = 0.0

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.in_work)


def simulate(replica: Replica, n: int, per_s: float, *, arrivals: int = 40_000, seed: int = 1) -> Found:
    """Return how long callers wait at `n` replicas that get `per_s` requests a second together."""
    rng = random.Random(seed)  # noqa: S311 - load, not secrets
    states, ends, waits, sizes = [_State() for _ in range(n)], list[tuple[float, int]](), list[float](), list[int]()

    def begin(number: int, now: float) -> None:
        state = states[number]
        size = min(len(state.waiting), replica.most)
        if not size or state.in_work:
            return
        state.in_work = [state.waiting.popleft() for _ in range(size)]
        seconds = replica.seconds(size)
        state.busy_s += seconds
        sizes.append(size)
        heapq.heappush(ends, (now + seconds, number))

    def end_until(now: float) -> None:
        while ends and ends[0][0] <= now:
            at, number = heapq.heappop(ends)
            waits.extend(at - came for came in states[number].in_work)
            states[number].in_work = []
            begin(number, at)

    now = 0.0
    for _ in range(arrivals):
        now += rng.expovariate(per_s)
        end_until(now)
        chosen = min((rng.randrange(n), rng.randrange(n)), key=lambda number: states[number].load)
        states[chosen].waiting.append(now)
        begin(chosen, now)
    last = now
    end_until(float("inf"))
    waits = sorted(waits[arrivals // 10 :])  # without the beginning, when nobody waits yet

    def percentile(percent: int) -> float:
        return waits[min(len(waits) - 1, len(waits) * percent // 100)]

    busy = min(1.0, sum(state.busy_s for state in states) / (n * last))
    return Found(percentile(50), percentile(95), percentile(99), sum(sizes) / len(sizes), busy)


def needed(replica: Replica, per_s: float, *, p95_s: float) -> tuple[int, Found]:
    """Return how many replicas keep 95 % of the callers within a time, with some to spare, and what they then see.

    Raises:
        ValueError: not even an idle replica answers in that time.
    """
    if replica.seconds(1) > p95_s:
        msg = f"one exchange takes {replica.seconds(1):.3g} s and may take {p95_s:.3g} s: allow more time"
        raise ValueError(msg)
    n = math.ceil(per_s / replica.per_s)
    while True:
        simulated = min(n, _SIMULATED)
        found = simulate(replica, simulated, per_s * simulated / n)
        if found.p95_s <= p95_s:
            return (math.ceil(n * SPARE) if n > 1 else n), found
        n += max(1, n // 50)


def measure(scorer: str) -> Replica:
    """Return the service times of a packaged model on one processor core, in its own processor seconds.

    These hardly depend on what else the machine does. The times of two sizes of batches give both figures.
    """
    from benchmarks.serve_load import body_of
    from semgrad_guard.context import with_context
    from semgrad_guard.guard.assembly import profile_of, scorer_of
    from semgrad_guard.policy import policy_of
    from semgrad_guard.wire import ScoreRequest

    policy = policy_of(None, None)
    loaded = scorer_of(policy.scorer, scorer, profile_of(policy))
    forms = [ScoreRequest.model_validate(body_of(number)).exchanges[0] for number in range(_SIZES[-1])]
    exchanges = [with_context(form.to_exchange()) for form in forms]
    loaded.score(exchanges[0])  # loads the model

    def seconds(n: int) -> float:
        started = time.process_time()
        loaded.score_batch(exchanges[:n])
        return time.process_time() - started

    few, many = (min(seconds(n) for _ in range(_TRIES)) for n in _SIZES)
    each_s = (many - few) / (_SIZES[1] - _SIZES[0])
    return Replica(batch_s=max(0.0, few - _SIZES[0] * each_s), each_s=each_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how many replicas each number of answers needs."""
    parser = argparse.ArgumentParser(prog="serve_plan", description=__doc__)
    parser.add_argument("--batch-ms", type=float, help="milliseconds of a batch, however small")
    parser.add_argument("--each-ms", type=float, help="milliseconds that each exchange of it adds")
    parser.add_argument(
        "--measure", metavar="MODEL", help="measure both with a packaged model, on a core of this machine"
    )
    parser.add_argument("--max-batch", type=int, default=32, help="most exchanges in a batch")
    parser.add_argument("--p95-ms", type=float, default=1_000.0, help="time within which 95 %% are to be answered")
    parser.add_argument("--per-gpu", type=int, default=1, help="replicas that share a GPU; each is that much slower")
    parser.add_argument("--answers", type=float, nargs="+", default=TARGETS, help="answers a second")
    parser.add_argument("--json", help="file for the figures")
    asked = parser.parse_args(arguments)
    if asked.measure is None and (asked.batch_ms is None or asked.each_ms is None):
        parser.error("give --batch-ms and --each-ms, or --measure")
    if asked.measure is not None:
        replica = replace(measure(asked.measure), most=asked.max_batch)
        sys.stdout.write(f"measured: {1000 * replica.batch_s:.0f} ms + {1000 * replica.each_s:.0f} ms each\n")
    else:
        replica = Replica(batch_s=asked.batch_ms / 1000, each_s=asked.each_ms / 1000, most=asked.max_batch)
    shared = replace(replica, batch_s=replica.batch_s * asked.per_gpu, each_s=replica.each_s * asked.per_gpu)
    rows: list[dict[str, float]] = []
    sys.stdout.write(f"one replica: at most {shared.per_s:.3g} answers/s\n")
    for per_s in asked.answers:
        n, found = needed(shared, per_s, p95_s=asked.p95_ms / 1000)
        rows.append({"answers_per_s": per_s, "replicas": n, "p95_ms": 1000 * found.p95_s, "batch": found.batch})
        sys.stdout.write(
            f"{per_s:>9,.0f}/s: {n:>6,} replicas; p50 {1000 * found.p50_s:.0f}, p95 {1000 * found.p95_s:.0f} ms, "
            f"batches of {found.batch:.1f}\n"
        )
    if asked.json:
        Path(asked.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
