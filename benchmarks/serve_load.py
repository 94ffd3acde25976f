"""The server under load: what batches are worth, how long callers wait, what a second replica adds, and a long soak.

Every figure that is compared with another one comes from the same run. Ray is used where it is installed; without it,
the replicas are left out, and nothing is killed during the soak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.serve_targets import has_ray, on_ray, program
from semgrad_guard.serving import Limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.serve_targets import Target

CLIENTS = (1, 8, 32)
LOADS = (0.5, 0.9)
"""Shares of saturation at which waiting is measured."""
SOAK_LOAD = 0.8
KILL_EVERY_S = 30.0
_TRIES = 5
_GONE_AFTER_S = 0.03
_RNG = random.Random(1)  # noqa: S311 - load, not secrets
_PASSAGE = (
    "Oslo is the capital of Norway. The night train to Oslo leaves from platform 4 at 21:40 and takes eight hours; "
    "seats are sold until ten minutes before it leaves."
)


@dataclass
class Tally:
    """What became of the requests of one measurement."""

    seconds: list[float] = field(default_factory=list[float])
    """Of the requests that were answered."""
    refused: int = 0
    """Told to come again (429)."""
    lost: list[str] = field(default_factory=list[str])
    """Accepted, and not answered as they should be."""

    def summary(self, lasted_s: float) -> dict[str, Any]:
        """Return the figures of a report."""
        ordered = sorted(self.seconds) or [0.0]

        def slowest_ms(percent: int) -> float:
            return round(1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1)

        return {
            "answers_per_s": round(len(self.seconds) / lasted_s, 2),
            **{f"p{percent}_ms": slowest_ms(percent) for percent in (50, 95, 99)},
            "answered": len(self.seconds),
            "refused": self.refused,
            "lost": len(self.lost),
        }


def body_of(number: int) -> dict[str, Any]:
    """Return a request whose answer has a length of its own."""
    answer = f"It leaves at 21:40 from platform {number % 7}{'.' * (1 + number % 5)}"
    return {
        "exchanges": [{"id": str(number), "prompt": f"{_PASSAGE}\n\nWhen does train {number} leave?", "answer": answer}]
    }


class Load:
    """Asks a server, and keeps what became of it."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        """Keep the client, which is shared, and the server's address."""
        self._client, self._url, self._next = client, url, 0
        self.tally = Tally()

    async def ask(self) -> None:
        """Send one request and wait for its answer; one that is refused for now was not accepted."""
        self._next += 1
        number, started = self._next, time.perf_counter()
        try:
            answer = await self._client.post(f"{self._url}/v1/score", json=body_of(number))
        except httpx.HTTPError as error:
            self.tally.lost.append(f"{type(error).__name__}")
            return
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self.tally.refused += 1
            return
        result = answer.json().get("results", [{}])[0] if answer.is_success else {}
        if result.get("id") != str(number) or result.get("score") is None:
            self.tally.lost.append(f"{answer.status_code}: {answer.text[:200]}")
            return
        self.tally.seconds.append(time.perf_counter() - started)

    async def vanish(self) -> None:
        """Ask, and hang up before the answer is there."""
        try:
            await self._client.post(f"{self._url}/v1/score", json=body_of(0), timeout=_GONE_AFTER_S)
        except httpx.HTTPError:
            return

    async def oversize(self, limit: int) -> None:
        """Send more than is allowed; anything but a refusal counts as lost."""
        try:
            answer = await self._client.post(f"{self._url}/v1/score", content=b"x" * (limit + 1))
        except httpx.HTTPError:  # the server may hang up while it is sent
            return
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self.tally.refused += 1
        elif answer.status_code != httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            self.tally.lost.append(f"oversize: {answer.status_code}")

    async def read_slowly(self) -> None:
        """Ask, and take the answer in small pieces with long pauses."""
        try:
            async with self._client.stream("POST", f"{self._url}/v1/score", json=body_of(0)) as answer:
                async for _ in answer.aiter_bytes(256):
                    await asyncio.sleep(0.2)
        except httpx.HTTPError as error:
            self.tally.lost.append(f"slow reader: {type(error).__name__}")


