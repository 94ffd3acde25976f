"""Servers to put under load: the program itself as a process, and deployments on Ray whose scorer only sleeps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from semgrad_guard.flow import Fingerprint, Score
from semgrad_guard.serving import Limits, ServerSettings
from semgrad_guard.serving.settings import Replicas, ServerListening

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Sequence

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Exchange

PROGRAM = "from semgrad_guard.cli.app import main; main()"
LOG = Path("bench/serve.log")
"""What the servers say, a line for each request."""
_START_S = 300.0


class SleepingScorer:
    """Takes its time and computes nothing, so that the number of cores decides nothing."""

    name = "sleeper"

    def __init__(self, batch_s: float = 0.02, each_s: float = 0.002) -> None:
        """Keep the seconds that a batch takes, and those that each exchange in it adds."""
        self._batch_s, self._each_s = batch_s, each_s

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return a fixed fingerprint."""
        return Fingerprint(model="sleeper", dtype="none", template="none", settings="none", proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the length of the answer after a while."""
        (score,) = self.score_batch([exchange], timeout_s=timeout_s, cancel=cancel)
        if not isinstance(score, Score):
            raise score
        return score

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,  # noqa: ARG002 - it is always quick
        cancel: threading.Event | None = None,  # noqa: ARG002
    ) -> list[Score | ScoringError]:
        """Return the length of each answer after a while."""
        time.sleep(self._batch_s + self._each_s * len(exchanges))
        own = self.fingerprint()
        values = [float(len(one.answer)) for one in exchanges]
        return [
            Score(method="length", value=value, signals={"length": value}, fingerprint=own, model=self.name)
            for value in values
        ]


@dataclass
class Target:
    """A server under load."""

    url: str
    pids: Callable[[], list[int]]
    """Finds the processes whose memory is watched."""
    fronts: set[int] = field(default_factory=set[int])
    """The processes that were watched; more than at the start where one was replaced."""
    killed: list[str] = field(default_factory=list[str])
    """Replicas that were ended."""
    _ray: Any = None

    def kill_a_replica(self) -> None:
        """End one scoring replica as a crash does, where there are several."""
        if self._ray is None:
            return
        from ray import serve

        states = serve.status().applications["semgrad-guard"].deployments["scoring"].replica_states
        if sum(n for state, n in states.items() if str(getattr(state, "value", state)) == "RUNNING") < 2:
            return  # the last one has no successor yet
        actors = self._ray.util.list_named_actors(all_namespaces=True)
        names = sorted(one["name"] for one in actors if "#scoring#" in one["name"] and one["name"] not in self.killed)
        if names:
            self._ray.kill(self._ray.get_actor(names[0], namespace="serve"))
            self.killed.append(names[0])

    def memory_mb(self) -> float:
        """Return the resident memory of the watched processes."""
        pids = self.pids()
        self.fronts.update(pids)
        return sum(map(_resident_mb, pids))


def has_ray() -> bool:
    """Return whether Ray Serve is installed."""
    try:
        import ray.serve  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return True


@contextmanager
def program(*options: str) -> Generator[Target]:
    """Run `semgrad-guard serve` as long as the context lasts; what it says goes into a file."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, "serve", "--port", str(port), *options]
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)  # noqa: S603 - of this package
    try:
        target = Target(f"http://127.0.0.1:{port}", lambda: [process.pid])
        wait_until_ready(target.url)
        yield target
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def on_ray(n: int, limits: Limits, *, sleep_s: float = 0.02) -> Generator[Target]:
    """Run `n` scoring replicas that sleep so long for each batch, and their front, as long as the context lasts."""
    import ray

    from semgrad_guard.serving.ray import started

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray ends a proxy that answers no health check for 30 s, and its connections with it. Where other programs take all
    # cores, that measures them and not this server.
    for name in ("HEALTH", "READY"):
        os.environ.setdefault(f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S", "60")
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        port = free_port()
        settings = ServerSettings(limits=limits)
        replicas = Replicas(least=n, cpus=0.1)
        stop = started(settings, replicas, ServerListening(port=port), make=partial(SleepingScorer, sleep_s))
        try:
            target = Target(f"http://127.0.0.1:{port}", _front_pids, _ray=ray)
            wait_until_ready(target.url)
            yield target
        finally:
            stop()
    finally:
        ray.shutdown()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_until_ready(url: str) -> None:
    """Wait until a server has loaded its model."""
    ends_at = time.monotonic() + _START_S
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=30).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > ends_at:
            msg = f"the server at {url} was not ready within {_START_S:.0f} s: see {LOG}"
            raise TimeoutError(msg)
        time.sleep(0.5)


def _front_pids() -> list[int]:
    """Return the processes of this program's Ray that answer HTTP."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        is_front = title.startswith((b"ray::ServeReplica:semgrad-guard:front", b"ray::ProxyActor"))
        if is_front and _is_ours(int(folder.name)):
            found.append(int(folder.name))
    return found


def _is_ours(pid: int) -> bool:
    """Return whether a process descends from this one: another Ray may run on the machine."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
