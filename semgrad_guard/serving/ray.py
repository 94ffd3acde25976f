"""The server on many processes and machines: the same application as deployments of Ray Serve.

Two deployments share the work. The `front` answers HTTP: keys, limits, the upstream, the policy, the review queue and
the log. It loads no model. The `scoring` replicas hold the model; the front sends each exchange to one of them, and to
another one where that one dies. Reading an answer again changes nothing, so no accepted request is lost with a replica,
and since only the front answers, none is answered twice.

Each replica forms batches with its own `BatchingScorer` and not with `@serve.batch`: that groups prompts that begin
alike, leaves out what nobody waits for any more, and gives each exchange its own error.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semgrad_guard.deadline import Deadline
from semgrad_guard.errors import ScoringEndedError, ScoringError
from semgrad_guard.extras import require
from semgrad_guard.guard.assembly import profile_of, scorer_of
from semgrad_guard.serving.app import create_app
from semgrad_guard.serving.backend import Scoring, in_own_thread, policy_for
from semgrad_guard.serving.batching import BatchingScorer, BusyError, ClosedError, start_of
from semgrad_guard.serving.gate import KeyFile
from semgrad_guard.serving.problems import problem_of
from semgrad_guard.serving.settings import Limits, Replicas, ServerSettingError, ServerSettings, settings_of
from semgrad_guard.wire import ProblemForm, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi import FastAPI

    from semgrad_guard.flow import Exchange, Fingerprint, Score
    from semgrad_guard.ports import Scorer
    from semgrad_guard.serving.settings import ServerListening

    Scored = list[Score | ProblemForm] | ProblemForm
    """What a replica returns: a score or error for each exchange, or why it took none of them."""

APP, FRONT, SCORING = "semgrad-guard", "front", "scoring"
"""Names of the Serve application and of its deployments."""
HEALTH_S = 10.0
"""How often a replica is asked whether it is well."""
_LOOK_FIRST_S, _LOOK_LAST_S = 0.05, 1.0
_SPARE = 64
"""Requests beyond the limit that reach the front, which answers them with 429; Ray answers further ones so."""
_TRANSIENT = frozenset({
    "RayActorError", "ActorDiedError", "ActorUnavailableError", "ReplicaUnavailableError", "NodeDiedError",
    "WorkerCrashedError", "ObjectLostError", "OwnerDiedError",
})  # fmt: skip
"""Errors of Ray that say that a replica is gone, so that another one may be asked."""


def options_of(replicas: Replicas, limits: Limits) -> dict[str, Any]:
    """Return the options of the scoring deployment."""
    ongoing = 4 * limits.batch  # one batch is scored while the next ones gather
    number: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most is not None and replicas.most > replicas.least:
        number = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                "target_ongoing_requests": limits.batch,
            }
        }
    return {
        **number,
        "max_ongoing_requests": ongoing,
        "max_queued_requests": limits.waiting,
        "ray_actor_options": {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        "health_check_period_s": HEALTH_S,
        "health_check_timeout_s": 3 * HEALTH_S,
        "graceful_shutdown_timeout_s": limits.shutdown_s,
    }


# --- the replicas that score ------------------------------------------------------------------------------------------


class ScoringReplica:
    """One process that scores, with a model of its own."""

    def __init__(self, settings: ServerSettings, make: Callable[[], Scorer] | None = None) -> None:
        """Load the model.

        Args:
            settings: which model, and limits.
            make: makes a ready scorer in place of a local model.

        Raises:
            ModelError: the model cannot be loaded; Ray tries another process.
        """
        scorer = None if make is None else make()
        self._scoring = Scoring(settings, policy_for(settings, scorer), scorer=scorer)
        self._scoring.scorer.fingerprint()

    async def score(
        self, exchanges: Sequence[Exchange], *, by_claim: bool, timeout_s: float | None, alike: str
    ) -> Scored:
        """Return a score or error for each exchange.

        Args:
            exchanges: what to score.
            by_claim: whether every sentence is scored too.
            timeout_s: seconds after which nobody waits any more.
            alike: equal for prompts that begin alike; the router reads it.
        """
        del alike
        cancel = threading.Event()
        try:
            return await in_own_thread(lambda gone: self._scored(exchanges, timeout_s, gone, by_claim=by_claim), cancel)
        finally:
            cancel.set()  # also where Ray cancels the call

    async def fingerprint(self, *, proxy: bool, by_claim: bool) -> Fingerprint:
        """Return what the scores depend on apart from the exchange."""
        scorer = self._scoring.by_claim if by_claim else self._scoring.scorer
        return scorer.fingerprint(proxy=proxy)

    def check_health(self) -> None:
        """Raise where this replica scores nothing any more, so that Ray replaces it.

        Raises:
            ClosedError: its thread ended.
            ScoringEndedError: a batch takes longer than any request may.
        """
        scorer = self._scoring.scorer
        if isinstance(scorer, BatchingScorer):
            if not scorer.is_alive:
                raise ClosedError
            if scorer.busy_s > self._scoring.settings.limits.seconds + 3 * HEALTH_S:
                raise ScoringEndedError

    def _scored(
        self, exchanges: Sequence[Exchange], timeout_s: float | None, gone: threading.Event, *, by_claim: bool
    ) -> Scored:
        scorer = self._scoring.by_claim if by_claim else self._scoring.scorer
        found: dict[int, Score | ScoringError] = {}
        for number, exchange in enumerate(exchanges):
            try:
                self._scoring.check_length(exchange)
            except ScoringError as error:
                found[number] = error
        pending = [number for number in range(len(exchanges)) if number not in found]
        try:
            scores = scorer.score_batch([exchanges[n] for n in pending], timeout_s=timeout_s, cancel=gone)
        except ScoringError as error:  # as values: errors with arguments of their own do not survive pickling
            return problem_of(error)
        found.update(zip(pending, scores, strict=True))
        ordered = (found[number] for number in range(len(exchanges)))
        return [problem_of(one) if isinstance(one, ScoringError) else one for one in ordered]


# --- the front's side -------------------------------------------------------------------------------------------------


class RayScorer:
    """A `Scorer` whose work the scoring replicas do. It is safe to share between threads."""

    def __init__(self, handle: Any, name: str, limits: Limits, *, is_by_claim: bool = False) -> None:
        """Keep the handle of the scoring deployment.

        Args:
            handle: a `DeploymentHandle`.
            name: readable name of the scoring model.
            limits: how many exchanges travel together.
            is_by_claim: whether every sentence is scored too.
        """
        self.name = name
        self._handle, self._limits, self._is_by_claim = handle, limits, is_by_claim
        self._lock, self._waiting = threading.Lock(), 0
        self._fingerprints: dict[bool, Fingerprint] = {}

    @property
    def by_claim(self) -> RayScorer:
        """The scorer that also scores every sentence."""
        return RayScorer(self._handle, self.name, self._limits, is_by_claim=True)

    @property
    def waiting(self) -> int:
        """How many exchanges wait for their scores."""
        return self._waiting

    def close(self, timeout_s: float | None = None) -> None:
        """Do nothing: requests that were accepted are waited for by whoever asked, and the replicas outlive this."""

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return what the scores depend on apart from the exchange; asked once."""
        if proxy not in self._fingerprints:
            ask = self._handle.fingerprint
            call = _Call(lambda: ask.remote(proxy=proxy, by_claim=self._is_by_claim), Deadline.after(None), None)
            self._fingerprints[proxy] = call.result()
        return self._fingerprints[proxy]

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the score of one exchange.

        Raises:
            BusyError: too many exchanges wait.
            ScoringError: see `Scorer.score`.
        """
        if exchange.score is not None:
            return exchange.score
        (result,) = self.score_batch([exchange], timeout_s=timeout_s, cancel=cancel)
        if isinstance(result, ScoringError):
            raise result
        return result

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        """Return one score or error for each exchange, in order; many are shared out among the replicas.

        Raises:
            BusyError: too many exchanges wait.
        """
        deadline, most = Deadline.after(timeout_s), self._limits.batch
        with self._lock:
            self._waiting += len(exchanges)
        try:
            groups = [exchanges[at : at + most] for at in range(0, len(exchanges), most)]
            calls = [_Call(self._asking(group, deadline), deadline, cancel) for group in groups]
            return [result for group, call in zip(groups, calls, strict=True) for result in self._results(group, call)]
        finally:
            with self._lock:
                self._waiting -= len(exchanges)

    def _asking(self, group: Sequence[Exchange], deadline: Deadline) -> Callable[[], Any]:
        alike = hashlib.sha256(repr(start_of(group[0])).encode()).hexdigest()

        def ask() -> Any:
            left_s = deadline.remaining_s()
            return self._handle.score.remote(group, by_claim=self._is_by_claim, timeout_s=left_s, alike=alike)

        return ask

    def _results(self, group: Sequence[Exchange], call: _Call) -> list[Score | ScoringError]:
        try:
            scored: Scored = call.result()
        except ScoringEndedError as error:
            return [error] * len(group)
        except Exception as error:
            if _name_of(error) == "BackPressureError":
                raise BusyError(self._waiting, self._limits.waiting, 1.0) from error
            raise
        if isinstance(scored, ProblemForm):
            raise _busy_or_other(scored)
        return [error_of(one) if isinstance(one, ProblemForm) else one for one in scored]


@dataclass(slots=True)
class _Call:
    """One call of a replica, made again at another one while replicas die."""

    ask: Callable[[], Any]
    deadline: Deadline
    cancel: threading.Event | None
    response: Any = field(init=False)

    def __post_init__(self) -> None:
        """Ask."""
        self._ask()

    def _ask(self) -> None:
        # In a context of its own: calls of one request would share its id, by which routers tell calls apart.
        self.response = Context().run(self.ask)

    def result(self) -> Any:
        """Return what a replica returned.

        Raises:
            ScoringEndedError: nobody waits any more.
        """
        look_s = _LOOK_FIRST_S
        while True:
            if self.deadline.remaining_s() == 0 or (self.cancel is not None and self.cancel.is_set()):
                self.response.cancel()
                raise ScoringEndedError
            try:
                found = self.response.result(timeout_s=look_s)
            except TimeoutError:  # hundreds may wait, so they look more and more rarely whether they are still wanted
                look_s = min(2 * look_s, _LOOK_LAST_S)
                continue
            except Exception as error:
                if _name_of(error) not in _TRANSIENT:
                    raise
                _pause()
                self._ask()
                continue
            if not (isinstance(found, ProblemForm) and found.type == ClosedError.__name__):
                return found
            _pause()  # it is shutting down, and another one is not
            self._ask()


def _pause() -> None:
    """Let Ray notice that a replica is gone, before another one is asked for."""
    threading.Event().wait(_LOOK_FIRST_S)


def _name_of(error: Exception) -> str:
    """Return the class of an error of Ray; one that was raised in a replica comes in a class of several bases."""
    known = (kind.__name__ for kind in type(error).__mro__)
    return next((name for name in known if name in _TRANSIENT or name == "BackPressureError"), type(error).__name__)


def _busy_or_other(problem: ProblemForm) -> ScoringError:
    if problem.type == BusyError.__name__:
        return BusyError(**problem.details)
    return error_of(problem)


_Router: Any = require("ray.serve.request_router", extra="ray").RequestRouter


class PromptRouter(_Router):  # type: ignore[misc] # pyright: ignore[reportUntypedBaseClass] - Ray may be absent
    """Sends prompts that begin alike to the same replica, as they are scored together only where they meet.

    A replica with `slack` more calls than the least busy one is passed over, so that a popular beginning does not wait
    while others idle. When replicas come and go, only the prompts of these move (rendezvous hashing).
    """

    def initialize_state(self, slack: int = 32) -> None:
        """Keep how many more calls the preferred replica may have."""
        self._slack = slack

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Return the replicas in groups, the first group to be tried first."""
        if not candidate_replicas:
            return []
        alike = ""
        if pending_request is not None:
            alike = pending_request.kwargs.get("alike", "")
            pending_request.routing_context.should_backoff = True  # all replicas are named: wait before the next look
        lengths = [self.replica_queue_len_cache.get(one.replica_id) or 0 for one in candidate_replicas]
        number = preferred([str(one.replica_id.unique_id) for one in candidate_replicas], alike)
        if lengths[number] > min(lengths) + self._slack:
            return [candidate_replicas]  # Ray takes the one with the fewest calls
        first = candidate_replicas[number]
        return [[first], [one for one in candidate_replicas if one is not first]]