async def closed(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Measure so many clients that each ask again as soon as they are answered."""
    async with _client() as client:
        load = Load(client, url)
        for _ in range(min(clients, _TRIES)):
            await load.ask()  # the first answers load and compile things
        load.tally, ends_at, started = Tally(), time.perf_counter() + seconds, time.perf_counter()

        async def one() -> None:
            while time.perf_counter() < ends_at:
                await load.ask()

        await asyncio.gather(*(one() for _ in range(clients)))
        return {"clients": clients, **load.tally.summary(time.perf_counter() - started)}


async def open_loop(url: str, per_s: float, seconds: float) -> dict[str, Any]:
    """Measure requests that come at random times, however long the earlier ones take."""
    async with _client() as client:
        load, started = Load(client, url), time.perf_counter()
        await arrivals(load.ask, per_s, seconds)
        return {"asked_per_s": round(per_s, 2), **load.tally.summary(time.perf_counter() - started)}


async def arrivals(ask: Callable[[], Awaitable[None]], per_s: float, seconds: float) -> None:
    """Start requests at random times, `per_s` of them a second on average, and wait for all of them."""
    ends_at, tasks = time.perf_counter() + seconds, set[asyncio.Future[None]]()
    while time.perf_counter() < ends_at:
        task = asyncio.ensure_future(ask())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(_RNG.expovariate(per_s))
    await asyncio.gather(*tasks)


async def soak(target: Target, per_s: float, seconds: float, limit: int) -> dict[str, Any]:
    """Measure a long load with callers that misbehave and replicas that die."""
    async with _client() as client:
        load, memory, started = Load(client, target.url), list[float](), time.perf_counter()
        nuisances = [load.vanish, load.read_slowly, lambda: load.oversize(limit)]

        async def ask() -> None:
            await (_RNG.choice(nuisances)() if _RNG.random() < 0.1 else load.ask())

        async def watch() -> None:
            killed_at = started
            while True:
                await asyncio.sleep(2)
                memory.append(target.memory_mb())
                if time.perf_counter() - killed_at > KILL_EVERY_S:
                    killed_at = time.perf_counter()
                    await asyncio.to_thread(target.kill_a_replica)

        watching = asyncio.ensure_future(watch())
        await arrivals(ask, per_s, seconds)
        watching.cancel()
        quarter = max(1, len(memory) // 4)
        early, late = fmean(memory[quarter : 2 * quarter] or memory), fmean(memory[-quarter:])
        found = {
            "seconds": round(time.perf_counter() - started, 1),
            "asked_per_s": round(per_s, 2),
            **load.tally.summary(time.perf_counter() - started),
            "replicas_killed": len(target.killed),
            "fronts_seen": len(target.fronts),
            "memory_early_mb": round(early, 1),
            "memory_late_mb": round(late, 1),
            "memory_growth": round(late / early, 3) if early else None,
            "losses": Counter(load.tally.lost),
        }
    _say(
        f"soak of {found['seconds']:.0f} s at {per_s:.0f}/s: {found['answered']} answered, {found['lost']} lost, "
        f"{found['refused']} refused, {found['replicas_killed']} replicas killed, p95 {found['p95_ms']:g} ms, memory "
        f"{found['memory_early_mb']:g} -> {found['memory_late_mb']:g} MB"
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as asked; return 1 when an accepted request was lost."""
    asked = _parser().parse_args(arguments)
    report: dict[str, Any] = {"cores": os.cpu_count(), "load_average_at_start": os.getloadavg()[0], "ray": has_ray()}
    if "batching" in asked.only:
        report["batching"] = _batching(asked)
    if "replicas" in asked.only:
        report["replicas"] = _replicas(asked)
    if "soak" in asked.only:
        report["soak"] = _soak(asked)
    report["load_average_at_end"] = os.getloadavg()[0]
    if asked.json:
        Path(asked.json).parent.mkdir(parents=True, exist_ok=True)
        Path(asked.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(bool(report.get("soak", {}).get("lost")))


def _batching(asked: argparse.Namespace) -> dict[str, Any]:
    """Compare micro-batches with one by one on a real model, and measure waiting below saturation."""
    found: dict[str, Any] = {"scorer": asked.scorer}
    for name, options in (("one_by_one", ["--max-batch", "1", "--window-ms", "0"]), ("batched", [])):
        with program("--scorer", asked.scorer, *options) as target:
            rows = [asyncio.run(closed(target.url, clients, asked.seconds)) for clients in CLIENTS]
            found[name] = rows
            for row in rows:
                _say(f"{name}, {row['clients']} clients: {row['answers_per_s']:g}/s, p95 {row['p95_ms']:g} ms")
            if name == "batched":
                most = max(row["answers_per_s"] for row in rows)
                found["waiting"] = [
                    {"load": load, **asyncio.run(open_loop(target.url, load * most, 2 * asked.seconds))}
                    for load in LOADS
                ]
                for row in found["waiting"]:
                    _say(f"at {row['load']:.0%} of {most:g}/s: p50 {row['p50_ms']:g}, p95 {row['p95_ms']:g}, "
                         f"p99 {row['p99_ms']:g} ms")  # fmt: skip
    pairs = zip(found["batched"], found["one_by_one"], strict=True)
    found["ratios"] = [round(a["answers_per_s"] / max(0.01, b["answers_per_s"]), 2) for a, b in pairs]
    _say(f"batched against one by one at {CLIENTS} clients: {found['ratios']} times as many answers")
    return found


def _replicas(asked: argparse.Namespace) -> dict[str, Any]:
    """Compare one replica with two, whose scorers sleep, one exchange at a time."""
    if not has_ray():
        _say("replicas: left out, as Ray is not installed (pip install 'semgrad-guard[ray]')")
        return {"left_out": "Ray is not installed"}
    limits, found = Limits(batch=1, window_s=0.0), dict[str, Any]()
    for n in (1, 2):
        with on_ray(n, limits, sleep_s=asked.sleep) as target:
            found[str(n)] = asyncio.run(closed(target.url, 8, asked.seconds))
            _say(f"{n} replicas: {found[str(n)]['answers_per_s']:g}/s")
    found["ratio"] = round(found["2"]["answers_per_s"] / found["1"]["answers_per_s"], 2)
    _say(f"two replicas give {found['ratio']:g} times the answers of one")
    return found


def _soak(asked: argparse.Namespace) -> dict[str, Any]:
    limits = Limits(batch=8, body_bytes=1_000_000)
    if not has_ray():
        _say("soak: without Ray no replica is killed")
        serving: Any = program("--scorer", asked.scorer, "--max-body-mb", "0.95367431640625")
    else:
        serving = on_ray(2, limits)
    with serving as target:
        most = asyncio.run(closed(target.url, 32, min(20.0, asked.soak / 4)))["answers_per_s"]
        _say(f"saturation before the soak: {most:g}/s")
        return {"saturation_per_s": most, **asyncio.run(soak(target, SOAK_LOAD * most, asked.soak, limits.body_bytes))}


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_load", description=__doc__)
    parts = ("batching", "replicas", "soak")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="leave the other parts out")
    parser.add_argument("--scorer", default="smollm2-135m", help="model for the comparison of batches")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument("--sleep", type=float, default=0.2, help="seconds that a scorer sleeps to compare replicas")
    parser.add_argument("--soak", type=float, default=600.0, help="length of the soak")
    parser.add_argument("--json", help="file for the report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
