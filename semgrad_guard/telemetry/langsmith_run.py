"""The LangSmith run that a guard runs in: found, annotated, or made afterwards where there is none."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from semgrad_guard.extras import require
from semgrad_guard.telemetry.fields import answered_attempt, signals_fields, summary_fields
from semgrad_guard.telemetry.runs import RunRef

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from langsmith import Client, RunTree

    from semgrad_guard.flow import ExchangeId, Json, Record

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