def preferred(names: Sequence[str], alike: str) -> int:
    """Return the number of the replica that prompts with a common beginning go to."""
    weights = [hashlib.sha256(f"{alike} {name}".encode()).digest() for name in names]
    return max(range(len(names)), key=lambda number: weights[number])


# --- the application --------------------------------------------------------------------------------------------------


def build(
    settings: ServerSettings,
    replicas: Replicas,
    *,
    keys: Path | None = None,
    make: Callable[[], Scorer] | None = None,
) -> Any:
    """Return the Ray Serve application.

    Args:
        settings: what it serves. Paths are read where the processes run, so every machine needs the files.
        replicas: how many processes score.
        keys: the file of keys that callers need.
        make: makes, in each replica, a ready scorer in place of a local model.

    Raises:
        MissingExtraError: Ray is not installed.
        ServerSettingError: the settings cannot be served this way.
        PolicyFileError: the policy has mistakes.
        ModelError: a model is not installed, missing or misspelt.
        CalibrationError: the profile cannot be read, or cannot keep the error rate that the policy asks for.
    """
    serve: Any = require("ray.serve", extra="ray")
    if settings.model is not None:
        msg = (
            "a model that writes keeps its answers in one process: run `semgrad-guard serve --model` on each machine, "
            "and give that address as --upstream here, or use a model server"
        )
        raise ServerSettingError(msg)
    settings = _anywhere(settings)
    policy_for(
        settings, None if make is None else make()
    )  # what cannot work is said here, and not by a replica that Ray starts again and again
    limits = settings.limits
    router = {"request_router_class": PromptRouter, "request_router_kwargs": {"slack": limits.batch}}
    scoring = serve.deployment(ScoringReplica).options(
        name=SCORING, request_router_config=router, **options_of(replicas, limits)
    )
    file = None if keys is None else keys.absolute()

    def front() -> FastAPI:
        return front_app(settings, file, make)

    deployment = serve.deployment(serve.ingress(front)()).options(
        name=FRONT,
        num_replicas=replicas.fronts,
        max_ongoing_requests=limits.requests + _SPARE,
        max_queued_requests=_SPARE,
        backpressure_config={"status_code": HTTPStatus.TOO_MANY_REQUESTS, "retry_after_s": 1},
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=limits.shutdown_s,
    )
    alone = replace(settings, upstream=None, upstream_key=None, fallbacks=(), own_weights=False)
    return deployment.bind(scoring.bind(alone, make))


