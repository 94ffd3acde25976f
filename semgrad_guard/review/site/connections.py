"""Limits on connections: how many there are, and how long one may take to say what it wants."""

from __future__ import annotations

import asyncio
import math
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Message, Receive

HEAD_S = 10.0
"""Seconds from opening a connection, or beginning another request on it, to the end of the request's head."""
_MOST = 512
_LEAST = 16


def most_connections(wanted: int = _MOST) -> int:
    """Return how many connections a server keeps open: so few that descriptors are left for all else.

    Args:
        wanted: how many there may be where descriptors are plenty.
    """
    if sys.platform == "win32":
        return wanted
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if limit == resource.RLIM_INFINITY else max(_LEAST, min(wanted, limit // 4))


def bounded_body(receive: Receive, *, most: int, seconds: float, too_large: str) -> Receive:
    """Return a `receive` that refuses a body which is too long, whether announced or not, or takes too long to arrive.

    Args:
        receive: gives the parts of a request.
        most: bytes.
        seconds: from now until it is whole.
        too_large: what is said of one that is longer.
    """
    seen, is_whole, ends_at = 0, False, asyncio.get_running_loop().time() + seconds

    async def bounded() -> Message:
        nonlocal seen, is_whole
        try:
            async with asyncio.timeout_at(None if is_whole else ends_at):
                message = await receive()
        except TimeoutError:
            why = f"the request's body did not arrive within {seconds:g} seconds"
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, why, {"Connection": "close"}) from None
        seen += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        if seen > most:  # FastAPI, which reads the body, passes on only errors of this class
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large, {"Connection": "close"})
        return message

    return bounded


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that closes connections which do not finish a request's head, and the oldest of them when it is full."""

    _head_timer: asyncio.TimerHandle | None = None

    @staticmethod
    def most() -> int:
        """Return how many connections there may be."""
        return most_connections()

    @property
    def silent_until(self) -> float:
        """When its time for a head is over, on the loop's clock."""
        return self._head_timer.when() if self._head_timer is not None else math.inf

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Take a connection; where there are too many, one that has not asked for anything gives way."""
        super().connection_made(transport)
        if len(self.connections) > self.most():
            silent = _oldest_silent(self.connections)
            (silent or self).transport.abort()
        self._start_head_timer()

    @override
    def data_received(self, data: bytes) -> None:
        """Take a part of a request; its head must be whole in time."""
        if not self._is_asked():
            self._start_head_timer()
        super().data_received(data)
        if self._is_asked():
            self._stop_head_timer()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def is_silent(self) -> bool:
        """True while no request is being answered."""
        return not self._is_asked()

    def _is_asked(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.is_silent() and not self.transport.is_closing():
            self.transport.abort()


def _oldest_silent(connections: Iterable[Any]) -> Any:
    """Return the connection that has been without a request for longest."""
    timers = [
        (each.silent_until, id(each), each)
        for each in connections
        if isinstance(each, BoundedProtocol) and each.is_silent()
    ]
    return min(timers)[2] if timers else None
