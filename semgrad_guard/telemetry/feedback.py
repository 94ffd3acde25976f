"""Feedback in LangSmith: confidences and verdicts, and how they are posted."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid5

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from semgrad_guard.errors import in_log
from semgrad_guard.extras import require
from semgrad_guard.flow import Verdict
from semgrad_guard.wire import RunRef, answered_attempt, number, signals_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langsmith import Client

    from semgrad_guard.flow import Attempt, Exchange, Json, Record, Ruling

CONFIDENCE_KEY = "semgrad_confidence"
VERDICT_KEY = "semgrad_verdict"

_NAMESPACE = UUID("6a5c1c5e-5f0b-5c86-9d5c-7c2f4f3a8b10")
"""Namespace of feedback ids, which makes them repeatable: posting a record twice changes nothing."""

_SCORES = {Verdict.APPROVED: 1.0, Verdict.EDITED: 0.0, Verdict.REJECTED: 0.0}
"""Whether the model's own answer was right; unknown if the verdict expired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Feedback on one traced run."""

    id: UUID
    key: str
    run: RunRef
    score: float | None
    """LangSmith keeps four decimals."""
    comment: str
    value: str | None = None
    correction: Mapping[str, str] | None = None
    details: Mapping[str, Json]
    """Raw numbers in full precision."""
    by: Literal["model", "api"]
    """Source of the feedback: a model, or a person through this package."""
    source_run_id: str | None = None
    """The run that judged the answer."""
    recorded: bool = False
    """True if the exchange itself says that LangSmith records the run."""


def confidence_feedback(record: Record, *, log_text: bool, within: RunRef | None = None) -> list[Feedback]:
    """Return feedback for each attempt whose run is known.

    Args:
        record: the record.
        log_text: whether the comment contains the policy's explanation or only its rule.
        within: the run that the guard ran in. It is the source of the feedback, fills in the trace and project that the
            attempts' own runs lack (all are in one trace), and gets the feedback if no attempt names its run.
    """
    named: dict[str, tuple[RunRef, Attempt]] = {}
    for attempt in record.attempts:
        ref = _completed(RunRef.of(attempt.exchange), within)
        if ref is not None and ref.run_id is not None:
            named.setdefault(ref.run_id, (ref, attempt))
    answer = answered_attempt(record)
    if not named and answer is not None and within is not None and within.run_id is not None:
        named[within.run_id] = within, answer
    return [_confidence(ref, attempt, within, log_text=log_text) for ref, attempt in named.values()]


def verdict_feedback(ruling: Ruling, exchange: Exchange, *, log_text: bool) -> Feedback | None:
    """Return a reviewer's verdict as feedback on the run that produced the answer.

    The score is 1 if the answer was approved unchanged, and 0 if it was edited or rejected.

    Returns:
        the feedback; `None` if the run is not known, or the deadline passed without a verdict.
    """
    ref = RunRef.of(exchange)
    score = _SCORES.get(ruling.verdict)
    if ref is None or ref.run_id is None or score is None:
        return None
    edited = log_text and ruling.verdict is Verdict.EDITED
    reason = ruling.text if log_text and ruling.verdict is Verdict.REJECTED else ""
    return Feedback(
        id=_id(VERDICT_KEY, ref.run_id, ruling.review_id),
        key=VERDICT_KEY,
        run=ref,
        score=score,
        value=str(ruling.verdict),
        comment=reason,
        correction={"answer": ruling.text} if edited else None,
        by="api",
        details={"review_id": ruling.review_id, "at": ruling.at.isoformat()},
    )


def _completed(ref: RunRef | None, within: RunRef | None) -> RunRef | None:
    """Fill in trace and project from the guard's own run."""
    if ref is None or within is None:
        return ref
    return RunRef(
        run_id=ref.run_id,
        trace_id=ref.trace_id or within.trace_id,
        session_name=ref.session_name or within.session_name,
    )


def _confidence(ref: RunRef, attempt: Attempt, within: RunRef | None, *, log_text: bool) -> Feedback:
    decision, exchange = attempt.decision, attempt.exchange
    own = RunRef.of(exchange)
    details: dict[str, Json] = {
        "action": str(decision.action),
        "rule": decision.rule,
        "attempt": exchange.attempt,
        "profile": decision.confidence.profile,
    }
    if decision.score is not None:
        score = decision.score
        details |= {"method": score.method, "score": number(score.value), "scorer": score.model, "proxy": score.proxy}
        details["signals"] = signals_fields(score.signals)
    return Feedback(
        id=_id(CONFIDENCE_KEY, str(ref.run_id), str(exchange.id)),
        key=CONFIDENCE_KEY,
        run=ref,
        score=number(decision.confidence.value),
        comment=f"{decision.action} by {decision.rule}" + (f": {decision.why}" if log_text and decision.why else ""),
        details={name: value for name, value in details.items() if value is not None},
        by="model",
        source_run_id=within.run_id if within is not None and within.run_id != ref.run_id else None,
        recorded=bool(own and own.session_name),
    )