def front_app(settings: ServerSettings, keys: Path | None, make: Callable[[], Scorer] | None = None) -> FastAPI:
    """Return the application of a front, whose scores come from the scoring replicas."""
    serve: Any = require("ray.serve", extra="ray")
    ready = None if make is None else make()
    policy = policy_for(settings, ready)
    name = (ready or scorer_of(policy.scorer, settings.scorer, profile_of(policy))).name
    scorer = RayScorer(serve.get_deployment_handle(SCORING), name, settings.limits)
    return create_app(settings, keys=None if keys is None else KeyFile(keys), scorer=scorer)


def application(args: Mapping[str, Any]) -> Any:
    """Return the application for a Serve config file, such as a RayService's; see `settings_of` for its `args`."""
    settings, replicas, keys = settings_of(args)
    return build(settings, replicas, keys=keys)


def _anywhere(settings: ServerSettings) -> ServerSettings:
    """Return settings whose paths hold in any folder, as processes of Ray have folders of their own."""

    def absolute(value: Any) -> Any:
        is_path = isinstance(value, str | Path) and Path(value).exists()
        return type(value)(Path(value).absolute()) if is_path else value

    return replace(
        settings,
        policy=absolute(settings.policy),
        profile=absolute(settings.profile),
        scorer=absolute(settings.scorer),
    )


