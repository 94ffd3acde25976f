"""The run of a runnable in LangSmith, where a tracer records it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.tracers import LangChainTracer

if TYPE_CHECKING:
    from langchain_core.callbacks import BaseCallbackManager
    from langchain_core.callbacks.manager import BaseRunManager
    from langsmith import RunTree


def recorded(manager: BaseRunManager | BaseCallbackManager | None) -> RunTree | None:
    """Return the LangSmith run of a call, still open; `None` where nobody records it."""
    run_id = getattr(manager, "run_id", None) or getattr(manager, "parent_run_id", None)
    for handler in manager.handlers if manager else ():
        if isinstance(handler, LangChainTracer):
            return handler.run_map.get(str(run_id))
    return None
