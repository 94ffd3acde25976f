"""What every request needs: the queue, its accounts, and the site's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from starlette.requests import HTTPConnection

from semgrad_guard.review.access import Accounts, Sessions, Tokens
from semgrad_guard.review.throttle import Devices, Hashing, Limits, Throttle

if TYPE_CHECKING:
    from argon2 import PasswordHasher

    from semgrad_guard.review.queue import SqlReviewQueue

MEGABYTE = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """How the site is set up."""

    is_encrypted: bool = False
    """True if browsers reach the site by https; cookies are then sent by https only."""
    hosts: frozenset[str] = frozenset()
    """Host names that requests may use; an empty set allows all."""
    largest_form: int = 4 * MEGABYTE
    largest_submission: int = 32 * MEGABYTE
    body_s: float = 60.0
    """Seconds for the body of a request."""
    limits: Limits = field(default_factory=Limits)


class Desk:
    """The queue with its accounts, logins and tokens."""

    def __init__(self, queue: SqlReviewQueue, settings: WebSettings, hasher: PasswordHasher | None = None) -> None:
        """Use the queue's own database for accounts, logins and tokens; see `Accounts` for `hasher`."""
        self.queue = queue
        self.settings = settings
        self.accounts = Accounts(queue.database, hasher)
        self.sessions = Sessions(queue.database)
        self.tokens = Tokens(queue.database)
        self.throttle = Throttle(queue.database, settings.limits)
        self.devices = Devices(queue.database)
        self.hashing = Hashing()


def desk_of(connection: HTTPConnection) -> Desk:
    """Return the desk of the application that handles a request."""
    return cast("Desk", connection.app.state.desk)
