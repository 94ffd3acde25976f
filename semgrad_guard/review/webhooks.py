"""Webhooks: send signed events of the queue to a URL, and retry until they are accepted."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from semgrad_guard.errors import ReviewError
from semgrad_guard.extras import require
from semgrad_guard.review.store import outbox
from semgrad_guard.review.store.database import is_loopback
from semgrad_guard.review.store.items import Event
from semgrad_guard.review.store.outbox import Hook, consume
from semgrad_guard.review.views import ItemView, RulingView

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import httpx

    from semgrad_guard.review.queue import SqlReviewQueue
    from semgrad_guard.review.store.outbox import Delivery

SIGNATURE = "Semgrad-Signature"
"""Header `t=<seconds>,v1=<hex>`: HMAC-SHA-256 of `<seconds>.<body>` under the webhook's secret."""
KEY = "Idempotency-Key"
"""Header that stays the same when a delivery is sent again."""
EVENTS = (outbox.VERDICT, str(Event.SUBMIT))
_TOLERANCE_S = 300.0
_TIMEOUT_S = 10.0


def add_webhook(
    queue: SqlReviewQueue, name: str, url: str, events: Iterable[str] = (outbox.VERDICT,), *, allow_plain: bool = False
) -> Hook:
    """Send a queue's events to a URL from now on; return the hook with its secret.

    Args:
        queue: queue whose events are sent.
        name: name of the webhook.
        url: where to send; https, or http on this machine.
        events: `verdict`, `submit`.
        allow_plain: allow unencrypted http to other machines, which exposes the answers on the network.

    Raises:
        ReviewError: the URL or an event is not allowed.
    """
    wanted = tuple(sorted(set(events)))
    if not wanted or not set(wanted) <= set(EVENTS):
        msg = f"a webhook can be told of {' and '.join(EVENTS)}, not of {', '.join(wanted) or 'nothing'}"
        raise ReviewError(msg)
    _check_url(url, allow_plain=allow_plain)
    secret = secrets.token_urlsafe(32)
    queue.database.write(lambda tx: outbox.subscribe(tx, name, wanted, url=url, secret=secret))
    return Hook(name=name, url=url, secret=secret, events=wanted)


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
    """Sends due events to the webhooks of a queue."""

    def __init__(self, queue: SqlReviewQueue, client: httpx.Client | None = None) -> None:
        """Keep the queue; the client follows no redirects, since they could lead anywhere."""
        self._queue = queue
        self._client = client or require("httpx", extra="review").Client(timeout=_TIMEOUT_S, follow_redirects=False)

    def send_due(self) -> int:
        """Send all due events; return how many their receivers accepted."""
        hooks = self._queue.database.read(outbox.hooks)
        return sum(consume(self._queue, hook.name, partial(self._send, hook)) for hook in hooks)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(self, hook: Hook, delivery: Delivery) -> None:
        body = json.dumps(self._payload(delivery)).encode()
        headers = {
            "Content-Type": "application/json",
            SIGNATURE: sign(hook.secret, body, self._queue.database.clock()),
            KEY: delivery.key,
        }
        response = self._client.post(hook.url, content=body, headers=headers)
        if not response.is_success:
            msg = f"{hook.name} answered {response.status_code}"
            raise ReviewError(msg)

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
