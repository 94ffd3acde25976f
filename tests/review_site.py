"""A review site with accounts, and the same served on a port."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from argon2 import PasswordHasher

from semgrad_guard.review.access import Role
from semgrad_guard.review.site.app import create_app

if TYPE_CHECKING:
    from collections.abc import Generator

    from fastapi import FastAPI

    from semgrad_guard.review import SqlReviewQueue
    from semgrad_guard.review.site.desk import WebSettings

PASSWORD = "correct horse battery"  # noqa: S105 - of accounts that a test makes
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Quick, and weak: for tests only."""


def site_of(queue: SqlReviewQueue, settings: WebSettings | None = None) -> FastAPI:
    """Return the application, with the reviewers ann and bob and the administrator root."""
    app = create_app(queue, settings, HASHER)
    for name, role in (("ann", Role.REVIEWER), ("bob", Role.REVIEWER), ("root", Role.ADMIN)):
        app.state.desk.accounts.add(name, PASSWORD, role)
    return app


@contextmanager
def serving(app: FastAPI) -> Generator[str]:
    """Serve an application on a free port; give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            if not thread.is_alive():
                msg = "the server did not start"
                raise RuntimeError(msg)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
