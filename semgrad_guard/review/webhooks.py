"""Webhooks: send signed events of the queue to a URL, and retry until they are accepted."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import socket
import ssl
import threading
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from semgrad_guard.errors import ReviewError, in_log
from semgrad_guard.extras import require
from semgrad_guard.review.addresses import check_addresses, check_host, is_loopback
from semgrad_guard.review.store import outbox
from semgrad_guard.review.store.items import Event
from semgrad_guard.review.store.outbox import Hook, consume
from semgrad_guard.review.views import ItemView, RulingView

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import httpx

    from semgrad_guard.review.queue import SqlReviewQueue
    from semgrad_guard.review.store.database import Transaction
    from semgrad_guard.review.store.outbox import Delivery

logger = logging.getLogger(__name__)

SIGNATURE = "Semgrad-Signature"
"""Header `t=<seconds>,v1=<hex>`: HMAC-SHA-256 of `<seconds>.<body>` under the webhook's secret."""
KEY = "Idempotency-Key"
"""Header that stays the same when a delivery is sent again."""
EVENTS = (outbox.VERDICT, str(Event.SUBMIT))
_TOLERANCE_S = 300.0
_TIMEOUT_S = 10.0
_AT_ONCE = 5
"""Deliveries leased at once: all of them end within the lease, even if each takes all of its time."""


def add_webhook(
    queue: SqlReviewQueue,
    name: str,
    url: str,
    events: Iterable[str] = (outbox.VERDICT,),
    *,
    allow_plain: bool = False,
    allowed_host: str | None = None,
) -> Hook:
    """Send a queue's events to a URL from now on; return the hook with its secret.

    Args:
        queue: queue whose events are sent.
        name: name of the webhook.
        url: where to send; https, or http on this machine.
        events: `verdict`, `submit`.
        allow_plain: allow unencrypted http to other machines, which exposes the answers on the network.
        allowed_host: allow this host although it is a link-local address or a metadata service.

    Raises:
        ReviewError: the URL or an event is not allowed.
    """
    wanted = tuple(sorted(set(events)))
    if not wanted or not set(wanted) <= set(EVENTS):
        msg = f"a webhook can be told of {' and '.join(EVENTS)}, not of {', '.join(wanted) or 'nothing'}"
        raise ReviewError(msg)
    _check_url(url, allow_plain=allow_plain)
    host = urlsplit(url).hostname or ""
    if host != allowed_host:
        check_host(host)
    secret = secrets.token_urlsafe(32)

    def work(tx: Transaction) -> None:
        outbox.subscribe(tx, name, wanted, url=url, secret=secret, allowed_host=allowed_host)

    queue.database.write(work)
    return Hook(name=name, url=url, secret=secret, events=wanted, allowed_host=allowed_host)


def sign(secret: str, body: bytes, at: datetime) -> str:
    """Return the signature header of a body sent at a given time."""
    seconds = int(at.timestamp())
    return f"t={seconds},v1={_hmac(secret, seconds, body)}"


def verify(secret: str, header: str, body: bytes, now: datetime, *, tolerance_s: float = _TOLERANCE_S) -> bool:
    """True when the header is a valid signature of the body, no older than the tolerance; for receivers."""
    fields = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    stamp, given = fields.get("t", ""), fields.get("v1", "")
    if not (stamp.isascii() and stamp.isdigit()) or abs(now.timestamp() - int(stamp)) > tolerance_s:
        return False
    return hmac.compare_digest(_hmac(secret, int(stamp), body).encode(), given.encode("utf-8", "replace"))


