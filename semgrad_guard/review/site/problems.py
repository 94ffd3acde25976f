"""Turn errors into responses: the status of each error, its page and its JSON."""

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
    AssignedError,
    CursorError,
    EmptyTextError,
    ExchangeIdTakenError,
    IllegalMoveError,
    ItemNotFoundError,
    MissingExtraError,
    QueueUnavailableError,
    ReviewError,
    SemGradGuardError,
    UndoRefusedError,
    VerdictChangedError,
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
    (AssignedError, HTTPStatus.CONFLICT),
    (VerdictChangedError, HTTPStatus.CONFLICT),
    (ExchangeIdTakenError, HTTPStatus.CONFLICT),
    (EmptyTextError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (CursorError, HTTPStatus.BAD_REQUEST),
    (AccountError, HTTPStatus.BAD_REQUEST),
    (QueueUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (MissingExtraError, HTTPStatus.SERVICE_UNAVAILABLE),
)


class RefusedError(ReviewError):
    """A request was refused."""

    def __init__(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Keep the status and headers of the response."""
        self.status, self.headers = status, dict(headers or {})
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """What a response says about an error."""

    status: HTTPStatus
    kind: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


def status_of(error: SemGradGuardError) -> HTTPStatus:
    """Return the HTTP status of an error."""
    if isinstance(error, RefusedError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)


def install(app: FastAPI) -> None:
    """Turn every error into a response that says what went wrong and reveals nothing else."""

    async def known(request: Request, error: Exception) -> Response:
        if not isinstance(error, SemGradGuardError):  # registered for this class only
            raise error
        headers = error.headers if isinstance(error, RefusedError) else {}
        report = ErrorReport(status_of(error), type(error).__name__, str(error), _details(error))
        return await _response(request, report, headers)

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        status = HTTPStatus(error.status_code)
        report = ErrorReport(status, status.phrase.replace(" ", ""), str(error.detail))
        return await _response(request, report, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        mistakes = error.errors()
        why = "; ".join(f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}" for found in mistakes)
        return await _response(request, ErrorReport(HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidRequest", why), None)

    app.add_exception_handler(SemGradGuardError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _details(error: SemGradGuardError) -> dict[str, Any]:
    """Return the data of an error, so that a client can raise the same error."""
    if isinstance(error, RefusedError | QueueUnavailableError):
        return {}
    return {key: value for key, value in vars(error).items() if isinstance(value, str | int | float | tuple)}


async def _response(request: Request, report: ErrorReport, headers: Mapping[str, str] | None) -> Response:
    if request.url.path.startswith(API_ROOT):
        body = {"error": report.kind, "message": report.message, "details": report.details}
        return JSONResponse(body, status_code=report.status, headers=headers)
    typed, status = await _typed(request), report.status
    again = _item_page(request) if status is HTTPStatus.CONFLICT else ""
    page = render(
        request, "problem.html", status=status, message=report.message, typed=typed, again=again, status_code=status
    )
    page.headers.update(headers or {})
    return page


def _item_page(request: Request) -> str:
    """Return the path of the item that a form was about, or nothing."""
    item_id = request.path_params.get("item_id", "")
    return f"/items/{item_id}" if item_id else ""


async def _typed(request: Request) -> str:
    """Return the text that the reviewer typed, so that a refused form does not lose it."""
    if request.method != "POST" or not request.headers.get("content-type", "").startswith("application/x-www-form"):
        return ""
    try:
        form = await request.form()
    except (HTTPException, RuntimeError):  # it could not be read, or only in part
        return ""
    return next((text for key in ("text", "reason") if isinstance(text := form.get(key), str) and text), "")
