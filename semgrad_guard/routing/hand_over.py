"""The step that hands an answer to a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.errors import QueueUnavailableError, ReviewError, StepUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Attempt, Decision, Exchange, HumanReview, ReviewId, Ruling
    from semgrad_guard.ports import ReviewQueue


def hand_over(
    step: HumanReview, exchange: Exchange, decision: Decision, attempts: Sequence[Attempt], queue: ReviewQueue | None
) -> tuple[ReviewId, Ruling | None]:
    """Return the id of the stored review item and, where the policy waits and a person was quick, the verdict.

    Args:
        step: what the policy chose.
        exchange: the best attempt, which the person reads.
        decision: why it is handed over.
        attempts: all attempts, oldest first.
        queue: where it is stored.

    Raises:
        ReviewError: it could not be stored; the cause is kept.
        StepUnavailableError: there is no queue.
    """
    if queue is None:
        msg = "the policy asks for human review but names no queue: add `review: {url: sqlite:///review.db}`"
        raise StepUnavailableError(msg)
    try:
        review_id = queue.submit(exchange, decision, attempts)
    except ReviewError:
        raise
    except Exception as error:
        msg = f"the review queue did not take the answer: {type(error).__name__}: {error}"
        raise QueueUnavailableError(msg) from error
    if step.wait_s <= 0:
        return review_id, None
    try:
        return review_id, queue.wait(review_id, step.wait_s)
    except Exception:  # noqa: BLE001 - the item is stored: not seeing the verdict now only means that it is pending
        return review_id, None
