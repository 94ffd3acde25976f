"""Where a queue lives: its URL checked, completed and shown without secrets."""

from __future__ import annotations

import ipaddress

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from semgrad_guard.errors import ReviewError
from semgrad_guard.extras import require

_POSTGRES = "postgresql+psycopg"
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": _POSTGRES,
    "postgresql": _POSTGRES,
    _POSTGRES: _POSTGRES,
}
_SECRET_KEYS = frozenset({"password", "sslpassword", "passfile", "sslkey"})
_ADVICE = "use sqlite:///path/to/file.db or postgresql://user:password@host/database"


def parse_url(text: str) -> URL:
    """Return the database URL with the driver this package uses.

    Raises:
        ReviewError: it is no URL, or names a database that is not supported. The text itself is not repeated, as it
            may hold a password.
        MissingExtraError: the driver is not installed.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        msg = f"the review url is not a database URL: {_ADVICE}"
        raise ReviewError(msg) from None  # the cause repeats the text
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        msg = f"the review queue cannot live in {url.drivername!r}: {_ADVICE}"
        raise ReviewError(msg)
    if driver == _POSTGRES:
        require("psycopg", extra="postgres")
    return url.set(drivername=driver)


def masked(url: URL) -> str:
    """Return the URL as it may be printed: without password and key files."""
    hidden = {key: "***" for key in url.query if key in _SECRET_KEYS}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def is_memory(url: URL) -> bool:
    """True for an SQLite database that lives only in this process."""
    return url.drivername == "sqlite" and (url.database in {None, "", ":memory:"} or "mode=memory" in str(url.database))


def is_loopback(host: str | None) -> bool:
    """True for a name or address of this machine itself."""
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
