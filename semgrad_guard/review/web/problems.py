"""Errors as answers: which status each has, and how it reads on a page and in JSON."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from semgrad_guard.errors import (
    AccountError,
    AlreadyClaimedError,
    CursorError,
    EmptyTextError,
    IllegalMoveError,
    ItemNotFoundError,
    MissingExtraError,
    QueueUnavailableError,
    ReviewError,
    SemGradGuardError,
    UndoRefusedError,
)
from semgrad_guard.review.web.rendering import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.requests import Request

API_ROOT = "/api/"

_STATUS: tuple[tuple[type[SemGradGuardError], HTTPStatus], ...] = (
    (ItemNotFoundError, HTTPStatus.NOT_FOUND),
    (AlreadyClaimedError, HTTPStatus.CONFLICT),
    (IllegalMoveError, HTTPStatus.CONFLICT),
    (UndoRefusedError, HTTPStatus.CONFLICT),
    (EmptyTextError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (CursorError, HTTPStatus.BAD_REQUEST),
    (AccountError, HTTPStatus.BAD_REQUEST),
    (QueueUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (MissingExtraError, HTTPStatus.SERVICE_UNAVAILABLE),
)


class RefusedError(ReviewError):
    """A request that is not carried out."""

    def __init__(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Keep the status and the headers that go with it."""
        self.status, self.headers = status, dict(headers or {})
        super().__init__(message)


def status_of(error: SemGradGuardError) -> HTTPStatus:
    """Return the HTTP status that says what an error says."""
    if isinstance(error, RefusedError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)


def install(app: FastAPI) -> None:
    """Let every error end as an answer that says what was wrong and tells nothing else."""

    async def known(request: Request, error: Exception) -> Response:
        if not isinstance(error, SemGradGuardError):  # registered for this class only
            raise error
        headers = error.headers if isinstance(error, RefusedError) else {}
        return await _answer(request, status_of(error), str(error), type(error).__name__, headers)

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        status = HTTPStatus(error.status_code)
        return await _answer(request, status, str(error.detail), status.phrase.replace(" ", ""), error.headers or {})

    async def invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        told = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors())
        return await _answer(request, HTTPStatus.UNPROCESSABLE_ENTITY, told, "InvalidRequest", {})

    app.add_exception_handler(SemGradGuardError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


async def _answer(
    request: Request, status: HTTPStatus, message: str, kind: str, headers: Mapping[str, str]
) -> Response:
    if request.url.path.startswith(API_ROOT):
        return JSONResponse({"error": kind, "message": message}, status_code=status, headers=headers)
    typed = await _typed(request)
    page = render(request, "problem.html", status=status, message=message, typed=typed, status_code=status)
    page.headers.update(headers)
    return page


async def _typed(request: Request) -> str:
    """Return the text that a reviewer had written, so that a refused form loses nothing."""
    if request.method != "POST" or not request.headers.get("content-type", "").startswith("application/x-www-form"):
        return ""
    try:
        form = await request.form()
    except HTTPException:
        return ""
    return next((text for key in ("text", "reason") if isinstance(text := form.get(key), str) and text), "")
