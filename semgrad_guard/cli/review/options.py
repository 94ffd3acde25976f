"""Options that the commands of `semgrad-guard review` share, and the queue that they name."""

from __future__ import annotations

import getpass
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeGuard

import typer

from semgrad_guard.errors import ReviewError

if TYPE_CHECKING:
    from semgrad_guard.policy import Policy
    from semgrad_guard.review import SqlReviewQueue

URL_VARIABLE = "SEMGRAD_REVIEW_URL"
REVIEWER_VARIABLE = "SEMGRAD_REVIEWER"
DEFAULT_URL = "sqlite:///semgrad-review.db"

Url = Annotated[
    str | None,
    typer.Option("--url", envvar=URL_VARIABLE, help=f"URL of the queue.  \\[default: {DEFAULT_URL}]", show_envvar=True),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="Take the queue's URL and settings from this policy file.", exists=True, dir_okay=False
    ),
]
By = Annotated[
    str | None, typer.Option("--by", envvar=REVIEWER_VARIABLE, help="Your name.  \\[default: your login name]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ItemId = Annotated[str, typer.Argument(help="Id of the item, or its first characters.")]
ItemIds = Annotated[list[str], typer.Argument(help="Ids of the items, or their first characters.")]


class RoleChoice(StrEnum):
    """Values of `--role`."""

    REVIEWER = "reviewer"
    ADMIN = "admin"


class ScopeChoice(StrEnum):
    """Values of `--scope`."""

    SUBMIT = "submit"
    READ = "read"
    JUDGE = "judge"


def queue_at(url: str | None, policy: Path | None) -> SqlReviewQueue:
    """Return the queue that the options name."""
    if policy is None:
        from semgrad_guard.review import open_queue  # loads SQLAlchemy

        return open_queue(url or DEFAULT_URL)
    from semgrad_guard.guard.assembly import queue_of  # needed for this option only

    queue = queue_of(policy_at(url, policy).review)
    if queue is None:
        msg = f"{policy} names no queue: add `review: {{url: {DEFAULT_URL}}}` to it, or give --url in place of --policy"
        raise ReviewError(msg)
    if not _is_database(queue):
        msg = f"the queue of {policy} is a review site: use its pages, or run this on the machine with its database"
        raise ReviewError(msg)
    return queue


def policy_at(url: str | None, path: Path) -> Policy:
    """Return the policy that names the queue.

    Raises:
        ReviewError: `--url` names a queue too.
    """
    if url is not None and os.environ.get(URL_VARIABLE) != url:
        msg = "--url and --policy both name a queue: give one of them"
        raise ReviewError(msg)
    from semgrad_guard.policy import load_policy  # needed for this option only

    return load_policy(path)


def _is_database(queue: object) -> TypeGuard[SqlReviewQueue]:
    from semgrad_guard.review import SqlReviewQueue  # loads SQLAlchemy

    return isinstance(queue, SqlReviewQueue)


def reviewer(by: str | None) -> str:
    """Return the reviewer's name."""
    if by:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        msg = f"your login name is unknown: give your name with --by NAME or {REVIEWER_VARIABLE}"
        raise ReviewError(msg) from error
