"""The review site as an application: its routes, security headers and request limits."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.staticfiles import StaticFiles

from semgrad_guard.review.site import actions, api, logins, pages, problems
from semgrad_guard.review.site.connections import bounded_body
from semgrad_guard.review.site.desk import Desk, WebSettings
from semgrad_guard.review.site.problems import API_ROOT

if TYPE_CHECKING:
    from argon2 import PasswordHasher
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from semgrad_guard.review.queue import SqlReviewQueue

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Robots-Tag": "noindex",
}
_YEAR_S = 31_536_000


class Protection:
    """Middleware that checks host names and body sizes, and adds security headers."""

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        """Wrap an application."""
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, pass it on, and add the headers to its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_api = scope["path"].startswith(API_ROOT)
        limit = self._settings.largest_submission if is_api else self._settings.largest_form
        guarded = self._with_headers(send)
        if not self._is_known_host(headers.get("host", "")):
            await PlainTextResponse("unknown host name", HTTPStatus.MISDIRECTED_REQUEST)(scope, receive, guarded)
        elif _announced_length(headers) > limit:
            too_large = PlainTextResponse(
                _too_large(limit), HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"Connection": "close"}
            )
            await too_large(scope, receive, guarded)
        else:
            seconds, told = self._settings.body_s, _too_large(limit)
            await self._app(scope, bounded_body(receive, most=limit, seconds=seconds, too_large=told), guarded)

    def _is_known_host(self, host: str) -> bool:
        if not self._settings.hosts:
            return True
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        return name.lower() in self._settings.hosts

    def _with_headers(self, send: Send) -> Send:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if self._settings.is_encrypted:
                    headers["Strict-Transport-Security"] = f"max-age={_YEAR_S}"
            await send(message)

        return guarded


def _announced_length(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _too_large(limit: int) -> str:
    return f"the request is larger than {limit // 1_048_576} MB"


_STATIC = Path(__file__).parent / "static"


def create_app(
    queue: SqlReviewQueue, settings: WebSettings | None = None, hasher: PasswordHasher | None = None
) -> FastAPI:
    """Return the application that serves a queue.

    Args:
        queue: the queue.
        settings: how the site is reached, and its limits.
        hasher: hashes passwords; by default Argon2id with the library's settings.
    """
    app = FastAPI(
        title="semgrad-guard review",
        version="1",
        openapi_url=None,  # `api.description` serves it, to whoever may use it
        docs_url=None,  # FastAPI's documentation pages load scripts from other sites
        redoc_url=None,
    )
    desk = Desk(queue, settings or WebSettings(), hasher)
    app.state.desk = desk
    app.add_middleware(Protection, settings=desk.settings)
    problems.install(app)
    for router in (logins.router, pages.router, actions.router, api.router, api.description):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    return app
