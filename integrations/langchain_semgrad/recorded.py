"""The runs of a chain in LangSmith, where it records them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from langchain_core.tracers import LangChainTracer
from langsmith import get_current_run_tree  # noqa: TID253 - langchain-core cannot do without it

if TYPE_CHECKING:
    from langchain_core.callbacks import BaseCallbackManager
    from langchain_core.callbacks.manager import BaseRunManager
    from langsmith import RunTree


_ID_LENGTH = 36


def traced_above(run_id: UUID) -> list[UUID]:
    """Return the runs above a run that LangSmith traces here, nearest first; none where it is not under way."""
    tree = get_current_run_tree()
    if tree is None or tree.id != run_id:
        return []
    return [UUID(step[-_ID_LENGTH:]) for step in reversed(tree.dotted_order.split("."))][1:]


def recorded(manager: BaseRunManager | BaseCallbackManager | None) -> RunTree | None:
    """Return the LangSmith run of a call, still open; `None` where nobody records it."""
    run_id = getattr(manager, "run_id", None) or getattr(manager, "parent_run_id", None)
    for handler in manager.handlers if manager else ():
        if isinstance(handler, LangChainTracer):
            return handler.run_map.get(str(run_id))
    return None