class WebhookSender:
    """Sends due events to the webhooks of a queue, each in a thread of its own, so that none can hold another up."""

    def __init__(
        self,
        queue: SqlReviewQueue,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        limit_s: float = _TIMEOUT_S,
    ) -> None:
        """Keep the queue.

        Args:
            queue: whose events are sent.
            transport: carries the requests; by default to the network, though not to its internal services.
            limit_s: seconds for one delivery, from looking its address up to the status of the answer.
        """
        self._httpx = require("httpx", extra="review")
        self._queue, self._transport, self._limit_s = queue, transport, limit_s
        self._verify = ssl.create_default_context()
        self._running: dict[str, threading.Thread] = {}

    def send_due(self) -> int:
        """Send all due events, one receiver after the other; return how many were accepted."""
        hooks = self._queue.database.read(outbox.hooks)
        return sum(self._send_some(hook) for hook in hooks)

    def start_due(self) -> None:
        """Start sending due events to each receiver that is not being served, and return at once."""
        hooks = self._queue.database.read(outbox.hooks)
        self._running = {name: thread for name, thread in self._running.items() if thread.is_alive()}
        for hook in hooks:
            if hook.name not in self._running:
                name = f"semgrad-review-webhook-{hook.name}"
                thread = threading.Thread(target=self._send_in_thread, args=[hook], name=name, daemon=True)
                self._running[hook.name] = thread
                thread.start()

    def close(self) -> None:
        """Wait until what is being sent is sent, or its time is over."""
        end = time.monotonic() + self._limit_s
        for thread in self._running.values():
            thread.join(max(0.0, end - time.monotonic()))

    def _send_in_thread(self, hook: Hook) -> None:
        try:
            self._send_some(hook)
        except Exception as error:  # noqa: BLE001 - it is logged, and the work goes on
            logger.warning("the webhook %s could not be served; it will be tried again: %s", hook.name, in_log(error))

    def _send_some(self, hook: Hook) -> int:
        return consume(self._queue, hook.name, partial(self._send, hook), limit=_AT_ONCE)

    def _send(self, hook: Hook, delivery: Delivery) -> None:
        body = json.dumps(self._payload(delivery)).encode()
        headers = {
            "Content-Type": "application/json",
            SIGNATURE: sign(hook.secret, body, self._queue.database.clock()),
            KEY: delivery.key,
        }
        status = asyncio.run(self._status_of(hook, body, headers))
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            msg = f"{hook.name} answered {status}"
            raise ReviewError(msg)

    async def _status_of(self, hook: Hook, body: bytes, headers: dict[str, str]) -> int:
        """Send a body and return the status of the answer, whose own body is not read."""
        async with asyncio.timeout(self._limit_s):
            url = self._httpx.URL(hook.url)
            extensions: dict[str, str] = {}
            if self._transport is None and url.host != hook.allowed_host:
                url, headers, extensions = await self._pinned(url, headers)
            # No redirect is followed, since it could lead anywhere.
            client = self._httpx.AsyncClient(
                transport=self._transport, verify=self._verify, timeout=self._limit_s, follow_redirects=False
            )
            request = {"content": body, "headers": headers, "extensions": extensions}
            async with client, client.stream("POST", url, **request) as response:
                return int(response.status_code)

    async def _pinned(
        self, url: httpx.URL, headers: dict[str, str]
    ) -> tuple[httpx.URL, dict[str, str], dict[str, str]]:
        """Return what reaches the address that was looked at, whatever its name stands for a moment later."""
        check_host(url.host)
        if getproxies() and not proxy_bypass(url.host):
            return url, headers, {}  # the proxy looks the name up
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(url.host, None, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        check_addresses(url.host, addresses)
        named = {**headers, "Host": url.netloc.decode("ascii")}
        return url.copy_with(host=addresses[0]), named, {"sni_hostname": url.host}

    def _payload(self, delivery: Delivery) -> dict[str, Any]:
        ruling = self._queue.ruling(delivery.item_id) if delivery.event == outbox.VERDICT else None
        return {
            "event": delivery.event,
            "key": delivery.key,
            "item": ItemView.of(self._queue.item(delivery.item_id)).model_dump(mode="json"),
            "ruling": RulingView.of(ruling).model_dump(mode="json") if ruling else None,
        }


def shown_url(url: str) -> str:
    """Return a webhook's URL without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _check_url(url: str, *, allow_plain: bool) -> None:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
        parts = urlsplit("")
    if not is_url:
        msg = "a webhook needs an address like https://example.com/hooks/review"
        raise ReviewError(msg)
    if parts.scheme == "http" and not allow_plain and not is_loopback(parts.hostname):
        msg = f"{shown_url(url)} is not encrypted, and answers may be private: use https, or --allow-plain-http"
        raise ReviewError(msg)


def _hmac(secret: str, seconds: int, body: bytes) -> str:
    return hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
