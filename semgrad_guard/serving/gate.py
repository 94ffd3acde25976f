"""What every request passes first: keys, body size, how many at once, and one line in the log; and the file of keys."""

from __future__ import annotations

import json
import logging
import os
import secrets
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers

from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.flow import utc_now
from semgrad_guard.review.access import PREFIX, digest
from semgrad_guard.review.site.connections import bounded_body
from semgrad_guard.serving.problems import Report, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from semgrad_guard.serving.backend import Metrics
    from semgrad_guard.serving.settings import Limits


class KeyFileError(SemGradGuardError, ValueError):
    """A file of keys cannot be used."""

    def __init__(self, path: Path, why: str, advice: str) -> None:
        """Keep the file and what is wrong with it."""
        self.path, self.why = path, why
        super().__init__(f"{path}: {why}: {advice}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret."""

    name: str
    digest: str
    created_at: str


class KeyFile:
    """Keys by their digests, as in the review queue. It is safe to share between threads.

    Revoking a key, here or by deleting its entry, works at the next request and ends streams that it began.

    Example:
        >>> secret = KeyFile(Path("keys.json")).issue("rag-app")  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        """Keep the path; a file that does not exist holds no key."""
        self.path = path
        self._lock = threading.Lock()
        self._read: tuple[object, dict[str, str]] | None = None

    def find(self, secret: str) -> str | None:
        """Return the name of the key with this secret, `None` where there is none.

        Raises:
            KeyFileError: the file cannot be read.
        """
        return self._names().get(digest(secret))

    def all(self) -> tuple[Key, ...]:
        """Return the keys, oldest first.

        Raises:
            KeyFileError: the file cannot be read.
        """
        try:
            return tuple(_KEYS.validate_json(self.path.read_bytes()))
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            why = f"it is no file of keys ({type(error).__name__})"
            raise KeyFileError(self.path, why, "make a new one with `semgrad-guard keys add NAME`") from error

    def issue(self, name: str) -> str:
        """Add a key and return its secret, which cannot be read again.

        Raises:
            KeyFileError: there is already a key with this name.
        """
        keys = self.all()
        if any(key.name == name for key in keys):
            raise KeyFileError(self.path, f"there is already a key {name!r}", "revoke it first, or take another name")
        secret = PREFIX + secrets.token_urlsafe(32)
        self._write([*keys, Key(name, digest(secret), utc_now().isoformat(timespec="seconds"))])
        return secret

    def revoke(self, name: str) -> None:
        """End a key for good.

        Raises:
            KeyFileError: there is none with this name.
        """
        keys = self.all()
        if all(key.name != name for key in keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise KeyFileError(self.path, f"there is no key {name!r}", f"it holds {known}")
        self._write([key for key in keys if key.name != name])

    def _names(self) -> dict[str, str]:
        with self._lock:
            stamp = _stamp(self.path)
            if self._read is None or self._read[0] != stamp:
                self._read = (stamp, {key.digest: key.name for key in self.all()})
            return self._read[1]

    def _write(self, keys: Iterable[Key]) -> None:
        """Replace the file at once, readable by its owner alone."""
        text = json.dumps([asdict(key) for key in keys], indent=2) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(self.path)


_KEYS: TypeAdapter[Sequence[Key]] = TypeAdapter(list[Key])


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


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
            await self._app(scope, self._bounded(receive), noted)
        except RequestError as error:  # of this class; the application turns its own errors into responses
            await Report.of(error).response()(scope, receive, noted)
        finally:
            self._n -= 1
            seconds = time.monotonic() - started
            self._metrics.ended(_template(scope), status, seconds)
            _log.info("%s %s %d %.3f s %s", scope["method"], _template(scope), status, seconds, caller.name)

    def _bounded(self, receive: Receive) -> Receive:
        limits = self._limits
        too_large = str(_too_large(limits.body_bytes))
        return bounded_body(receive, most=limits.body_bytes, seconds=limits.body_s, too_large=too_large)

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
