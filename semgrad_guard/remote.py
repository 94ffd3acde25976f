"""A scorer in another process: `RemoteScorer` asks a server that `semgrad-guard serve` runs. Loads no model library."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay, wait_random_exponential

from semgrad_guard.errors import (
    OtherScorerError,
    ScorerRefusedError,
    ScorerUnavailableError,
    ScoringEndedError,
    ScoringError,
)
from semgrad_guard.flow import Fingerprint
from semgrad_guard.wire import (
    MAX_EXCHANGES,
    ModelList,
    ScoreReply,
    ScoreResult,
    TooLargeError,
    WireError,
    body_of,
    error_of,
    exchange_fields,
    read_json,
    score_from_fields,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from concurrent.futures import Future

    import httpx

    from semgrad_guard.flow import Exchange, Score

T = TypeVar("T")
Form = TypeVar("Form", bound=BaseModel)

_LOOK_EVERY_S = 0.05
"""How often a waiting thread looks whether it is still wanted."""
_GRACE_S = 1.0
"""Seconds that a server gets past the time limit to say itself what ended."""
_LONGEST_MESSAGE = 2000
"""Characters of a server's message that are repeated."""
_AGAIN = frozenset({429, 502, 503, 504})


class RemoteScorer:
    """Scores exchanges at a server; implements `ports.Scorer`. It is safe to share between threads and after a fork.

    The first answer of the server says which model, template and settings it scores with; from then on every score has
    to be of these, so that another server behind the same address is refused and not believed.

    Example:
        >>> scorer = RemoteScorer("http://127.0.0.1:8788")  # doctest: +SKIP
        >>> Guard.from_yaml(accept=0.7, scorer=scorer)  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 - each is a choice of the caller with a usual value
        self,
        url: str,
        *,
        key: str | None = None,
        expected: Fingerprint | None = None,
        method: str | None = None,
        claims: bool = False,
        timeout_s: float = 60.0,
        retry_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Keep where the server is; it is asked when the first answer is scored.

        Args:
            url: address of the server, such as `http://127.0.0.1:8788`.
            key: key that the server wants, from `semgrad-guard keys add`.
            expected: what the scores must come from, such as the fingerprint of the profile that reads them: model and
                template are compared. `None` takes what the server says first.
            method: signal used as the score's value in place of the server's.
            claims: also score every sentence.
            timeout_s: seconds for one call that states no limit.
            retry_s: seconds for which a server that cannot be reached, or is busy, is asked again; never beyond the
                time limit.
            transport: sends the requests, in place of the network.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._expected, self._method, self._claims = expected, method, claims
        self._timeout_s, self._retry_s, self._transport = timeout_s, retry_s, transport
        self._known: Fingerprint | None = None
        self._name = self.url
        self._connections: _Connections | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Readable name of the scoring model; the server's address until it has answered."""
        return self._name

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return what the server's scores depend on; the server is asked once.

        Raises:
            ScorerUnavailableError: the server cannot be reached.
            OtherScorerError: it scores with another model or template than expected.
        """
        known = self._known
        if known is None:
            known = self._wait(self._ask_fingerprint(), self._timeout_s, None)
        return replace(known, proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the score of one exchange; a score of this server that came along with the answer is used as it is.

        Raises:
            ScoringEndedError: the time was over, or `cancel` was set; the server stops working on it.
            ScorerUnavailableError: the server could not be reached in time.
            OtherScorerError: the score comes from another model or template than expected.
            ScoringError: the exchange cannot be scored.
        """
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
        """Return one score or error for each exchange, in order; see `score`."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return self._wait(self._score_all(exchanges, limit_s), limit_s, cancel)
        except ScoringError as error:
            return [error] * len(exchanges)

    async def ascore(self, exchange: Exchange, *, timeout_s: float | None = None) -> Score:
        """Same as `score`, without blocking the event loop; cancelling the task ends the request."""
        (result,) = await self.ascore_batch([exchange], timeout_s=timeout_s)
        if isinstance(result, ScoringError):
            raise result
        return result

    async def ascore_batch(
        self, exchanges: Sequence[Exchange], *, timeout_s: float | None = None
    ) -> list[Score | ScoringError]:
        """Same as `score_batch`, without blocking the event loop; cancelling the task ends the request."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return await asyncio.wrap_future(self._start(self._score_all(exchanges, limit_s)))
        except ScoringError as error:
            return [error] * len(exchanges)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _score_all(self, exchanges: Sequence[Exchange], limit_s: float) -> list[Score | ScoringError]:
        ends_at = time.monotonic() + limit_s
        found: dict[int, Score | ScoringError] = {}
        for number, exchange in enumerate(exchanges):
            if exchange.score is not None and await self._is_own(exchange.score):
                found[number] = exchange.score
        pending = [number for number in range(len(exchanges)) if number not in found]
        for start in range(0, len(pending), MAX_EXCHANGES):
            part = pending[start : start + MAX_EXCHANGES]
            results = await self._score_part([exchanges[number] for number in part], ends_at)
            found.update(zip(part, results, strict=True))
        return [found[number] for number in range(len(exchanges))]

    async def _score_part(self, exchanges: Sequence[Exchange], ends_at: float) -> list[Score | ScoringError]:
        fields = [{**exchange_fields(replace(exchange, score=None)), "metadata": {}} for exchange in exchanges]
        body = {"exchanges": fields, "claims": self._claims}
        reply = await self._send(ScoreReply, "POST", "/v1/score", ends_at, body)
        if len(reply.results) != len(exchanges):
            why = f"it answered {len(reply.results)} results to {len(exchanges)} exchanges"
            raise ScorerRefusedError(self.url, 200, why)
        self._accept(Fingerprint(**reply.fingerprint.model_dump()))
        self._name = reply.model
        return [self._score_of(result) for result in reply.results]

    def _score_of(self, result: ScoreResult) -> Score | ScoringError:
        if result.score is None:
            return error_of(result.error)
        try:
            score = score_from_fields(result.score.model_dump())
        except WireError as error:
            return ScoringError(f"the server at {self.url} sent no score: {error.why}")
        try:
            self._accept(replace(score.fingerprint, proxy=False))
        except OtherScorerError as error:
            return error
        if self._method is None or self._method == score.method:
            return score
        if self._method not in score.signals:
            known = ", ".join(sorted(score.signals))
            return ScoringError(f"the server at {self.url} computes no signal {self._method!r}: it has {known}")
        return replace(score, method=self._method, value=score.signals[self._method])

    def _accept(self, seen: Fingerprint) -> None:
        """Check that a score comes from what is expected, and remember the first.

        Raises:
            OtherScorerError: it comes from something else.
        """
        expected, known = self._expected, self._known
        if expected is not None and (expected.model, expected.template) != (seen.model, seen.template):
            raise OtherScorerError(self.url, _differences(expected, seen, ("model", "template")))
        if known is None:
            self._known = seen
        elif known != seen:
            raise OtherScorerError(self.url, _differences(known, seen, tuple(asdict(seen))))

    async def _is_own(self, score: Score) -> bool:
        """Return whether a score that came along with an answer is one that this server gives."""
        try:
            known = self._known or await self._ask_fingerprint()
        except ScoringError:
            return False
        return replace(score.fingerprint, proxy=False) == known

    async def _ask_fingerprint(self) -> Fingerprint:
        served = await self._send(ModelList, "GET", "/v1/models", time.monotonic() + self._timeout_s)
        named = next((model for model in served.data if model.fingerprint is not None), None)
        found = None if named is None else named.fingerprint_by_claim if self._claims else named.fingerprint
        if named is None or found is None:
            raise ScorerRefusedError(self.url, 200, "it serves no model that scores")
        seen = Fingerprint(**found.model_dump())
        self._accept(seen)
        self._name = named.id
        return seen

    async def _send(self, form: type[Form], method: str, path: str, ends_at: float, body: Any = None) -> Form:
        """Send a request, again while the server cannot be reached or is busy, and read its answer."""
        left_s = max(0.0, ends_at - time.monotonic())
        retrying = AsyncRetrying(
            stop=stop_before_delay(min(self._retry_s, left_s)),
            wait=_wait_s,
            retry=retry_if_exception(lambda error: isinstance(error, ScorerUnavailableError)),
            reraise=True,
        )
        told: bytes = await retrying(self._once, method, path, ends_at, body)
        try:
            return form.model_validate_json(told)
        except ValidationError as error:
            why = f"its answer is not that of a scoring server ({error.errors()[0]['msg']})"
            raise ScorerRefusedError(self.url, 200, why) from error

    async def _once(self, method: str, path: str, ends_at: float, body: Any) -> bytes:
        import httpx  # only where a server is asked

        left_s = ends_at - time.monotonic()
        if left_s <= 0:
            raise ScoringEndedError
        content = None if body is None else {**body, "timeout_s": left_s}
        asked = self._connected().client.stream(
            method, self.url + path, json=content, headers=self._headers, timeout=left_s + _GRACE_S
        )
        try:
            async with asyncio.timeout(left_s + _GRACE_S), asked as response:
                told = await body_of(response)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise ScoringEndedError from error
        except httpx.RequestError as error:
            raise ScorerUnavailableError(self.url, type(error).__name__) from error
        except TooLargeError as error:
            raise ScorerRefusedError(self.url, 200, f"its answer is not read: {error}") from error
        if response.status_code in _AGAIN:
            why = f"it answered {response.status_code}: {_message(told)}"
            raise ScorerUnavailableError(self.url, why, _retry_after_s(response))
        if not response.is_success:
            raise ScorerRefusedError(self.url, response.status_code, _message(told))
        return told

    # --- the thread that asks -----------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._connected().loop)

    def _wait(self, work: Coroutine[Any, Any, T], limit_s: float, cancel: threading.Event | None) -> T:
        """Wait for work as long as it is wanted; then its request is ended, and the server sees that."""
        asked, ends_at = self._start(work), time.monotonic() + limit_s + 2 * _GRACE_S
        try:
            while True:
                try:
                    return asked.result(_LOOK_EVERY_S if cancel is not None else max(0.0, ends_at - time.monotonic()))
                except TimeoutError as error:
                    if isinstance(error, ScoringError):
                        raise
                if (cancel is not None and cancel.is_set()) or time.monotonic() >= ends_at:
                    raise ScoringEndedError
        finally:
            asked.cancel()

    def _connected(self) -> _Connections:
        """Return the connections of this process; a fork has none of its parent's."""
        with self._lock:
            if self._connections is None or self._connections.process != os.getpid():
                self._connections = _Connections(self._transport)
                weakref.finalize(self, self._connections.close)
            return self._connections


