"""The web application: pages for reviewers, an API for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from semgrad_guard.review.site import actions, api, logins, pages, problems
from semgrad_guard.review.site.desk import Desk, WebSettings
from semgrad_guard.review.site.protection import Protection

if TYPE_CHECKING:
    from argon2 import PasswordHasher

    from semgrad_guard.review.queue import SqlReviewQueue

_STATIC = Path(__file__).parent / "static"


def create_app(
    queue: SqlReviewQueue, settings: WebSettings | None = None, hasher: PasswordHasher | None = None
) -> FastAPI:
    """Return the application that serves a queue.

    Args:
        queue: the queue.
        settings: how the site is reached, and its limits.
        hasher: hashes passwords; Argon2id with the library's settings unless given.
    """
    app = FastAPI(
        title="semgrad-guard review",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,  # the documentation pages load scripts from elsewhere
        redoc_url=None,
    )
    desk = Desk(queue, settings or WebSettings(), hasher)
    app.state.desk = desk
    app.add_middleware(Protection, settings=desk.settings)
    problems.install(app)
    for router in (logins.router, pages.router, actions.router, api.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    return app
