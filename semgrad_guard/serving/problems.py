"""Errors as responses, in the form that OpenAI's clients understand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from semgrad_guard.errors import (
    ContextTooLongError,
    EmptyAnswerError,
    EmptyPromptError,
    ForeignTokensError,
    LowConfidenceError,
    ModelFailedError,
    ModelSettingError,
    OutOfMemoryError,
    QueueUnavailableError,
    ScoringEndedError,
    ScoringSettingError,
    SemGradGuardError,
)
from semgrad_guard.serving.batching import BusyError, ClosedError
from semgrad_guard.wire import ProblemForm, WireError, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import FastAPI
    from starlette.requests import Request


class RequestError(SemGradGuardError):
    """A request cannot be carried out as it is."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the response's status, the machine-readable code, the field that it is about, and headers."""
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})
        super().__init__(message)

    @property
    def may_differ_elsewhere(self) -> bool:
        """Whether another server may carry the request out."""
        return False

    def with_others(self, others: Sequence[str]) -> RequestError:
        """Return the same error, which also says what went wrong in trying to answer in another way."""
        return RequestError(
            self.status, "; ".join([str(self), *others]), code=self.code, param=self.param, headers=self.headers
        )


class TooSlowError(RequestError):
    """A request took longer than the server allows."""

    def __init__(self, seconds: float) -> None:
        """Keep the limit."""
        self.seconds = seconds
        super().__init__(
            HTTPStatus.GATEWAY_TIMEOUT,
            f"it took longer than {seconds:g} s, the most that this server allows: ask for less at once, or later",
            code="timeout",
        )


class ClientGoneError(RequestError):
    """The client closed the connection before its answer was ready."""

    def __init__(self) -> None:
        """Say so, for the log: nobody reads the response."""
        super().__init__(HTTPStatus.BAD_REQUEST, "the client closed the connection", code="client_gone")


_STATUS: tuple[tuple[type[SemGradGuardError], HTTPStatus], ...] = (
    (BusyError, HTTPStatus.TOO_MANY_REQUESTS),
    (ClosedError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ScoringEndedError, HTTPStatus.GATEWAY_TIMEOUT),
    (OutOfMemoryError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ModelFailedError, HTTPStatus.SERVICE_UNAVAILABLE),
    (QueueUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (LowConfidenceError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ContextTooLongError, HTTPStatus.BAD_REQUEST),
    (EmptyAnswerError, HTTPStatus.BAD_REQUEST),
    (EmptyPromptError, HTTPStatus.BAD_REQUEST),
    (ForeignTokensError, HTTPStatus.BAD_REQUEST),
    (ScoringSettingError, HTTPStatus.BAD_REQUEST),
    (ModelSettingError, HTTPStatus.BAD_REQUEST),
    (WireError, HTTPStatus.BAD_REQUEST),
)
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
_CODES: dict[type[SemGradGuardError], str] = {ContextTooLongError: "context_length_exceeded", BusyError: "busy"}
_HTTP_CODES = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large"}
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


def status_of(error: SemGradGuardError) -> HTTPStatus:
    """Return the HTTP status of an error."""
    if isinstance(error, RequestError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def code_of(error: SemGradGuardError) -> str:
    """Return the word by which programs know an error: `empty_answer` for `EmptyAnswerError`."""
    if isinstance(error, RequestError):
        return error.code
    name = type(error).__name__.removesuffix("Error")
    return _CODES.get(type(error)) or _WORD.sub("_", name).lower()


def problem_of(error: SemGradGuardError) -> ProblemForm:
    """Return an error as JSON values from which a client can make the same error again."""
    details = {key: plain(value) for key, value in vars(error).items() if isinstance(value, str | int | float | tuple)}
    return ProblemForm(type=type(error).__name__, message=str(error), details=details)


@dataclass(frozen=True, slots=True)
class Report:
    """What a response says about an error."""

    status: HTTPStatus
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    problem: ProblemForm | None = None

    @classmethod
    def of(cls, error: SemGradGuardError) -> Report:
        """Return the report of an error."""
        headers = dict(error.headers) if isinstance(error, RequestError) else {}
        if isinstance(error, BusyError):
            headers["Retry-After"] = f"{error.retry_after_s:.0f}"
        param = error.param if isinstance(error, RequestError) else None
        return cls(status_of(error), str(error), code_of(error), param, headers, problem_of(error))

    def body(self) -> dict[str, Any]:
        """Return the body: OpenAI's `error`, with the error's class and data under `semgrad`."""
        server = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        told: dict[str, Any] = {
            "message": self.message,
            "type": _TYPES.get(self.status, server),
            "param": self.param,
            "code": self.code,
        }
        if self.problem is not None:
            told["semgrad"] = self.problem.model_dump(mode="json")
        return {"error": told}

    def response(self) -> Response:
        """Return the response."""
        return JSONResponse(self.body(), self.status, dict(self.headers))


def install(app: FastAPI) -> None:
    """Turn every error into a response that says what went wrong and repeats nothing of the request."""

    async def known(_: Request, error: Exception) -> Response:
        if not isinstance(error, SemGradGuardError):  # registered for this class only
            raise error
        return Report.of(error).response()

    async def http(_: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        status = HTTPStatus(error.status_code)
        code = _HTTP_CODES.get(status) or status.phrase.lower().replace(" ", "_")
        return Report(status, str(error.detail), code, None, error.headers or {}).response()

    async def invalid(_: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        mistakes = error.errors()
        places = [".".join(str(part) for part in found["loc"][1:]) or "body" for found in mistakes]
        why = "; ".join(f"{place}: {found['msg']}" for place, found in zip(places, mistakes, strict=True))
        return Report(HTTPStatus.BAD_REQUEST, why, "invalid_request", places[0] if places else None).response()

    app.add_exception_handler(SemGradGuardError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
