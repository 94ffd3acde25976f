"""The run of a runnable in LangSmith, where a tracer records it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.callbacks.manager import BaseRunManager


def recorded(manager: BaseRunManager | None) -> Any:
    """Return the LangSmith run of a call, still open; `None` where nobody records it."""
    for handler in manager.handlers if manager else ():
        runs = getattr(handler, "run_map", None)
        if getattr(handler, "project_name", None) and isinstance(runs, Mapping) and manager is not None:
            return runs.get(str(manager.run_id))
    return None
