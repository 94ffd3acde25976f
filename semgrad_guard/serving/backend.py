"""What all requests share: the scorer, the guard, the model that writes, counters, and how long anything may take."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response
from typing_extensions import override

from semgrad_guard.adapter_kit import Means, SinglePass, check_means
from semgrad_guard.errors import ContextTooLongError, ScoringEndedError
from semgrad_guard.extras import Lazy
from semgrad_guard.guard import Guard
from semgrad_guard.guard.assembly import LazyScorer, parts_of, profile_of, scorer_of
from semgrad_guard.guard.readiness import Given, check_ready, ready_policy
from semgrad_guard.policy import policy_of
from semgrad_guard.serving.batching import BatchesItself, BatchingScorer, ScoresByClaim
from semgrad_guard.serving.problems import ClientGoneError, TooSlowError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from semgrad_guard.flow import Exchange
    from semgrad_guard.policy import Policy
    from semgrad_guard.ports import Scorer
    from semgrad_guard.scoring import SemGradScorer
    from semgrad_guard.serving.settings import ServerSettings


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TENTHS = tuple(n / 10 for n in range(1, 11))


class Metrics:
    """The counters of one server; each has its own registry, so that several live in one process."""

    def __init__(self) -> None:
        """Make the counters."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "semgrad_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self._request_s = Histogram(
            "semgrad_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self._in_flight = Gauge("semgrad_requests_in_flight", "Requests being worked on.", registry=self.registry)
        self._scoring_s = Histogram(
            "semgrad_scoring_seconds", "Time of one scored batch.", buckets=_SECONDS, registry=self.registry
        )
        self._batch = Histogram(
            "semgrad_batch_size", "Exchanges scored together.", buckets=_SIZES, registry=self.registry
        )
        self._confidence = Histogram(
            "semgrad_confidence", "Calibrated confidence of answers.", buckets=_TENTHS, registry=self.registry
        )
        self._uncalibrated = Counter("semgrad_uncalibrated", "Answers without a confidence.", registry=self.registry)
        self._decisions = Counter("semgrad_decisions", "Decisions by action.", ["action"], registry=self.registry)

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Report how many exchanges wait to be scored, asked whenever somebody looks."""
        gauge = Gauge("semgrad_queue_length", "Exchanges that wait to be scored.", registry=self.registry)
        gauge.set_function(length)

    def began(self) -> None:
        """Count a request that begins."""
        self._in_flight.inc()

    def ended(self, path: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._in_flight.dec()
        self._requests.labels(path, str(status)).inc()
        self._request_s.labels(path).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Count a scored batch."""
        self._batch.observe(size)
        self._scoring_s.observe(seconds)

    def judged(self, confidence: float | None, action: str | None) -> None:
        """Count an answer that was judged, and what became of it."""
        if confidence is None:
            self._uncalibrated.inc()
        else:
            self._confidence.observe(confidence)
        if action is not None:
            self._decisions.labels(action).inc()

    def response(self) -> Response:
        """Return everything in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


T = TypeVar("T")
GRACE_S = 1.0
"""Further seconds in which work that keeps its time limit by itself may say what it has."""
_log = logging.getLogger("semgrad_guard.serving")


class Scoring:
    """The model that scores, and writes where it may: loaded once, and shared by all threads."""

    def __init__(
        self,
        settings: ServerSettings,
        policy: Policy,
        *,
        scorer: Scorer | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        """Prepare what is loaded later.

        Args:
            settings: which model, and limits.
            policy: says how to score, where the settings do not.
            scorer: a ready scorer in place of a local model; one that forms batches itself is asked as it is.
            on_batch: gets the size of each batch and the seconds it took.
        """
        self.settings, self.policy, self._on_batch = settings, policy, on_batch
        self._model = settings.model if settings.model is not None else settings.scorer
        self._plain: Scorer = scorer or scorer_of(policy.scorer, self._model, profile_of(policy))
        self.scorer = self._batching(self._plain)
        self._by_claim = Lazy(self._make_by_claim)
        self._writer = Lazy(lambda: SinglePass.of(self.local_scorer()))
        self.failure: str | None = None
        """Why the models could not be loaded."""
        self.is_loaded = False

    @property
    def by_claim(self) -> BatchesItself:
        """The scorer that also scores every sentence."""
        return self._by_claim.get()

    @property
    def writer(self) -> SinglePass:
        """The local model that writes answers and scores them in one pass."""
        return self._writer.get()

    def local_scorer(self) -> SemGradScorer:
        """Return the scorer of the local model, loaded."""
        from semgrad_guard.scoring import SemGradScorer  # loads torch

        found = self._plain.load() if isinstance(self._plain, LazyScorer) else self._plain
        if not isinstance(found, SemGradScorer):
            msg = f"{found.name} is no local model, and only a local model can write"
            raise TypeError(msg)
        return found

    def load(self) -> None:
        """Load the models; a failure is kept for `/readyz` and tried again by the next request."""
        try:
            self.scorer.fingerprint()
        except Exception as error:  # noqa: BLE001 - shown by /readyz; requests raise it again
            self.failure = f"{type(error).__name__}: {error}"
            _log.exception("the scoring model could not be loaded")
        else:
            self.is_loaded, self.failure = True, None

    def close(self) -> None:
        """Finish what was accepted."""
        self.scorer.close(self.settings.limits.shutdown_s)
        if self._by_claim.is_made:
            self.by_claim.close(self.settings.limits.shutdown_s)

    def check_length(self, exchange: Exchange) -> None:
        """Refuse an exchange with more tokens than the server's own limit.

        Raises:
            ContextTooLongError: it has more.
        """
        limit = self.settings.limits.tokens
        if limit is None or not isinstance(self.scorer, BatchingScorer):  # whoever forms the batches has the tokenizer
            return
        n_tokens = _n_tokens(exchange.prompt_ids) + _n_tokens(exchange.answer_ids)
        texts = "" if exchange.prompt_ids is not None else _text(exchange)
        texts += "" if exchange.answer_ids is not None else exchange.answer
        if texts:
            n_tokens += self._counted(texts, limit)
        if n_tokens > limit:
            raise ContextTooLongError(n_tokens, limit)

    def _counted(self, text: str, limit: int) -> int:
        """Return how many tokens a text has; no model makes more tokens than bytes."""
        if len(text.encode()) <= limit:
            return 0
        tokenizer: Any = self.local_scorer().model.tokenizer
        return len(tokenizer(text)["input_ids"])

    def _batching(self, scorer: Scorer) -> BatchesItself:
        if isinstance(scorer, BatchesItself):
            return scorer
        limits = self.settings.limits
        return BatchingScorer(
            scorer,
            window_s=limits.window_s,
            max_batch=limits.batch,
            max_waiting=limits.waiting,
            on_batch=self._on_batch,
        )

    def _make_by_claim(self) -> BatchesItself:
        if isinstance(self.scorer, ScoresByClaim):
            return self.scorer.by_claim
        if not isinstance(self._plain, LazyScorer) or self.policy.scorer.granularity == "sentence":
            return self.scorer
        settings = self.policy.scorer.model_copy(update={"granularity": "sentence"})
        return self._batching(scorer_of(settings, self.local_scorer().model, profile_of(self.policy)))


class Backend(Scoring):
    """The parts behind the routes. It is safe to share between threads and event loops."""

    def __init__(self, settings: ServerSettings, *, scorer: Scorer | None = None) -> None:
        """Check the settings and prepare what is loaded later.

        Args:
            settings: what to serve.
            scorer: a ready scorer in place of a local model.

        Raises:
            PolicyFileError: the policy has mistakes.
            ModelError: a model is not installed, missing or misspelt.
            CalibrationError: the profile cannot be read, or cannot keep the error rate that the policy asks for.
        """
        self.metrics = Metrics()
        super().__init__(settings, policy_for(settings, scorer), scorer=scorer, on_batch=self.metrics.batch)
        self.metrics.watch_queue(lambda: self.scorer.waiting)
        self.guard = Guard(parts_of(self.policy, self.scorer))
        if settings.model is not None or settings.upstream is not None:
            names = [name for name, _ in settings.fallbacks]
            check_means(self.guard, Means(fallbacks=names, may_have_more=True, advice="serve --fallback NAME=URL {}"))

    @override
    def close(self) -> None:
        """Finish what was accepted, and write out pending telemetry."""
        super().close()
        self.guard.close()

    def limit_s(self, seconds: float | None = None) -> float:
        """Return the seconds that a request may take: what its caller asks for, at most the server's limit."""
        most = self.settings.limits.seconds
        return most if seconds is None else min(most, seconds)

    async def work(self, request: Request, work: Callable[[threading.Event], T], seconds: float | None = None) -> T:
        """Do work in a thread, as long as the client waits and the server's time limit allows.

        Args:
            request: its client is watched.
            work: gets an event that is set when nobody waits any more.
            seconds: a shorter limit than the server's; the work should keep it by itself.

        Raises:
            TooSlowError: it took too long.
            ClientGoneError: the client closed the connection.
        """
        cancel = threading.Event()
        try:
            return await self.while_there(request, in_own_thread(work, cancel), seconds)
        except ScoringEndedError as error:
            raise TooSlowError(self.limit_s(seconds)) from error
        finally:
            cancel.set()

    async def while_there(self, request: Request, done: asyncio.Future[T], seconds: float | None = None) -> T:
        """Wait for something as long as the client waits and the server's time limit allows; see `work`."""
        limit_s = self.limit_s(seconds)
        gone = asyncio.ensure_future(_client_gone(request))
        try:
            both: list[asyncio.Future[Any]] = [done, gone]
            await asyncio.wait(both, timeout=limit_s + GRACE_S, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            raise ClientGoneError if gone.done() else TooSlowError(limit_s)
        finally:
            gone.cancel()
            done.cancel()


def in_own_thread(work: Callable[[threading.Event], T], cancel: threading.Event) -> asyncio.Future[T]:
    """Start work in a thread of its own and return its result as a future of the running loop.

    Threads here mostly wait for a batch, so a pool of a few would keep batches small; the gate bounds their number.
    """
    loop, context = asyncio.get_running_loop(), copy_context()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("T", result))

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(work, cancel)
        except BaseException as raised:  # noqa: BLE001 - passed on to whoever waits
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="semgrad-request", daemon=True).start()
    return future


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def policy_for(settings: ServerSettings, scorer: Scorer | None = None) -> Policy:
    """Return the policy that a server follows; nothing is loaded.

    Raises:
        PolicyFileError: the policy has mistakes.
        ModelError: a model is not installed, missing or misspelt.
        CalibrationError: the profile cannot be read, or cannot keep the error rate that the policy asks for.
    """
    given = Given(model=settings.model if settings.model is not None else settings.scorer, scorer=scorer)
    if settings.policy is not None and settings.profile is None:
        return ready_policy(settings.policy, given)
    policy = policy_of(settings.policy, settings.accept)
    if settings.profile is not None:
        named = policy.scorer.model_copy(update={"profile": settings.profile})
        policy = policy.model_copy(update={"scorer": named})
    check_ready(policy, given)
    return policy


def _n_tokens(ids: tuple[int, ...] | None) -> int:
    return len(ids) if ids is not None else 0


def _text(exchange: Exchange) -> str:
    prompt = exchange.prompt
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
