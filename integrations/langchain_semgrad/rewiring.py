"""Finding a chain's retriever and putting another one in its place, without changing the chain itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_semgrad.retrievers import GuardedRetriever
from semgrad_guard.errors import NotGuardableError

MAX_DEPTH = 50
"""Levels of runnables inside runnables that are searched."""


def with_guarded_retriever(chain: Any, retriever: Any) -> Any:
    """Return the chain with its retriever replaced by one that a retry can hand documents to.

    Args:
        chain: the chain; it is not changed.
        retriever: the retriever object that the chain calls, or the `GuardedRetriever` that was put into it.

    Raises:
        NotGuardableError: the chain does not hold this retriever where it can be found, or keeps a history.
    """
    refuse_memory(chain)
    if isinstance(retriever, GuardedRetriever):
        return chain  # the user put it where it is called; a retry that does not reach it says so
    search = _Search(retriever, GuardedRetriever(inner=retriever, name=retriever.get_name()))
    rewired = search.visit(chain, 0)
    if search.replaced or search.guarded:
        return rewired
    raise NotGuardableError(_not_found(retriever, search.functions))


def _not_found(retriever: Any, functions: list[str]) -> str:
    where = f" (it is called inside the function {functions[0]})" if functions else ""
    return (
        f"the chain holds no {type(retriever).__name__} that could be replaced{where}, so a retry could not give it "
        "more passages: put `r = guard.retriever(retriever)` into the chain in its place and call "
        "wrap(chain, retriever=r), or give wrap(chain, retriever=retriever, answer=function of question and documents)"
    )


class _Search:
    """One walk through a chain."""

    def __init__(self, retriever: object, proxy: GuardedRetriever) -> None:
        self._retriever, self._proxy = retriever, proxy
        self.replaced = 0
        self.guarded = 0
        self._by_kind: tuple[tuple[type[Any], Callable[[Any, int], Any]], ...] = (
            (Runnable, self._visit_fields),
            (list, self._visit_sequence),
            (tuple, self._visit_sequence),
            (Mapping, self._visit_mapping),
        )
        self.functions: list[str] = []
        """Names of functions that close over the retriever."""

    def visit(self, part: Any, depth: int) -> Any:
        """Return a part of the chain, rewired; the very same object where nothing in it changed."""
        if part is self._retriever:
            self.replaced += 1
            return self._proxy
        if isinstance(part, GuardedRetriever):
            self.guarded += part.inner is self._retriever
            return part
        if depth > MAX_DEPTH:
            return part
        if isinstance(part, RunnableLambda):
            return self._look_into(part)
        visit = next((visit for kind, visit in self._by_kind if isinstance(part, kind)), None)
        return visit(part, depth) if visit else part

    def _visit_fields(self, part: Any, depth: int) -> Any:
        fields = getattr(type(part), "model_fields", {})
        before = {name: getattr(part, name, None) for name in fields}
        after = {name: self.visit(value, depth + 1) for name, value in before.items()}
        changed = {name: value for name, value in after.items() if value is not before[name]}
        return part.model_copy(update=changed) if changed else part

    def _visit_sequence(self, part: Any, depth: int) -> Any:
        after = [self.visit(value, depth + 1) for value in part]
        if all(new is old for new, old in zip(after, part, strict=True)):
            return part
        return after if isinstance(part, list) else tuple(after)

    def _visit_mapping(self, part: Any, depth: int) -> Any:
        after = {name: self.visit(value, depth + 1) for name, value in part.items()}
        return part if all(after[name] is value for name, value in part.items()) else after

    def _look_into(self, part: RunnableLambda[Any, Any]) -> Any:
        """Note a function that calls the retriever: nothing inside a function can be replaced."""
        if any(found is self._retriever for found in part.deps):
            self.functions.append(part.get_name())
        return part


def refuse_memory(chain: Any) -> None:
    """Refuse a chain that remembers its answers: a withheld one would be in the next prompt.

    Raises:
        NotGuardableError: the chain writes a history or a checkpoint.
    """
    if isinstance(chain, RunnableWithMessageHistory):
        msg = (
            "RunnableWithMessageHistory remembers every answer, also one that is not good enough, and a retry would "
            "read it: put the guard inside, as in RunnableWithMessageHistory(guard.wrap(chain, ...), ...)"
        )
        raise NotGuardableError(msg)
    if getattr(chain, "checkpointer", None):
        msg = (
            "a graph with a checkpointer remembers every answer, also one that is not good enough: guard it inside, "
            "with SemGradMiddleware or SemGradNode"
        )
        raise NotGuardableError(msg)
