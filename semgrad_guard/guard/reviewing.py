"""The policy's section `review` becomes a queue, and verdicts that answer the same question again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from semgrad_guard.flow import Verdict

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange, Ruling
    from semgrad_guard.policy.review import ReuseVerdicts, ReviewSettings
    from semgrad_guard.review import QueueSettings, SqlReviewQueue
    from semgrad_guard.review.client import ReviewClient

_log = logging.getLogger("semgrad_guard")

_DAY_S = 86_400.0
_GIVEN = frozenset({Verdict.APPROVED, Verdict.EDITED})


def queue_of(review: ReviewSettings) -> SqlReviewQueue | ReviewClient:
    """Return the queue that a policy names; it is reached at the first use.

    Raises:
        ReviewError: the URL is none that a queue can live at.
        MissingExtraError: the database driver or the web client is not installed.
    """
    from semgrad_guard.review import open_queue  # noqa: PLC0415 - loads the database library

    settings = queue_settings(review)
    if review.token is not None:
        return open_queue(review.url, token=review.token, settings=settings)
    return open_queue(review.url, settings=settings)


def queue_settings(review: ReviewSettings) -> QueueSettings:
    """Return how the queue of a policy behaves."""
    from semgrad_guard.review import AtExpiry, QueueSettings  # noqa: PLC0415 - loads the database library

    return QueueSettings(
        lease_s=review.lease_s,
        deadline_s=review.deadline_s,
        at_expiry=AtExpiry(review.at_deadline),
        tag_weights=review.tag_weights,
        retention_s=None if review.retention_days is None else review.retention_days * _DAY_S,
    )


class EarlierVerdicts:
    """What people said before, for the questions that a policy lets it answer again."""

    def __init__(self, queue: SqlReviewQueue | ReviewClient, wanted: ReuseVerdicts) -> None:
        """Keep where verdicts are, and which of them count."""
        self._queue, self._wanted = queue, wanted

    def find(self, exchange: Exchange) -> Ruling | None:
        """Return the verdict that answers the exchange's question; `None` when a person must look again.

        The earlier item must carry all tags of the exchange. Where the latest verdict is a rejection, there is nothing
        to give. A queue that can't be asked counts as one that knows nothing.
        """
        wanted, question = self._wanted, exchange.question
        if not question or (wanted.tags is not None and not wanted.tags & exchange.tags):
            return None
        try:
            found = self._queue.reuse(
                question,
                tags=exchange.tags,
                similar=wanted.threshold if wanted.mode == "similar" else None,
                max_age_s=None if wanted.expires_days is None else wanted.expires_days * _DAY_S,
            )
        except Exception as error:  # noqa: BLE001 - a person can still look
            _log.warning("could not look for an earlier verdict: %s: %s", type(error).__name__, error)
            return None
        return found.ruling if found is not None and found.ruling.verdict in _GIVEN else None
