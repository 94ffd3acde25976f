"""Serve the review site: where it may listen, and the upkeep in the background."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from semgrad_guard.errors import ReviewError, in_log
from semgrad_guard.review.access import Accounts
from semgrad_guard.review.addresses import Listening
from semgrad_guard.review.site.app import create_app
from semgrad_guard.review.site.connections import BoundedProtocol
from semgrad_guard.review.site.desk import WebSettings
from semgrad_guard.review.webhooks import WebhookSender

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from fastapi import FastAPI

    from semgrad_guard.review.queue import SqlReviewQueue

logger = logging.getLogger(__name__)

RETENTION = "retention"
"""Name in the audit trail for items erased because they are too old."""
_UPKEEP_EVERY_S = 2.0
_ERASE_EVERY_S = 3600.0
_SHUTDOWN_S = 30
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding(Listening):
    """Where the site listens, and how browsers reach it.

    Raises:
        ReviewError: other machines could connect without TLS, so read passwords and answers, and this was not allowed.
    """

    port: int = 8765
    is_behind_proxy: bool = False
    """True if a proxy on this machine, or one named in FORWARDED_ALLOW_IPS, handles https."""
    allow_plain: bool = False
    """Allow plain http from other machines; anyone on the network can then read passwords and answers."""
    names: frozenset[str] = frozenset()
    """Host names to accept; needed only to refuse all others."""

    def __post_init__(self) -> None:
        """Refuse to send passwords and answers over a network unencrypted."""
        self.check_certificate(ReviewError)
        if not (self.is_local or self.is_encrypted or self.allow_plain):
            msg = (
                f"other machines can reach {self.host}, and without TLS they could read passwords and answers: "
                "give --tls-cert and --tls-key, or --behind-proxy, or --allow-plain-http"
            )
            raise ReviewError(msg)

    @property
    def is_encrypted(self) -> bool:
        """True if browsers reach the site by https."""
        return self.certificate is not None or self.is_behind_proxy

    @property
    def hosts(self) -> frozenset[str]:
        """Host names that are accepted; an empty set accepts all."""
        if self.names:
            return frozenset(name.lower() for name in self.names) | _LOOPBACK_NAMES
        return _LOOPBACK_NAMES if self.is_local and not self.is_behind_proxy else frozenset()


def serve(queue: SqlReviewQueue, binding: Binding, *works: Callable[[], object]) -> None:
    """Serve the site until interrupted.

    Args:
        queue: the queue.
        binding: where to listen.
        works: further functions to call repeatedly in the background.

    Raises:
        ReviewError: there is no account to log in with.
    """
    if not any(user.active for user in Accounts(queue.database).all()):
        msg = "there is no account to log in with: create one with `semgrad-guard review user add NAME --role admin`"
        raise ReviewError(msg)
    settings = WebSettings(is_encrypted=binding.is_encrypted, hosts=binding.hosts)
    with upkeep(queue, *works):
        uvicorn.Server(server_config(create_app(queue, settings), binding)).run()


def server_config(app: FastAPI, binding: Binding) -> uvicorn.Config:
    """Return how the site is served: with few connections that have little time to say what they want."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        proxy_headers=binding.is_behind_proxy,
        **binding.uvicorn_options(),
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )


@contextmanager
def upkeep(queue: SqlReviewQueue, *works: Callable[[], object], every_s: float = _UPKEEP_EVERY_S) -> Generator[None]:
    """End leases and deadlines, send webhooks and erase what is too old, each in a background thread of its own."""
    stop = threading.Event()
    sender = WebhookSender(queue)

    def run(*works: Callable[[], object]) -> None:
        while not stop.wait(every_s):
            for work in works:
                try:
                    work()
                except Exception as error:  # noqa: BLE001 - it is logged, and the work goes on
                    logger.warning("upkeep of the review queue failed; it will be tried again: %s", in_log(error))

    kinds = ((queue.expire_leases, queue.expire_deadlines), (sender.start_due,), (_eraser(queue),), *zip(works))
    threads = [threading.Thread(target=run, args=each, name="semgrad-review-upkeep", daemon=True) for each in kinds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=10)
        sender.close()


def _eraser(queue: SqlReviewQueue) -> Callable[[], object]:
    """Return a function that erases, at most once an hour, the texts older than the queue's settings allow."""
    due_s = time.monotonic()

    def erase() -> None:
        nonlocal due_s
        kept_s = queue.settings.retention_s
        if kept_s is not None and time.monotonic() >= due_s:
            queue.erase_older_than(kept_s, RETENTION)
            due_s = time.monotonic() + _ERASE_EVERY_S

    return erase
