"""Finding passages again, by the retriever that a step of the policy names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable

from langchain_semgrad.convert import to_passage
from langchain_semgrad.retrievers import asking_for
from semgrad_guard.errors import StepUnavailableError
from semgrad_guard.routing.steps import wanted_passages, worth_reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.documents import Document
    from langchain_core.runnables import RunnableConfig

    from langchain_semgrad.invoke import Caller
    from semgrad_guard.flow import Exchange, RetryRetrieval


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """The retrievers that retries may use."""

    retriever: Any = None
    retrievers: Mapping[str, Any] = field(default_factory=dict)

    def knows(self, step: RetryRetrieval) -> bool:
        """Tell whether passages can be found for a step at all."""
        return self.retriever is not None or step.retriever is not None

    def find(
        self, step: RetryRetrieval, exchange: Exchange, query: str, *, call: Caller, config: RunnableConfig
    ) -> list[Document]:
        """Return the documents to answer from.

        Args:
            step: which retriever, and how many.
            exchange: the attempt that was not good enough.
            query: what to ask the retriever.
            call: calls the retriever.
            config: how it is called.

        Raises:
            StepUnavailableError: there is no such retriever.
            RetrievalFailedError: nothing was found, or what was read before.
        """
        retriever, top_k = self._retriever(step), wanted_passages(step, exchange)
        if isinstance(retriever, Runnable):
            found = call(asking_for(retriever, top_k), query, config)
        else:
            found = retriever(query, top_k)
        by_passage: dict[Any, Document] = {to_passage(document): document for document in list(found)[:top_k]}
        return [by_passage[passage] for passage in worth_reading(step, exchange, list(by_passage))]

    def _retriever(self, step: RetryRetrieval) -> Any:
        if step.retriever is not None and step.retriever not in self.retrievers:
            known = ", ".join(sorted(self.retrievers)) or "none"
            advice = f"pass retrievers={{{step.retriever!r}: retriever}}"
            msg = f"no retriever {step.retriever!r} was given to this guard (given: {known}): {advice}"
            raise StepUnavailableError(msg)
        return self.retriever if step.retriever is None else self.retrievers[step.retriever]
