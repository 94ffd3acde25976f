"""Errors as answers: which status each has, and how it reads on a page and in JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

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
from semgrad_guard.review.site.rendering import render

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


@dataclass(frozen=True, slots=True)
class Told:
    """What a response says about an error."""

    status: HTTPStatus
    kind: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


def status_of(error: SemGradGuardError) -> HTTPStatus:
    """Return the HTTP status that says what an error says."""
    if isinstance(error, RefusedError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)


def install(app: FastAPI) -> None:
    """Turn every error into a response that says what was wrong and reveals nothing else."""

    async def known(request: Request, error: Exception) -> Response:
        if not isinstance(error, SemGradGuardError):  # registered for this class only
            raise error
        headers = error.headers if isinstance(error, RefusedError) else {}
        told = Told(status_of(error), type(error).__name__, str(error), _details(error))
        return await _answer(request, told, headers)

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        status = HTTPStatus(error.status_code)
        return await _answer(request, Told(status, status.phrase.replace(" ", ""), str(error.detail)), error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        why = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors())
        return await _answer(request, Told(HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidRequest", why), None)

    app.add_exception_handler(SemGradGuardError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _details(error: SemGradGuardError) -> dict[str, Any]:
    """Return the data of an error, so that a client can make the same error of it."""
    if isinstance(error, RefusedError | QueueUnavailableError):
        return {}
    return {key: each for key, each in vars(error).items() if isinstance(each, str | int | float | tuple)}


async def _answer(request: Request, told: Told, headers: Mapping[str, str] | None) -> Response:
    if request.url.path.startswith(API_ROOT):
        body = {"error": told.kind, "message": told.message, "details": told.details}
        return JSONResponse(body, status_code=told.status, headers=headers)
    typed = await _typed(request)
    page = render(
        request, "problem.html", status=told.status, message=told.message, typed=typed, status_code=told.status
    )
    page.headers.update(headers or {})
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
