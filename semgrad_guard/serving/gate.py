"""What every request passes first: keys, body size, how many at once, and one line in the log."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from semgrad_guard.serving.problems import Report, RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from semgrad_guard.serving.keys import KeyFile
    from semgrad_guard.serving.metrics import Metrics
    from semgrad_guard.serving.settings import Limits

_log = logging.getLogger("semgrad_guard.serving")

OPEN = frozenset({"/healthz", "/readyz"})
"""Paths that need no key: what watches the server has none."""
_UNCOUNTED = OPEN | {"/metrics"}
"""Paths that are answered however many requests there are."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    name: str = ""
    """Name of its key; empty where no key is needed."""
    secret: str = field(default="", repr=False)
    """What it sent as its key."""


class Gate:
    """Middleware that lets a request in or says why not. It writes no text of a request to the log."""

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics, keys: KeyFile | None) -> None:
        """Wrap an application."""
        self._app, self._limits, self._metrics, self._keys = app, limits, metrics, keys
        self._n = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started, caller = 0, time.monotonic(), Caller()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.began()
        self._n += 1
        try:
            caller = self._caller(scope)
            self._check_room(scope)
            scope.setdefault("state", {})["caller"] = caller
            await self._app(scope, _bounded(receive, self._limits.body_bytes), noted)
        except RequestError as error:  # of this class; the application turns its own errors into responses
            await Report.of(error).response()(scope, receive, noted)
        finally:
            self._n -= 1
            seconds = time.monotonic() - started
            self._metrics.ended(_template(scope), status, seconds)
            _log.info("%s %s %d %.3f s %s", scope["method"], _template(scope), status, seconds, caller.name)

    def _caller(self, scope: Scope) -> Caller:
        secret = secret_of(Headers(scope=scope))
        if self._keys is None or scope["path"] in OPEN:
            return Caller(secret=secret)
        name = self._keys.find(secret) if secret else None
        if name is None:
            seen = "the key is not known" if secret else "there is no key"
            raise RequestError(
                HTTPStatus.UNAUTHORIZED,
                f"{seen}: send `Authorization: Bearer KEY` with a key from `semgrad-guard keys add NAME`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Caller(name, secret)

    def _check_room(self, scope: Scope) -> None:
        length = Headers(scope=scope).get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        if self._n > self._limits.requests and scope["path"] not in _UNCOUNTED:
            raise RequestError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self._limits.requests} requests are being worked on, the most that this server allows: try again",
                code="busy",
                headers={"Retry-After": "1"},
            )


def secret_of(headers: Headers) -> str:
    """Return the key that a request carries; empty where it has none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return a `receive` that refuses a body longer than `limit` bytes, even one of unannounced length."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:  # FastAPI, which reads the body, passes on only errors of this class
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(_too_large(limit)), {"Connection": "close"})
        return message

    return bounded


def _too_large(limit: int) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request is larger than {limit:,} bytes: send fewer exchanges at once",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def _template(scope: Scope) -> str:
    """Return the path of the route, so that the counters do not grow with what callers make up."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
