"""Logging in and out, and the checks that a request comes from a logged-in reviewer."""

from __future__ import annotations

import math
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, Form, Query
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from semgrad_guard.review.access import LONGEST_S, Session, User, csrf_of, is_csrf
from semgrad_guard.review.site.desk import Desk, desk_of
from semgrad_guard.review.site.problems import RefusedError
from semgrad_guard.review.site.rendering import render

if TYPE_CHECKING:
    from starlette.datastructures import URL

router = APIRouter(include_in_schema=False)

_LOGIN_COOKIE_S = 3600
_DEVICE_COOKIE_S = 180 * 86_400
_BUSY_S = 3


class LoginNeededError(RefusedError):
    """The request does not come from a logged-in reviewer."""

    def __init__(self, url: URL) -> None:
        """Redirect the browser to the login page, which later leads back to `url`."""
        target = url.path + (f"?{url.query}" if url.query else "")
        super().__init__(HTTPStatus.SEE_OTHER, "please log in", {"Location": f"/login?next={quote(target)}"})


def cookie_name(desk: Desk, kind: str) -> str:
    """Return the name of a cookie; with https its prefix binds it to this host."""
    return f"__Host-semgrad-{kind}" if desk.settings.is_encrypted else f"semgrad-{kind}"


def current_session(request: Request) -> Session:
    """Return the session of a request.

    Raises:
        LoginNeededError: a page was requested without a session.
        RefusedError: a form was sent without a session.
    """
    desk = desk_of(request)
    token = request.cookies.get(cookie_name(desk, "session"), "")
    session = desk.sessions.find(token) if token else None
    if session is None:
        if request.method == "GET":
            raise LoginNeededError(request.url)
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "your session has ended: log in again and repeat the action")
    request.state.session = session
    return session


def form_session(
    request: Request, session: Annotated[Session, Depends(current_session)], csrf: Annotated[str, Form()] = ""
) -> Session:
    """Return the session of a form, after checking that this site produced the form.

    Raises:
        RefusedError: the form comes from another site or session.
    """
    _require_same_origin(request)
    if not is_csrf(session.token, csrf):
        raise RefusedError(HTTPStatus.FORBIDDEN, "this form belongs to another session: reload the page and try again")
    return session


Reader = Annotated[Session, Depends(current_session)]
Writer = Annotated[Session, Depends(form_session)]


@router.get("/login")
def login_page(request: Request, next: Annotated[str, Query()] = "/") -> Response:  # noqa: A002 - the parameter's name in the URL
    """Show the login form."""
    return _login_page(request, next)


@router.post("/login")
def log_in(
    request: Request,
    name: Annotated[str, Form(max_length=200)] = "",
    password: Annotated[str, Form(max_length=2000)] = "",
    csrf: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",  # noqa: A002 - the field's name in the form
) -> Response:
    """Log a reviewer in with a new session."""
    desk = desk_of(request)
    _require_same_origin(request)
    token = request.cookies.get(cookie_name(desk, "login"), "")
    if not token or not is_csrf(token, csrf):
        raise RefusedError(HTTPStatus.FORBIDDEN, "this login form is too old or from another site: reload the page")
    account, address = name.strip().lower(), request.client.host if request.client else "unknown"
    device = request.cookies.get(cookie_name(desk, "device"), "")
    with desk.hashing.place(address) as is_free:
        if not is_free:
            message = "too many people are logging in at this moment: try again in a few seconds"
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, message, {"Retry-After": str(_BUSY_S)})
        user = _verified(desk, account, password, address, device)
    if user is None:
        return _login_page(request, next, problem="wrong name or password", status_code=HTTPStatus.UNAUTHORIZED)
    session = desk.sessions.begin(user, instead_of=request.cookies.get(cookie_name(desk, "session"), ""))
    response = RedirectResponse(_own_path(next), HTTPStatus.SEE_OTHER)
    _set_cookie(response, desk, "session", session.token, LONGEST_S)
    _set_cookie(response, desk, "device", desk.devices.remember(user.name, device), _DEVICE_COOKIE_S)
    response.delete_cookie(cookie_name(desk, "login"), secure=desk.settings.is_encrypted, httponly=True)
    return response


def _verified(desk: Desk, account: str, password: str, address: str, device: str) -> User | None:
    """Return the account of a name and password; the try is counted before the password is looked at.

    Raises:
        RefusedError: there were too many failed ones.
    """
    counted = desk.throttle.begin(account, address, device)
    if counted.wait_s > 0:
        message = f"too many failed logins: try again in {math.ceil(counted.wait_s / 60)} minutes"
        raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, message, {"Retry-After": str(math.ceil(counted.wait_s))})
    with desk.hashing.turn():
        user = desk.accounts.verify(account, password)
    if user is not None:
        desk.throttle.succeeded(counted)
    return user


@router.post("/logout")
def log_out(request: Request, session: Writer) -> Response:
    """End the session on the server."""
    desk = desk_of(request)
    desk.sessions.end(session.token)
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    response.delete_cookie(cookie_name(desk, "session"), secure=desk.settings.is_encrypted, httponly=True)
    return response


def _login_page(request: Request, target: str, *, problem: str = "", status_code: int = 200) -> Response:
    desk = desk_of(request)
    token = request.cookies.get(cookie_name(desk, "login")) or secrets.token_urlsafe(32)
    page = render(
        request, "login.html", csrf=csrf_of(token), next=_own_path(target), problem=problem, status_code=status_code
    )
    _set_cookie(page, desk, "login", token, _LOGIN_COOKIE_S)
    return page


def _set_cookie(response: Response, desk: Desk, kind: str, value: str, lifetime_s: float) -> None:
    response.set_cookie(
        cookie_name(desk, kind),
        value,
        max_age=int(lifetime_s),
        path="/",
        secure=desk.settings.is_encrypted,
        httponly=True,
        samesite="lax",
    )


def _own_path(target: str) -> str:
    """Return the target if it is a path of this site, otherwise `/`."""
    parts = urlsplit(target)
    is_own = not parts.scheme and not parts.netloc and target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if is_own and "\\" not in target and target.isprintable() else "/"


def _require_same_origin(request: Request) -> None:
    """Refuse a form that the browser reports as sent by another site; the form's token is checked as well."""
    origin = request.headers.get("origin")
    if request.headers.get("sec-fetch-site") in {"cross-site", "same-site"} or (
        origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    ):
        raise RefusedError(HTTPStatus.FORBIDDEN, "this form comes from another site")
