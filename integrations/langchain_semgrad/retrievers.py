"""Retrievers of LangChain: asking for more passages, and putting passages into a chain that retrieves by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.documents import Document  # noqa: TC002 - pydantic reads the annotations
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Generator

    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun

RetrieverLike: TypeAlias = "Runnable[Any, Any] | Callable[[str, int], Sequence[Document]]"
"""A retriever, or a function of the query and the number of documents wanted."""
WithTopK: TypeAlias = Callable[[Any, int], Any]
"""Function of a retriever and a number that returns a retriever of that many documents."""

COUNT_FIELDS = ("k", "top_k", "top_n", "top_k_results", "max_results", "similarity_top_k", "limit")
"""Fields by which retrievers and rerankers are told how many documents to return."""

_log = logging.getLogger("semgrad_guard")


@dataclass(slots=True)
class Handed:
    """Documents that a chain is to answer from, instead of what its retriever would find."""

    documents: list[Document]
    taken: bool = False
    """True once the chain's retriever gave them."""


_handed: ContextVar[Handed | None] = ContextVar("semgrad_guard_handed", default=None)


@contextmanager
def hand(documents: Sequence[Document] | None) -> Generator[Handed | None]:
    """Make every `GuardedRetriever` that is called inside give these documents; `None` lets them retrieve."""
    handed = None if documents is None else Handed(list(documents))
    token = _handed.set(handed)
    try:
        yield handed
    finally:
        _handed.reset(token)


class GuardedRetriever(BaseRetriever):
    """The retriever of a guarded chain: the same as the one inside, until a retry hands it better documents."""

    inner: Any
    """The chain's own retriever."""
    with_top_k: Any = None
    """Function `(retriever, k) -> retriever`, for a retriever whose number of documents is set in its own way."""

    @override
    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Return the documents that were handed over, else those that the retriever inside finds."""
        if _handed.get() is None:
            found: list[Document] = self.inner.invoke(input, config, **kwargs)
            return found
        return super().invoke(input, config, **kwargs)

    @override
    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Same as `invoke`."""
        if _handed.get() is None:
            found: list[Document] = await self.inner.ainvoke(input, config, **kwargs)
            return found
        return await super().ainvoke(input, config, **kwargs)

    @override
    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return _take()

    @override
    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        return _take()


def _take() -> list[Document]:
    handed = _handed.get()
    if handed is None:
        return []
    handed.taken = True
    return list(handed.documents)


def asking_for(retriever: Any, top_k: int) -> Any:
    """Return a copy of a retriever that returns `top_k` documents; the retriever itself where nothing says how many.

    Known are a vector store's `search_kwargs["k"]`, the fields in `COUNT_FIELDS`, retrievers inside retrievers, and
    what `GuardedRetriever.with_top_k` says.
    """
    if isinstance(retriever, GuardedRetriever):
        return (
            retriever.with_top_k(retriever.inner, top_k) if retriever.with_top_k else asking_for(retriever.inner, top_k)
        )
    changed = _changes(retriever, top_k)
    if not changed:
        _log.warning(
            "%s does not say how many documents it returns, so a retry asks it for no more than before: "
            "give it as guard.retriever(retriever, with_top_k=lambda r, k: ...)",
            type(retriever).__name__,
        )
        return retriever
    return retriever.model_copy(update=changed)


def _changes(retriever: Any, top_k: int) -> dict[str, Any]:
    """Return the fields to change; nothing where no field is known."""
    fields: dict[str, Any] = {
        name: getattr(retriever, name, None) for name in getattr(type(retriever), "model_fields", {})
    }
    if "search_kwargs" in fields:
        asked = {**(fields["search_kwargs"] or {}), "k": top_k}
        if "fetch_k" in asked:
            asked["fetch_k"] = max(asked["fetch_k"], top_k)
        return {"search_kwargs": asked}
    changed: dict[str, Any] = {name: top_k for name in COUNT_FIELDS if isinstance(fields.get(name), int)}
    for name, part in fields.items():
        if _is_counted(part):
            changed[name] = part.model_copy(update=_changes(part, top_k))
        elif isinstance(part, list) and any(map(_is_counted, part)):
            changed[name] = [p.model_copy(update=_changes(p, top_k)) if _is_counted(p) else p for p in part]
    return changed


def _is_counted(part: Any) -> bool:
    """Tell whether a part of a retriever is itself one, or a reranker, whose number of documents can be set."""
    is_part = isinstance(part, BaseRetriever) or (isinstance(part, Runnable) and hasattr(part, "bound"))
    is_part = is_part or hasattr(part, "compress_documents")
    return is_part and hasattr(part, "model_copy") and bool(_changes(part, 1))
