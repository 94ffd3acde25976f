"""Answering again: how retries and fallbacks of a guarded chain are carried out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.config import patch_config
from typing_extensions import override

from langchain_semgrad.convert import asks_for_tools, from_prompt, text_of, to_passage
from langchain_semgrad.exchanges import CallContext, candidates_in
from langchain_semgrad.invoke import Tracked
from langchain_semgrad.retrievers import asking_for, hand
from langchain_semgrad.values import Slot, waits_for_tools
from semgrad_guard.errors import FallbackFailedError, RetrievalFailedError, StepUnavailableError
from semgrad_guard.extras import require
from semgrad_guard.flow import RUN_KEY
from semgrad_guard.ports import AnswerModel
from semgrad_guard.routing import Resources
from semgrad_guard.routing.steps import wanted_passages, worth_reading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain_core.callbacks.manager import BaseRunManager
    from langchain_core.documents import Document
    from langchain_core.runnables import RunnableConfig

    from langchain_semgrad.exchanges import ChainCandidate, OwnModel
    from langchain_semgrad.invoke import Caller
    from semgrad_guard.flow import Exchange, ExchangeId, Passage, RetryRetrieval


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


class FallbackModels(Mapping[str, Any]):
    """Models by name; one like `openai:gpt-4o-mini` is made by LangChain's `init_chat_model` when it is first needed.

    Args:
        given: models from code; they come first. Each may be such a name itself.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        """Keep the given models."""
        self._given = dict(given or {})
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    @override
    def __getitem__(self, name: str) -> Any:
        given = self._given.get(name, name)
        if not isinstance(given, str):
            return given
        if ":" not in given:
            raise KeyError(name)
        with self._lock:
            if given not in self._made:
                self._made[given] = require("langchain.chat_models", extra="agents").init_chat_model(given)
            return self._made[given]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    @override
    def __len__(self) -> int:
        return len(self._given)


REWRITE = (
    "Rewrite the question so that a search engine finds passages that answer it: other words for the same thing, no "
    "answer, no explanation. Reply with the rewritten question only.\n\nQuestion: {question}"
)
"""What a rewriter is asked."""