class _Connections:
    """One web client and the event loop that it runs on, in a thread of its own: sync and async callers share it."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None) -> None:
        import httpx  # only where a server is asked

        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.client = httpx.AsyncClient(transport=transport, follow_redirects=False)
        self._thread = threading.Thread(target=self.loop.run_forever, name="semgrad-remote", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the connections and end the thread; may be called again, and by the thread itself."""
        if self.loop.is_closed() or self.process != os.getpid() or threading.current_thread() is self._thread:
            return
        asyncio.run_coroutine_threadsafe(self.client.aclose(), self.loop).result(timeout=10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()


_LEAST_WAIT_S = 0.1
"""A server that wants to be asked again at once is not asked in a tight loop."""
_backing_off = wait_random_exponential(multiplier=0.1, max=2.0)


def _wait_s(state: RetryCallState) -> float:
    """Return how long to wait before the next try: what the server says, or longer each time."""
    error = state.outcome.exception() if state.outcome is not None else None
    said = error.retry_after_s if isinstance(error, ScorerUnavailableError) else None
    return _backing_off(state) if said is None else max(said, _LEAST_WAIT_S)


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _message(told: bytes) -> str:
    """Return what the server says went wrong."""
    try:
        message = str(read_json(told)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "is this the address of a scoring server?"
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"


def _differences(expected: Fingerprint, seen: Fingerprint, names: Sequence[str]) -> str:
    pairs = ((name, getattr(expected, name), getattr(seen, name)) for name in names)
    differing = [(name, _short(left), _short(right)) for name, left, right in pairs if left != right]
    return "; ".join(f"{name} {right} in place of {left}" for name, left, right in differing)


def _short(text: str) -> str:
    return f"{text[:12]}…" if len(text) > 60 else text
