"""A person's verdict -> LangSmith feedback on the run that wrote the answer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from semgrad_guard.extras import require
from semgrad_guard.telemetry.feedback import verdict_feedback
from semgrad_guard.telemetry.langsmith_post import FeedbackPoster, is_transient

if TYPE_CHECKING:
    from langsmith import Client

    from semgrad_guard.flow import Exchange, Ruling

_log = logging.getLogger("semgrad_guard")

TRIES = 3
MAX_WAIT_S = 5.0


def post_verdict_feedback(
    ruling: Ruling, exchange: Exchange, *, client: Client | None = None, log_text: bool = True
) -> bool:
    """Post a verdict as feedback `semgrad_verdict` on the run that wrote the answer, now, and say whether it is there.

    The score is 1 where the answer was approved as it was and 0 where it was edited or rejected; an edited answer is
    the feedback's correction. Posting a verdict again changes nothing. A failure is logged, never raised: a verdict
    stands whether LangSmith hears of it or not. `LangSmithSink.emit_verdict` does the same without waiting.

    Args:
        ruling: the verdict.
        exchange: what was judged, with its reserved `run` metadata.
        client: LangSmith client; `None` takes the one that LangChain's tracing uses.
        log_text: whether the edited answer and the reviewer's reason may be sent.

    Returns:
        False where the run is not known, nobody decided before the deadline, or LangSmith did not take it.

    Raises:
        MissingExtraError: `langsmith` is not installed.
    """
    feedback = verdict_feedback(ruling, exchange, log_text=log_text)
    if feedback is None:
        return False
    poster = FeedbackPoster(extend_retention=False)
    client = client or require("langsmith.run_trees", extra="langsmith").get_cached_client()
    again = Retrying(
        stop=stop_after_attempt(TRIES),
        wait=wait_random_exponential(max=MAX_WAIT_S),
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and is_transient(error)),
        reraise=True,
    )
    try:
        again(poster.post, client, feedback)
    except Exception as error:  # noqa: BLE001 - the verdict stands, whether it is seen in LangSmith or not
        _log.warning("verdict %s was not posted to LangSmith: %s: %s", ruling.review_id, type(error).__name__, error)
        return False
    return True
