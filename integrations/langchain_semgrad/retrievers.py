"""Makes a chain's retriever give what a retry found, asks retrievers for more documents, and uses their embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.documents import Document  # noqa: TC002 - pydantic reads the annotations
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from typing_extensions import override

from semgrad_guard.errors import NotGuardableError

if TYPE_CHECKING:
    from collections.abc import Generator

    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.embeddings import Embeddings


class ChainEmbedder:
    """The embeddings of a retriever as the guard's `Embedder`; its name is their class and model."""

    def __init__(self, embeddings: Embeddings) -> None:
        """Take the embeddings, such as those of a vector store."""
        self._embeddings = embeddings
        model = next(
            (name for key in ("model", "model_name") if isinstance(name := getattr(embeddings, key, None), str)), ""
        )
        self._name = f"{type(embeddings).__name__} {model}".strip()

    @property
    def name(self) -> str:
        """Class and model; a profile fits one."""
        return self._name

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector a text."""
        return self._embeddings.embed_documents(list(texts))


RetrieverLike: TypeAlias = "Runnable[Any, Any] | Callable[[str, int], Sequence[Document]]"
"""A retriever, or a function of the query and the number of documents."""
WithTopK: TypeAlias = Callable[[Any, int], Any]
"""Function of a retriever and a number that returns a retriever of that many documents."""

COUNT_FIELDS = ("k", "top_k", "top_n", "top_k_results", "max_results", "similarity_top_k", "limit")
"""Fields of retrievers and rerankers that say how many documents they return."""

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
    """Make every `GuardedRetriever` that is called within the block give these documents; `None` lets them retrieve."""
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
            documents: list[Document] = self.inner.invoke(input, config, **kwargs)
            return documents
        return super().invoke(input, config, **kwargs)

    @override
    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Same as `invoke`."""
        if _handed.get() is None:
            documents: list[Document] = await self.inner.ainvoke(input, config, **kwargs)
            return documents
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
        search = {**(fields["search_kwargs"] or {}), "k": top_k}
        if "fetch_k" in search:
            search["fetch_k"] = max(search["fetch_k"], top_k)
        return {"search_kwargs": search}
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
        if any(dependency is self._retriever for dependency in part.deps):
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
