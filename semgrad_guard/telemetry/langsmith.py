"""Records in LangSmith: what is put on the runs of a trace."""

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
from semgrad_guard.wire import RunRef, answered_attempt, signals_fields, summary_fields

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from langsmith import Client, RunTree

    from semgrad_guard.flow import Exchange, ExchangeId, Json, Record, Ruling

RUN_NAME = "semgrad_guard"
TAG = "semgrad:"
"""Begins every tag of ours."""

_LEFT_OUT = frozenset({"id", "at"})
"""Fields that a run says by itself."""

_NAMESPACE = UUID("0d9c2c1a-6c0e-5b43-8a55-2f6f0f0b7a21")


_RUNS: ContextVar[Mapping[ExchangeId, RunTree] | None] = ContextVar("semgrad_runs", default=None)


@contextmanager
def judged_within(runs: Mapping[ExchangeId, RunTree]) -> Generator[None]:
    """Say which LangSmith run each question is judged in, where one call judges several that have runs of their own.

    Args:
        runs: id of the first exchange of a question -> the run. Questions that are not in it belong to the run that is
            under way.
    """
    token = _RUNS.set(runs)
    try:
        yield
    finally:
        _RUNS.reset(token)


def annotate_current_run(record: Record, *, log_text: bool = True) -> bool:
    """Write how a question ended on the LangSmith run that it was judged in; return False where there is none.

    Inside a LangChain runnable that is the runnable's own run, inside a function under `langsmith.traceable` that
    function's. The run sends it with its own end, so this costs no request.
    """
    tree = run_of(record)
    if tree is None:
        return False
    tree.add_metadata(run_metadata(record, log_text=log_text))
    tree.tags = [tag for tag in tree.tags or [] if not tag.startswith(TAG)]
    tree.add_tags(run_tags(record))
    return True


def run_of(record: Record) -> RunTree | None:
    """Return the LangSmith run that a question was judged in."""
    said = (_RUNS.get() or {}).get(record.id)
    tree: RunTree | None = said or require("langsmith", extra="langsmith").get_current_run_tree()
    return tree


def is_traced(record: Record) -> bool:
    """Return whether LangSmith gets the runs of a question: tracing is on here, or somebody said in which run it is."""
    said = record.id in (_RUNS.get() or {})
    return said or require("langsmith", extra="langsmith").utils.tracing_is_enabled() is True  # may also be "local"


def ref_of(tree: RunTree) -> RunRef:
    """Return the ids of a run."""
    return RunRef(run_id=str(tree.id), trace_id=str(tree.trace_id), session_name=tree.session_name)


def run_metadata(record: Record, *, log_text: bool) -> dict[str, Json]:
    """Return the metadata of a guard's run: the record's summary and all raw signals, under `semgrad_…`."""
    answer = answered_attempt(record)
    score = answer.decision.score if answer else None
    said: dict[str, Json] = {name: value for name, value in summary_fields(record).items() if name not in _LEFT_OUT}
    said |= {f"signal_{name}": value for name, value in signals_fields(score.signals if score else {}).items()}
    if answer is not None:
        said |= {"profile": answer.decision.confidence.profile, "drifted": answer.decision.confidence.drifted}
    if log_text and record.attempts:
        said["why"] = record.attempts[-1].decision.why
    return {f"semgrad_{name}": value for name, value in said.items() if value is not None}


def run_tags(record: Record) -> list[str]:
    """Return the tags of a guard's run: the status and every action that was chosen on the way."""
    actions = (str(attempt.decision.action) for attempt in record.attempts)
    return list(dict.fromkeys(TAG + word for word in (str(record.status), *actions)))


