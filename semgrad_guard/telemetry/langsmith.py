"""Send records to LangSmith, as metadata, tags and feedback on the runs of a trace."""

from __future__ import annotations

import atexit
import logging
import random
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from semgrad_guard.errors import in_log
from semgrad_guard.extras import require
from semgrad_guard.telemetry.feedback import (
    THREAD_NAME,
    Feedback,
    FeedbackPoster,
    confidence_feedback,
    is_transient,
    verdict_feedback,
)
from semgrad_guard.telemetry.worker import CAPACITY, BackgroundWorker, TryAgainError
from semgrad_guard.wire import SUMMARY, RunRef, answered_attempt, deciding_error, signals_fields, summary_fields

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from langsmith import Client, RunTree

    from semgrad_guard.flow import Exchange, ExchangeId, Json, Record, Ruling

RUN_NAME = "semgrad_guard"
TAG = "semgrad:"
"""Prefix of all tags of this package."""

METADATA: Mapping[str, str] = {
    **{name: SUMMARY[name] for name in ("status", "action", "rule", "confidence")},
    "profile": "The profile that the confidence comes from.",
    "n_attempts": SUMMARY["n_attempts"],
    "why": "The reason in words; only with `log_text`.",
    "error_type": "Class of the error, where the guard or a step failed and that decided what the caller got.",
}
"""What a guard's run says unless all signals are asked for, each as `semgrad_NAME`, and what it means."""

_LEFT_OUT = frozenset({"id", "at"})
"""Fields that a run already has."""

_NAMESPACE = UUID("0d9c2c1a-6c0e-5b43-8a55-2f6f0f0b7a21")


_RUNS: ContextVar[Mapping[ExchangeId, RunTree] | None] = ContextVar("semgrad_runs", default=None)


@contextmanager
def judged_within(runs: Mapping[ExchangeId, RunTree]) -> Generator[None]:
    """Declare which LangSmith run each question is judged in, for a call that judges several questions with own runs.

    Args:
        runs: id of the first exchange of a question -> the run. Other questions belong to the current run.
    """
    token = _RUNS.set(runs)
    try:
        yield
    finally:
        _RUNS.reset(token)


def annotate_current_run(record: Record, *, log_text: bool = True, all_signals: bool = False) -> bool:
    """Add the outcome of a question to the LangSmith run that it was judged in; return False if there is no such run.

    Inside a LangChain runnable this is the runnable's own run, inside a function under `langsmith.traceable` the
    function's. The run sends it when it ends, so this costs no request.
    """
    tree = run_of(record)
    if tree is None:
        return False
    tree.add_metadata(run_metadata(record, log_text=log_text, all_signals=all_signals))
    tree.tags = [tag for tag in tree.tags or [] if not tag.startswith(TAG)]
    tree.add_tags(run_tags(record))
    return True


def run_of(record: Record) -> RunTree | None:
    """Return the LangSmith run that a question was judged in."""
    declared = (_RUNS.get() or {}).get(record.id)
    tree: RunTree | None = declared or require("langsmith", extra="langsmith").get_current_run_tree()
    return tree


def is_traced(record: Record) -> bool:
    """Return whether LangSmith gets the runs of a question: tracing is on, or its run was declared."""
    declared = record.id in (_RUNS.get() or {})
    return declared or require("langsmith", extra="langsmith").utils.tracing_is_enabled() is True  # may also be "local"


def ref_of(tree: RunTree) -> RunRef:
    """Return the ids of a run."""
    return RunRef(run_id=str(tree.id), trace_id=str(tree.trace_id), session_name=tree.session_name)


