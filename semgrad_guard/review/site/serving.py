"""Serving the page: where it may listen, and the upkeep that goes on beside it."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from semgrad_guard.errors import ReviewError
from semgrad_guard.review.access import Accounts
from semgrad_guard.review.site.app import create_app
from semgrad_guard.review.site.desk import WebSettings
from semgrad_guard.review.store.database import is_loopback
from semgrad_guard.review.webhooks import WebhookSender

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from semgrad_guard.review.queue import SqlReviewQueue

logger = logging.getLogger(__name__)

RETENTION = "retention"
"""Who erased, in the audit trail, when an item's time was over."""
_UPKEEP_EVERY_S = 2.0
_ERASE_EVERY_S = 3600.0
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Where the site listens, and how its visitors reach it."""

    host: str = "127.0.0.1"
    port: int = 8765
    certificate: Path | None = None
    key: Path | None = None
    is_behind_proxy: bool = False
    """True when a proxy on this machine, or one named in FORWARDED_ALLOW_IPS, takes the https connections."""
    allow_plain: bool = False
    """Serve http beyond this machine, where anybody on the way can read passwords and answers."""
    names: frozenset[str] = frozenset()
    """Host names under which visitors ask; needed only to refuse all others."""

    @property
    def is_encrypted(self) -> bool:
        """True when visitors come by https."""
        return self.certificate is not None or self.is_behind_proxy

    def check(self) -> None:
        """Refuse to put passwords and answers on a network in the clear.

        Raises:
            ReviewError: neither this machine alone, nor encrypted, nor allowed.
        """
        if (self.certificate is None) != (self.key is None):
            msg = "TLS needs both a certificate and its key: give --tls-cert and --tls-key"
            raise ReviewError(msg)
        if not is_loopback(self.host) and not self.is_encrypted and not self.allow_plain:
            msg = (
                f"{self.host} can be reached by others, and without TLS they could read passwords and answers: "
                "give --tls-cert and --tls-key, or --behind-proxy, or say --allow-plain-http"
            )
            raise ReviewError(msg)

    @property
    def hosts(self) -> frozenset[str]:
        """Host names that are answered; empty answers all."""
        if self.names:
            return frozenset(name.lower() for name in self.names) | _LOOPBACK_NAMES
        return _LOOPBACK_NAMES if is_loopback(self.host) and not self.is_behind_proxy else frozenset()


def serve(queue: SqlReviewQueue, binding: Binding, *works: Callable[[], object]) -> None:
    """Serve the page until interrupted.

    Args:
        queue: the queue.
        binding: where to listen.
        works: what else to do again and again beside it.

    Raises:
        ReviewError: it may not listen there, or there is no account to log in with.
    """
    binding.check()
    if not any(user.active for user in Accounts(queue.database).all()):
        msg = "there is no account to log in with: make one with `semgrad-guard review user add NAME --role admin`"
        raise ReviewError(msg)
    settings = WebSettings(is_encrypted=binding.is_encrypted, hosts=binding.hosts)
    config = uvicorn.Config(
        create_app(queue, settings),
        host=binding.host,
        port=binding.port,
        ssl_certfile=binding.certificate,
        ssl_keyfile=binding.key,
        proxy_headers=binding.is_behind_proxy,
        server_header=False,
        access_log=False,  # addresses of pages hold what reviewers search for
        log_level="warning",
    )
    with upkeep(queue, *works):
        uvicorn.Server(config).run()


@contextmanager
def upkeep(queue: SqlReviewQueue, *works: Callable[[], object], every_s: float = _UPKEEP_EVERY_S) -> Generator[None]:
    """End leases and deadlines, send webhooks and erase what is too old, in a background thread."""
    stop = threading.Event()
    sender = WebhookSender(queue)
    all_works = (queue.expire_leases, queue.expire_deadlines, sender.send_due, _eraser(queue), *works)

    def run() -> None:
        while not stop.wait(every_s):
            for work in all_works:
                try:
                    work()
                except Exception:
                    logger.exception("upkeep of the review queue failed; it goes on")

    thread = threading.Thread(target=run, name="semgrad-review-upkeep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
        sender.close()


def _eraser(queue: SqlReviewQueue) -> Callable[[], object]:
    """Return what erases, once an hour, the texts that the queue's settings keep no longer."""
    due_s = time.monotonic()

    def erase() -> None:
        nonlocal due_s
        kept_s = queue.settings.retention_s
        if kept_s is not None and time.monotonic() >= due_s:
            queue.erase_older_than(kept_s, RETENTION)
            due_s = time.monotonic() + _ERASE_EVERY_S

    return erase
