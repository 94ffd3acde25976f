"""Feedback -> LangSmith, through its own client."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from semgrad_guard.extras import require

if TYPE_CHECKING:
    from uuid import UUID

    from langsmith import Client

    from semgrad_guard.telemetry.feedback import Feedback

THREAD_NAME = "semgrad-langsmith"
"""Begins the names of the threads that post."""


class FeedbackPoster:
    """Posts feedback one by one, and remembers the ids of projects."""

    def __init__(self, *, extend_retention: bool) -> None:
        """Say how long LangSmith is to keep the traces.

        Args:
            extend_retention: True lets feedback prolong how long a trace is kept, which LangSmith charges for; the
                client then puts feedback on traces into its own batches instead of sending it at once.
        """
        self._extend_retention = extend_retention
        self._projects: dict[tuple[str, str], UUID] = {}
        self._langsmith = require("langsmith", extra="langsmith")
        logging.getLogger("langsmith.client").addFilter(_leave_out_ours)

    def post(self, client: Client, feedback: Feedback) -> None:
        """Post one feedback; posting it again changes nothing.

        Raises:
            Exception: it was not taken; `is_transient` says whether to try again.
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
            return  # it is there already

    def _project_id(self, client: Client, name: str | None) -> UUID:
        """Return the id of a project; `None` names the one that the environment names."""
        name = name or str(self._langsmith.utils.get_tracer_project())
        key = client.api_url, name
        if key not in self._projects:
            self._projects[key] = client.read_project(project_name=name).id
        return self._projects[key]


def is_transient(error: Exception) -> bool:
    """Return whether the same request may be taken later: the server is down, busy, or does not know the run yet."""
    utils = require("langsmith.utils", extra="langsmith")
    if not isinstance(error, utils.LangSmithError | OSError):
        return False
    if isinstance(error, utils.LangSmithAuthError | utils.LangSmithUserError):
        return False
    cause: Any = error.__cause__ or error.__context__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return status is None or status >= 500 or status in {404, 408, 425, 429}


def _leave_out_ours(log: logging.LogRecord) -> bool:
    """Keep the client from logging a traceback for each post that fails: the worker counts them and logs the first."""
    return not (log.name == "langsmith.client" and threading.current_thread().name.startswith(THREAD_NAME))