def _id(*parts: str) -> UUID:
    return uuid5(_NAMESPACE, "\n".join(parts))


THREAD_NAME = "semgrad-langsmith"
"""Prefix of the names of the threads that post."""


class FeedbackPoster:
    """Posts feedback one by one, and caches the ids of projects."""

    def __init__(self, *, extend_retention: bool) -> None:
        """Choose whether feedback extends the retention of traces.

        Args:
            extend_retention: True lets feedback extend how long LangSmith keeps a trace, which it charges for; the
                client then sends feedback on traces in its own batches instead of at once.
        """
        self._extend_retention = extend_retention
        self._projects: dict[tuple[str, str], UUID] = {}
        self._langsmith = require("langsmith", extra="langsmith")
        logging.getLogger("langsmith.client").addFilter(_leave_out_ours)

    def post(self, client: Client, feedback: Feedback) -> None:
        """Post one feedback; posting it again changes nothing.

        Raises:
            Exception: LangSmith did not accept it; `is_transient` says whether to try again.
        """
        try:
            client.create_feedback(
                feedback.run.run_id,
                key=feedback.key,
                score=feedback.score,
                value=feedback.value,
                comment=feedback.comment or None,
                correction=dict(feedback.correction) if feedback.correction else None,
                trace_id=feedback.run.trace_id,
                session_id=self._project_id(client, feedback.run.session_name),
                source_info=dict(feedback.details),
                source_run_id=feedback.source_run_id,
                feedback_source_type=feedback.by,
                feedback_id=feedback.id,
                stop_after_attempt=1,
                extend_trace_retention=self._extend_retention,
            )
        except self._langsmith.utils.LangSmithConflictError:
            return  # it was posted before

    def _project_id(self, client: Client, name: str | None) -> UUID:
        """Return the id of a project; `None` means the project that the environment names."""
        name = name or str(self._langsmith.utils.get_tracer_project())
        key = client.api_url, name
        if key not in self._projects:
            self._projects[key] = client.read_project(project_name=name).id
        return self._projects[key]


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later: the server is down, busy, or does not know the run yet."""
    utils = require("langsmith.utils", extra="langsmith")
    if not isinstance(error, utils.LangSmithError | OSError):
        return False
    if isinstance(error, utils.LangSmithAuthError | utils.LangSmithUserError):
        return False
    cause: Any = error.__cause__ or error.__context__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return status is None or status >= 500 or status in {404, 408, 425, 429}


def _leave_out_ours(log: logging.LogRecord) -> bool:
    """Filter out the client's traceback for each failed post; the worker counts failures and logs the first."""
    return not (log.name == "langsmith.client" and threading.current_thread().name.startswith(THREAD_NAME))


_log = logging.getLogger("semgrad_guard")

TRIES = 3
MAX_WAIT_S = 5.0


def post_verdict_feedback(
    ruling: Ruling, exchange: Exchange, *, client: Client | None = None, log_text: bool = True
) -> bool:
    """Post a verdict as feedback `semgrad_verdict` on the run that produced the answer; return True if it was posted.

    The score is 1 if the answer was approved unchanged, and 0 if it was edited or rejected; an edited answer becomes
    the feedback's correction. Posting a verdict again changes nothing. A failure is logged, never raised, because the
    verdict is valid even if LangSmith does not get it. `LangSmithSink.emit_verdict` does the same without waiting.

    Args:
        ruling: the verdict.
        exchange: the judged exchange, with its reserved `run` metadata.
        client: LangSmith client; `None` uses the one of LangChain's tracing.
        log_text: whether the edited answer and the reviewer's reason may be sent.

    Returns:
        False if the run is not known, the deadline passed without a verdict, or LangSmith did not accept it.

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
    except Exception as error:  # noqa: BLE001 - the verdict is valid even if LangSmith does not get it
        _log.warning("verdict %s was not posted to LangSmith: %s", ruling.review_id, in_log(error))
        return False
    return True