def reworded(rewriter: Runnable[Any, Any] | None, question: str, call: Caller, config: RunnableConfig) -> str:
    """Return a question in other words, by a model; the question itself without one."""
    if rewriter is None:
        return question
    asked = [HumanMessage(REWRITE.format(question=question))]
    said = call(Tracked(rewriter, "semgrad_rewrite"), asked, config)
    return (text_of(said) or "").strip().strip('"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a guarded chain may act with; the same for all calls."""

    chain: Runnable[Any, Any]
    finder: Finder
    fallbacks: FallbackModels
    rewriter: Runnable[Any, Any] | None = None
    answer: Callable[[str, list[Document]], Any] | None = None
    own_model: OwnModel | None = None
    key: str | None = None


@dataclass(slots=True)
class Attempts:
    """The attempts at one question; `answer_again` and `rewrite` are what the policy's steps call.

    Args:
        plan: what to act with.
        value: the chain's input, given to every attempt anew: nothing of an earlier answer is in it.
        config: how the chain is called below the guard's own run.
        call: calls runnables.
        manager: the guard's own run.
    """

    plan: Plan
    value: Any
    config: RunnableConfig
    call: Caller
    manager: BaseRunManager
    made: dict[ExchangeId, tuple[Any, ChainCandidate]] = field(default_factory=dict)
    """Attempt -> what the chain gave then, and where the answer is in it."""

    def first(self, value: Any, candidate: ChainCandidate) -> Resources:
        """Note the first attempt and return what the policy may act with."""
        self.made[candidate.exchange.id] = (value, candidate)
        return Resources(
            chain=self, rewriter=self if self.plan.rewriter is not None else None, fallbacks=_Fallbacks(self)
        )

    # --- rewriting ----------------------------------------------------------------------------------------------------

    def rewrite(self, question: str) -> str:
        """Return the question in other words, by the rewriter."""
        return reworded(self.plan.rewriter, question, self.call, self.config)

    # --- retrieving and answering again -------------------------------------------------------------------------------

    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        """Return the exchange of a new attempt.

        Raises:
            StepUnavailableError: nothing was given by which passages could be found.
            RetrievalFailedError: there is nothing new to answer from, or the chain did not read it.
        """
        if not self.plan.finder.knows(step):
            if not step.configurable:
                msg = (
                    "this guard knows no retriever: pass retriever=retriever, as in wrap(chain, retriever=retriever), "
                    "or name `configurable` fields in the policy's retry_retrieval for a chain that owns its retriever"
                )
                raise StepUnavailableError(msg)
            return self._attempt(exchange, None, step.configurable)
        asked = self._chains_query(exchange) if query == exchange.question else query
        documents = self.plan.finder.find(step, exchange, asked, call=self.call, config=self.config)
        return self._attempt(exchange, documents, step.configurable)

    def _chains_query(self, exchange: Exchange) -> str:
        """Return what the chain itself asked its retriever: it may have made the question independent of the chat."""
        _, candidate = self.made[exchange.id]
        return candidate.query or exchange.question or ""

    def _attempt(
        self, exchange: Exchange, documents: Sequence[Document] | None, configurable: Mapping[str, Any]
    ) -> Exchange:
        config = patch_config(self.config, configurable=dict(configurable)) if configurable else self.config
        tracked = Tracked(self._answering(exchange, documents), "semgrad_attempt")
        with hand(documents) as handed:
            value = self.call(tracked, self.value, config)
        if handed is not None and not handed.taken and self.plan.answer is None:
            msg = (
                "the chain answered without reading the new passages: it calls its retriever in a thread of its own or "
                "not at all; give wrap(chain, retriever=..., answer=function of question and documents)"
            )
            raise RetrievalFailedError(msg)
        return self._noted(exchange, value, tracked)

    def _answering(self, exchange: Exchange, documents: Sequence[Document] | None) -> Runnable[Any, Any]:
        answer = self.plan.answer
        if answer is None or documents is None:
            return self.plan.chain
        return RunnableLambda(lambda _: answer(exchange.question or "", list(documents)))

    def _noted(self, exchange: Exchange, value: Any, tracked: Tracked) -> Exchange:
        """Return the exchange of the value that an attempt gave, and note it."""
        _, before = self.made[exchange.id]
        if waits_for_tools(value, self.plan.key) or tracked.run_id is None:
            msg = "answering again ended in a request for tools, not in an answer"
            raise RetrievalFailedError(msg)
        context = CallContext(
            tracked.run_id,
            self.manager,
            within=True,
            question=exchange.question,
            key=self.plan.key,
            own_model=self.plan.own_model,
        )
        candidates = candidates_in(value, context)
        path = before.slot.path if before.slot else None
        candidate = next((j for j in candidates if j.slot and j.slot.path == path), candidates[0])
        if candidate.error is not None:
            raise candidate.error
        following = replace(candidate.exchange, attempt=exchange.attempt + 1)
        self.made[following.id] = (value, replace(candidate, exchange=following))
        return following


class _Fallbacks(Mapping[str, AnswerModel]):
    """The fallback models as the policy's steps call them, for one question."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    @override
    def __getitem__(self, name: str) -> AnswerModel:
        return _Fallback(self._attempts, name, self._attempts.plan.fallbacks[name])

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._attempts.plan.fallbacks)

    @override
    def __len__(self) -> int:
        return len(self._attempts.plan.fallbacks)


@dataclass(frozen=True, slots=True)
class _Fallback:
    """One fallback model, asked with the very prompt that the chain's model read."""

    attempts: Attempts
    name: str
    model: Runnable[Any, Any]

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:  # noqa: ARG002 - same prompt
        """Return the exchange of the fallback model's answer.

        Raises:
            FallbackFailedError: it gave no text.
        """
        attempts = self.attempts
        value, candidate = attempts.made[exchange.id]
        run = candidate.llm_run
        prompt = from_prompt(exchange.prompt) if run is None or isinstance(run.prompt, str) else list(run.prompt)
        tracked = Tracked(self.model, f"semgrad_fallback:{self.name}")
        said = attempts.call(tracked, prompt, attempts.config)
        text = text_of(said)
        if text is None or asks_for_tools(said):
            msg = f"fallback model {self.name!r} gave {type(said).__name__}, not a text"
            raise FallbackFailedError(msg)
        following = exchange.next_attempt(
            prompt=exchange.prompt, answer=text, passages=exchange.passages, author=self.name
        )
        following = replace(following, metadata=self._metadata(exchange, said, tracked))
        attempts.made[following.id] = _in_place(value, candidate, said, following)
        return following

    def _metadata(self, exchange: Exchange, said: Any, tracked: Tracked) -> dict[str, Any]:
        """Return the metadata of the fallback's own model call."""
        context = CallContext(tracked.run_id or self.attempts.manager.run_id, self.attempts.manager, within=True)
        found = candidates_in(said, context)[0].exchange.metadata
        kept = {key: v for key, v in exchange.metadata.items() if key not in {RUN_KEY, "llm_run_id", "llm_run_name"}}
        return {**kept, **found}


def _in_place(value: Any, candidate: ChainCandidate, said: Any, following: Exchange) -> tuple[Any, ChainCandidate]:
    """Return what a fallback's answer makes of the chain's value: its own message, where the value is one."""
    if (
        not isinstance(said, BaseMessage)
        or candidate.slot is None
        or candidate.slot.message is None
        or candidate.slot.path
    ):
        return value, candidate
    return said, replace(candidate, slot=Slot((), following.answer, said), exchange=following)
