"""Uses verdicts: gives them again for the same question, posts them to LangSmith, and checks confidences with them."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from semgrad_guard.errors import ReviewError, in_log
from semgrad_guard.flow import Verdict
from semgrad_guard.wire import plain

if TYPE_CHECKING:
    from semgrad_guard.calibration import DriftMonitor
    from semgrad_guard.flow import Exchange, Ruling
    from semgrad_guard.policy import Policy
    from semgrad_guard.policy.review import ReuseVerdicts
    from semgrad_guard.ports import Calibrator
    from semgrad_guard.review import SqlReviewQueue
    from semgrad_guard.review.client import ReviewClient
    from semgrad_guard.review.store.outbox import Delivery

_log = logging.getLogger("semgrad_guard")


class EarlierVerdicts:
    """Finds earlier verdicts for questions that are asked again."""

    def __init__(self, queue: SqlReviewQueue | ReviewClient, reuse: ReuseVerdicts) -> None:
        """Store the queue that has the verdicts, and the rules for using them again."""
        self._queue, self._reuse = queue, reuse

    def find(self, exchange: Exchange) -> Ruling | None:
        """Return an earlier verdict on the exchange's question; `None` when a person must judge it again.

        The earlier item must have all tags of the exchange, the same passages, and the same values of the metadata that
        the policy names. After a rejection a person must judge again. A queue that cannot be reached counts as one
        without verdicts.
        """
        from semgrad_guard.review.store.document import passages_key  # loads the database library

        reuse, question = self._reuse, exchange.question
        if not question or not reuse.is_scoped or (reuse.tags is not None and not reuse.tags & exchange.tags):
            return None
        fields = reuse.same_metadata or ()
        if any(exchange.metadata.get(each) is None for each in fields):
            return None
        try:
            found = self._queue.reuse(
                question,
                tags=exchange.tags,
                metadata={each: plain(exchange.metadata[each]) for each in fields},
                passages=passages_key(passage.text for passage in exchange.passages),
                similar=reuse.threshold if reuse.mode == "similar" else None,
                max_age_s=None if reuse.expires_days is None else timedelta(days=reuse.expires_days).total_seconds(),
            )
        except Exception as error:  # noqa: BLE001 - a person can still judge
            _log.warning("could not look for an earlier verdict: %s", in_log(error))
            return None
        given = found is not None and found.ruling.verdict in {Verdict.APPROVED, Verdict.EDITED}
        return found.ruling if found is not None and given else None


LANGSMITH = "langsmith"
"""The consumer of verdicts that posts feedback; all programs on one queue share it, so each verdict is posted once."""


class VerdictLoop:
    """Looks for new verdicts in a separate thread, which starts when this program first hands an answer to the queue.

    A verdict is passed on once it can no longer be undone.
    """

    every_s = 5.0
    """Seconds between two checks."""

    def __init__(
        self,
        queue: SqlReviewQueue,
        *,
        langsmith: bool = False,
        log_text: bool = False,
        drift: DriftMonitor | None = None,
    ) -> None:
        """Store where verdicts come from and where they go.

        Args:
            queue: where verdicts are given.
            langsmith: post each verdict as feedback on the run that wrote the answer.
            log_text: whether edited answers and reasons may be posted too.
            drift: receives each answer's confidence and whether it was right.
        """
        self._queue, self._langsmith, self._log_text, self._drift = queue, langsmith, log_text, drift
        self._seen: int | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread if it is not running; a failure is logged, and the next call tries again."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                try:
                    self.prepare()
                except Exception as error:  # noqa: BLE001 - the answer is stored all the same
                    _log.warning("verdicts are not passed on yet: %s", in_log(error))
                    return
                self._thread = threading.Thread(target=self._run, name="semgrad-verdicts", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop the thread; verdicts not passed on yet are left to the next program."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def prepare(self) -> None:
        """Register for verdicts from now on."""
        if self._langsmith:
            self._queue.subscribe(LANGSMITH)
        if self._drift is not None and self._seen is None:
            self._seen = self._queue.last_ruling()

    def look(self) -> int:
        """Pass on new verdicts and return their number."""
        from semgrad_guard.review.store.outbox import consume  # loads the database library

        posted = consume(self._queue, LANGSMITH, self._post) if self._langsmith else 0
        return posted + self._observe()

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - the database may come back
                _log.warning("could not look for verdicts: %s", in_log(error))

    def _post(self, delivery: Delivery) -> None:
        from semgrad_guard.review import exchange_of  # loads the database library
        from semgrad_guard.telemetry.feedback import (  # loads LangSmith
            post_verdict_feedback,
            verdict_feedback,
        )

        detail = self._queue.get(delivery.item_id)
        if detail.ruling is None or detail.document is None:
            return
        exchange = exchange_of(detail.document)
        if verdict_feedback(detail.ruling, exchange, log_text=self._log_text) is None:
            return
        if not post_verdict_feedback(detail.ruling, exchange, log_text=self._log_text):
            msg = f"LangSmith did not take the verdict on item {delivery.item_id}; it is posted again later"
            raise ReviewError(msg)

    def _observe(self) -> int:
        if self._drift is None or self._seen is None:
            return 0
        judged, self._seen = self._queue.judged_after(self._seen)
        own = [outcome for outcome in judged if outcome.profile == self._drift.profile.name]
        for outcome in own:
            self._drift.observe_outcome(outcome.confidence, correct=outcome.correct)
        return len(own)


def pass_verdicts_on(queue: object, policy: Policy, calibrator: Calibrator) -> VerdictLoop | None:
    """Start passing verdicts on when the first answer is handed to the queue.

    Returns:
        The loop; `None` if verdicts are not used, or if a review site passes them on itself.
    """
    from semgrad_guard.review import SqlReviewQueue  # loads the database library

    drift = getattr(calibrator, "drift", None)
    if not isinstance(queue, SqlReviewQueue) or (drift is None and not policy.telemetry.langsmith):
        return None
    telemetry = policy.telemetry
    loop = VerdictLoop(queue, langsmith=telemetry.langsmith, log_text=telemetry.log_text, drift=drift)
    queue.call_after_submit(loop.start)
    return loop