def post_own_run(client: Client, record: Record, *, project: str | None, log_text: bool) -> RunRef:
    """Send a run of its own for a record that no run was under way for, and return its ids.

    The id follows from the record's, so sending it twice makes one run. Without a trace id the client sends at once
    instead of queueing, so the run is there before the feedback on it.

    Raises:
        Exception: LangSmith did not take it.
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
            extra={"metadata": run_metadata(record, log_text=log_text)},
            tags=run_tags(record),
        )
    except require("langsmith.utils", extra="langsmith").LangSmithConflictError:
        pass  # it is there already
    return RunRef(run_id=str(run_id), trace_id=str(run_id), session_name=project)


_log = logging.getLogger("semgrad_guard")

TRIES = 5
"""How often a feedback is sent before it is given up."""

CLOSE_S = 5.0
"""How long `close` and the end of the process wait for what is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When feedback is sent."""

    first_s: float = 2.0
    """Seconds after the answer: LangSmith gets runs in batches, and feedback on an unknown run is refused."""
    again_s: float = 1.0
    """Least wait before the second try; it doubles with each further one."""


DEFAULT_TIMING = Timing()


@dataclass(slots=True)
class _Job:
    """One feedback on its way, or a record that must become a run first."""

    what: Feedback | Record
    client: Client | None
    tries: int = 0


class LangSmithSink:
    """Shows decisions in LangSmith and never delays an answer for it.

    `emit` writes metadata and tags on the run that is under way (in memory, no request) and queues the feedback
    `semgrad_confidence` on the run of each attempt; threads of the sink post it, with project ids looked up there.
    Where tracing is on but no run is under way (no framework, LlamaIndex), the record becomes a run of its own. Where
    tracing is off, nothing is sent. Raw scores go into metadata: LangSmith rounds a feedback's score to four decimals.

    Attributes:
        dropped: feedback that was not tried because too much waited.
        failed: feedback that LangSmith did not take.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        log_text: bool = True,
        project: str | None = None,
        extend_retention: bool = False,
        capacity: int = CAPACITY,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        """Choose where and what to send.

        Args:
            client: LangSmith client; `None` takes that of the run under way, or the one that LangChain's tracing uses.
            log_text: whether questions, answers and explanations may be sent by this sink. What LangChain's own tracer
                sends is not its business (see `LANGSMITH_HIDE_INPUTS`).
            project: project for runs that the sink makes itself, and for runs whose project is not known.
            extend_retention: True lets feedback prolong how long LangSmith keeps a trace, which it charges for. The
                feedback then goes into the client's own batches, and what LangSmith refuses is not counted in `failed`.
            capacity: how much feedback may wait.
            timing: when to send.

        Raises:
            MissingExtraError: `langsmith` is not installed.
        """
        self._client, self._project, self._log_text, self._timing = client, project, log_text, timing
        self._poster = FeedbackPoster(extend_retention=extend_retention)
        self._worker = BackgroundWorker[_Job](self._send, name=THREAD_NAME, capacity=capacity)
        _close_at_exit(self)

    @property
    def dropped(self) -> int:
        """Feedback that was not tried."""
        return self._worker.dropped

    @property
    def failed(self) -> int:
        """Feedback that LangSmith did not take."""
        return self._worker.failed

    def emit(self, record: Record) -> None:
        """Annotate the run that is under way and queue the feedback."""
        try:
            self._emit(record)
        except Exception:  # noqa: BLE001 - logging must not cost the caller the answer
            _log.warning("a record could not be sent to LangSmith", exc_info=True)

    def emit_verdict(self, ruling: Ruling, exchange: Exchange) -> None:
        """Queue a person's verdict as feedback `semgrad_verdict` on the run that wrote the answer."""
        feedback = verdict_feedback(ruling, exchange, log_text=self._log_text)
        if feedback is not None:
            self._queue([feedback], None)

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything is posted or given up; return False when that takes longer."""
        return self._worker.drain(timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Post what is under way, for at most `timeout_s` seconds."""
        self._worker.close(timeout_s)

    def _emit(self, record: Record) -> None:
        annotate_current_run(record, log_text=self._log_text)
        tree = run_of(record)
        within = ref_of(tree) if tree is not None else RunRef(session_name=self._project)
        found = confidence_feedback(record, log_text=self._log_text, within=within)
        traced = is_traced(record)
        wanted: list[Feedback | Record] = [f for f in found if traced or f.recorded]
        if traced and not found and tree is None:
            wanted = [record]
        self._queue(wanted, tree.client if tree is not None and wanted else None)

    def _queue(self, what: Sequence[Feedback | Record], client: Client | None) -> None:
        for item in what:
            self._worker.submit(_Job(item, self._client or client), after_s=self._timing.first_s)

    def _send(self, job: _Job) -> None:
        job.tries += 1
        try:
            self._send_once(job)
        except Exception as error:
            if job.tries < TRIES and is_transient(error):
                spread = 1 + random.random()  # noqa: S311 - no secret: it keeps many processes from coming back at once
                raise TryAgainError(self._timing.again_s * spread * 2 ** (job.tries - 1), error) from error
            raise

    def _send_once(self, job: _Job) -> None:
        client = job.client or require("langsmith.run_trees", extra="langsmith").get_cached_client()
        if isinstance(job.what, Feedback):
            self._poster.post(client, job.what)
            return
        own = post_own_run(client, job.what, project=self._project, log_text=self._log_text)
        for feedback in confidence_feedback(job.what, log_text=self._log_text, within=own):
            self._poster.post(client, feedback)


def _close_at_exit(sink: LangSmithSink) -> None:
    """Post at the end of the process what is under way, without keeping the sink alive until then."""
    close = weakref.WeakMethod(sink.close)

    def at_exit() -> None:
        method = close()
        if method is not None:
            method()

    atexit.register(at_exit)
    weakref.finalize(sink, atexit.unregister, at_exit)