def run_metadata(record: Record, *, log_text: bool, all_signals: bool = False) -> dict[str, Json]:
    """Return the metadata of a guard's run, under `semgrad_…`.

    Args:
        record: what is said.
        log_text: whether the reason in words is included.
        all_signals: also the other fields of the record's summary and every raw signal, in place of the few of
            `METADATA`.
    """
    answer = answered_attempt(record)
    score = answer.decision.score if answer else None
    fields: dict[str, Json] = {name: value for name, value in summary_fields(record).items() if name not in _LEFT_OUT}
    fields["error_type"] = deciding_error(record)
    if answer is not None:
        fields |= {"profile": answer.decision.confidence.profile, "drifted": answer.decision.confidence.drifted}
    if log_text and record.attempts:
        fields["why"] = record.attempts[-1].decision.why
    if all_signals:
        fields |= {f"signal_{name}": value for name, value in signals_fields(score.signals if score else {}).items()}
    else:
        fields = {name: fields.get(name) for name in METADATA}
    return {f"semgrad_{name}": value for name, value in fields.items() if value is not None}


def run_tags(record: Record) -> list[str]:
    """Return the tags of a guard's run: its status and all actions that were chosen."""
    actions = (str(attempt.decision.action) for attempt in record.attempts)
    return list(dict.fromkeys(TAG + word for word in (str(record.status), *actions)))


def post_own_run(
    client: Client, record: Record, *, project: str | None, log_text: bool, all_signals: bool = False
) -> RunRef:
    """Send a separate run for a record that was made outside any run, and return its ids.

    The run's id is derived from the record's, so sending it twice creates one run. Without a trace id the client sends
    at once instead of queueing, so the run exists before its feedback.

    Raises:
        Exception: LangSmith did not accept it.
    """
    answer = answered_attempt(record)
    run_id = uuid5(_NAMESPACE, record.id)
    try:
        client.create_run(
            RUN_NAME,
            {"question": answer.exchange.question} if answer and log_text else {},
            "chain",
            id=run_id,
            project_name=project,
            outputs={"output": record.text} if log_text else {},
            start_time=record.at - timedelta(seconds=record.seconds),
            end_time=record.at,
            extra={"metadata": run_metadata(record, log_text=log_text, all_signals=all_signals)},
            tags=run_tags(record),
        )
    except require("langsmith.utils", extra="langsmith").LangSmithConflictError:
        pass  # it was sent before
    return RunRef(run_id=str(run_id), trace_id=str(run_id), session_name=project)


_log = logging.getLogger("semgrad_guard")

TRIES = 5
"""How often sending a feedback is tried."""

CLOSE_S = 5.0
"""How many seconds `close` and the end of the process wait for pending feedback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When feedback is sent."""

    first_s: float = 2.0
    """Seconds to wait after the answer: LangSmith gets runs in batches and refuses feedback on an unknown run."""
    again_s: float = 1.0
    """Shortest wait in seconds before the second try; it doubles with each further try."""


DEFAULT_TIMING = Timing()


@dataclass(slots=True)
class _Job:
    """A pending feedback, or a record that must be sent as a run first."""

    what: Feedback | Record
    client: Client | None
    tries: int = 0