# --- running it -------------------------------------------------------------------------------------------------------


def serve_on_ray(
    settings: ServerSettings, replicas: Replicas, listening: ServerListening, *, keys: Path | None = None
) -> None:
    """Serve until interrupted; what was accepted by then is finished.

    The cluster is that of the variable `RAY_ADDRESS`, or the one that runs on this machine, or a new one.

    Args:
        settings: what it serves.
        replicas: how many processes score.
        listening: where this machine listens.
        keys: the file of keys that callers need.

    Raises:
        SemGradGuardError: see `build`.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with_ray = started(settings, replicas, listening, keys=keys)
    try:
        stop.wait()
    finally:
        with_ray()


def started(
    settings: ServerSettings,
    replicas: Replicas,
    listening: ServerListening,
    *,
    keys: Path | None = None,
    make: Callable[[], Scorer] | None = None,
) -> Callable[[], None]:
    """Start to serve, and return the function that stops it once what was accepted is finished; see `build`."""
    ray: Any = require("ray", extra="ray")
    serve: Any = require("ray.serve", extra="ray")
    application = build(settings, replicas, keys=keys, make=make)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, logging_level="warning")
    http = {"host": listening.host, "port": listening.port}
    if listening.certificate is not None:
        http |= {"ssl_certfile": str(listening.certificate), "ssl_keyfile": str(listening.key)}
    serve.start(http_options=http)
    serve.run(application, name=APP, route_prefix="/")

    def stop() -> None:
        serve.shutdown()
        if is_ours:
            ray.shutdown()

    return stop