class LangSmithSink:
    """Sends decisions to LangSmith without delaying an answer.

    `emit` adds metadata and tags to the current run (in memory, without a request) and queues the feedback
    `semgrad_confidence` on the run of each attempt; the sink's threads look up project ids and post it. If tracing is
    on but there is no current run (no framework, LlamaIndex), the record is sent as a separate run. If tracing is off,
    nothing is sent. Raw scores go into metadata, because LangSmith rounds a feedback's score to four decimals.

    Attributes:
        dropped: how much feedback was not tried because the queue was full or closed.
        failed: how much feedback LangSmith did not accept.
    """

    def __init__(  # noqa: PLR0913 - settings, all but the first by name
        self,
        client: Client | None = None,
        *,
        log_text: bool = True,
        all_signals: bool = False,
        project: str | None = None,
        extend_retention: bool = False,
        capacity: int = CAPACITY,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        """Choose where and what to send.

        Args:
            client: LangSmith client; `None` uses that of the current run, or the one of LangChain's tracing.
            log_text: whether this sink may send questions, answers and explanations. It does not control what
                LangChain's own tracer sends (see `LANGSMITH_HIDE_INPUTS`).
            all_signals: whether every raw signal goes into a run's metadata, not only the keys of `METADATA`.
            project: project for runs that the sink creates, and for runs whose project is not known.
            extend_retention: True lets feedback extend how long LangSmith keeps a trace, which it charges for. The
                feedback then goes into the client's own batches, and what LangSmith refuses is not counted in `failed`.
            capacity: how many pieces of feedback may wait.
            timing: when to send.

        Raises:
            MissingExtraError: `langsmith` is not installed.
        """
        self._client, self._project, self._log_text, self._timing = client, project, log_text, timing
        self._all_signals = all_signals
        self._poster = FeedbackPoster(extend_retention=extend_retention)
        self._worker = BackgroundWorker[_Job](self._send, name=THREAD_NAME, capacity=capacity)
        _close_at_exit(self)

    @property
    def dropped(self) -> int:
        """How much feedback was not tried."""
        return self._worker.dropped

    @property
    def failed(self) -> int:
        """How much feedback LangSmith did not accept."""
        return self._worker.failed

    def emit(self, record: Record) -> None:
        """Annotate the current run and queue the feedback."""
        try:
            self._emit(record)
        except Exception as error:  # noqa: BLE001 - logging must not cost the caller the answer
            _log.warning("a record could not be sent to LangSmith: %s", in_log(error))

    def emit_verdict(self, ruling: Ruling, exchange: Exchange) -> None:
        """Queue a reviewer's verdict as feedback `semgrad_verdict` on the run that produced the answer."""
        feedback = verdict_feedback(ruling, exchange, log_text=self._log_text)
        if feedback is not None:
            self._queue([feedback], None)

    def drain(self, timeout_s: float) -> bool:
        """Wait until all feedback is posted or given up; return False if that takes longer than `timeout_s`."""
        return self._worker.drain(timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Post the waiting feedback, for at most `timeout_s` seconds."""
        self._worker.close(timeout_s)

    def _emit(self, record: Record) -> None:
        annotate_current_run(record, log_text=self._log_text, all_signals=self._all_signals)
        tree = run_of(record)
        within = ref_of(tree) if tree is not None else RunRef(session_name=self._project)
        found = confidence_feedback(record, log_text=self._log_text, within=within)
        traced = is_traced(record)
        jobs: list[Feedback | Record] = [feedback for feedback in found if traced or feedback.recorded]
        if traced and not found and tree is None:
            jobs = [record]
        self._queue(jobs, tree.client if tree is not None and jobs else None)

    def _queue(self, what: Sequence[Feedback | Record], client: Client | None) -> None:
        for item in what:
            self._worker.submit(_Job(item, self._client or client), after_s=self._timing.first_s)

    def _send(self, job: _Job) -> None:
        job.tries += 1
        try:
            self._send_once(job)
        except Exception as error:
            if job.tries < TRIES and is_transient(error):
                spread = 1 + random.random()  # noqa: S311 - no secret: it keeps processes from retrying all at once
                raise TryAgainError(self._timing.again_s * spread * 2 ** (job.tries - 1), error) from error
            raise

    def _send_once(self, job: _Job) -> None:
        client = job.client or require("langsmith.run_trees", extra="langsmith").get_cached_client()
        if isinstance(job.what, Feedback):
            self._poster.post(client, job.what)
            return
        own = post_own_run(
            client, job.what, project=self._project, log_text=self._log_text, all_signals=self._all_signals
        )
        for feedback in confidence_feedback(job.what, log_text=self._log_text, within=own):
            self._poster.post(client, feedback)


def _close_at_exit(sink: LangSmithSink) -> None:
    """Close a sink at the end of the process, without keeping it alive until then."""
    close = weakref.WeakMethod(sink.close)

    def at_exit() -> None:
        method = close()
        if method is not None:
            method()

    atexit.register(at_exit)
    weakref.finalize(sink, atexit.unregister, at_exit)
