"""Carries out the retries and fallbacks of guarded chains, and what those of agents have in common with them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.config import patch_config
from typing_extensions import override

from langchain_semgrad.convert import asks_for_tools, from_prompt, text_of, to_passage
from langchain_semgrad.exchanges import CallContext, candidates_in, read_from
from langchain_semgrad.invoke import Tracked
from langchain_semgrad.retrievers import asking_for, hand
from langchain_semgrad.values import Slot, waits_for_tools
from semgrad_guard.errors import FallbackFailedError, RetrievalFailedError, StepUnavailableError
from semgrad_guard.extras import require
from semgrad_guard.flow import RUN_KEY
from semgrad_guard.ports import AnswerModel
from semgrad_guard.routing import DocumentMap, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain_core.callbacks.manager import BaseRunManager
    from langchain_core.documents import Document
    from langchain_core.runnables import RunnableConfig

    from langchain_semgrad.exchanges import ChainCandidate, OwnModel
    from langchain_semgrad.invoke import Caller
    from langchain_semgrad.retrievers import RetrieverLike
    from semgrad_guard.flow import Exchange, ExchangeId, Json, Passage, RetryRetrieval


class FallbackModels(Mapping[str, Any]):
    """Models by name; one like `openai:gpt-4o-mini` is made by LangChain's `init_chat_model` when it is first needed.

    Args:
        given: models from code; they come first. Each may be such a name itself.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        """Keep the given models."""
        self._given = dict(given or {})
        self._loaded: dict[str, Any] = {}
        self._lock = threading.Lock()

    @override
    def __getitem__(self, name: str) -> Any:
        model = self._given.get(name, name)
        if not isinstance(model, str):
            return model
        if ":" not in model:
            raise KeyError(name)
        with self._lock:
            if model not in self._loaded:
                self._loaded[model] = require("langchain.chat_models", extra="agents").init_chat_model(model)
            return self._loaded[model]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    @override
    def __len__(self) -> int:
        return len(self._given)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunTools:
    """What a guard may use to answer a question again; the same for all questions."""

    chain: Runnable[Any, Any] | None = None
    """The chain that is asked again; an agent's model is asked in the agent's own way."""
    answer: Callable[[str, list[Document]], Any] | None = None
    """Answers again in the chain's place, from the question and new documents."""
    retriever: RetrieverLike | None = None
    retrievers: Mapping[str, RetrieverLike] = field(default_factory=dict[str, "RetrieverLike"])
    """Other retrievers by the name that the policy uses."""
    rewriter: Runnable[Any, Any] | None = None
    fallbacks: Mapping[str, Any] = field(default_factory=FallbackModels)
    own_model: OwnModel | None = None


REWRITE = (
    "Rewrite the question so that a search engine finds passages that answer it: other words for the same thing, no "
    "answer, no explanation. Reply with the rewritten question only.\n\nQuestion: {question}"
)
"""What a rewriter is asked."""


@dataclass(slots=True, kw_only=True)
class QuestionAttempts(ABC):
    """The attempts at one question: what the policy's steps call to answer it again."""

    tools: RerunTools
    call: Caller
    """Calls runnables."""
    config: RunnableConfig
    """How runnables are called, below the guard's own run."""
    documents: DocumentMap[Document] = field(default_factory=lambda: DocumentMap(to_passage))
    """Documents that retries found, by their passages."""

    def resources(self) -> Resources:
        """Return what the policy may act with."""
        tools = self.tools
        return Resources(
            chain=self,
            retriever=None if tools.retriever is None else _ChainRetriever(self, tools.retriever),
            chain_query=self.chain_query,
            retrievers={name: _ChainRetriever(self, retriever) for name, retriever in tools.retrievers.items()},
            rewriter=None if tools.rewriter is None else _Rewriter(self, tools.rewriter),
            fallbacks=_Fallbacks(self),
        )

    def chain_query(self, exchange: Exchange) -> str:
        """Return what the retriever is asked when the policy does not want the question rewritten."""
        return exchange.question or ""

    @abstractmethod
    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return the exchange of a new attempt from other passages."""

    @abstractmethod
    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        """Return the exchange of a new attempt where this guard has no retriever."""

    @abstractmethod
    def ask_fallback(self, exchange: Exchange, name: str, model: Any) -> Exchange:
        """Ask a fallback model what the first model was asked, and return the exchange of its answer."""


@dataclass(frozen=True, slots=True)
class _ChainRetriever:
    """One of LangChain's retrievers as the guard's."""

    attempts: QuestionAttempts
    retriever: RetrieverLike

    def retrieve(self, query: str, top_k: int) -> list[Passage]:
        """Return at most `top_k` passages."""
        attempts, retriever = self.attempts, self.retriever
        if isinstance(retriever, Runnable):
            found = attempts.call(asking_for(retriever, top_k), query, attempts.config)
        else:
            found = retriever(query, top_k)
        return attempts.documents.passages_of(list(found)[:top_k])


@dataclass(frozen=True, slots=True)
class _Rewriter:
    """A model that rewords questions for retrieval."""

    attempts: QuestionAttempts
    model: Runnable[Any, Any]

    def rewrite(self, question: str) -> str:
        """Return the question in other words."""
        messages = [HumanMessage(REWRITE.format(question=question))]
        reply = self.attempts.call(Tracked(self.model, "semgrad_rewrite"), messages, self.attempts.config)
        return (text_of(reply) or "").strip().strip('"')


class _Fallbacks(Mapping[str, AnswerModel]):
    """The fallback models as the policy's steps call them, for one question."""

    def __init__(self, attempts: QuestionAttempts) -> None:
        self._attempts = attempts

    @override
    def __getitem__(self, name: str) -> AnswerModel:
        return _Fallback(self._attempts, name, self._attempts.tools.fallbacks[name])

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._attempts.tools.fallbacks)

    @override
    def __len__(self) -> int:
        return len(self._attempts.tools.fallbacks)


@dataclass(frozen=True, slots=True)
class _Fallback:
    """One fallback model; it reads the first model's prompt, so it gets no other passages."""

    attempts: QuestionAttempts
    name: str
    model: Any

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:  # noqa: ARG002 - same prompt
        """Return the exchange of the fallback model's answer."""
        return self.attempts.ask_fallback(exchange, self.name, self.model)


@dataclass(slots=True, kw_only=True)
class ChainAttempts(QuestionAttempts):
    """The attempts at one question of a guarded chain."""

    input: Any
    """The chain's input, given to every attempt anew: nothing of an earlier answer is in it."""
    manager: BaseRunManager
    """The guard's own run."""
    answer_key: str | None = None
    """The answer's key, where the chain's value is a mapping."""
    values: dict[ExchangeId, tuple[Any, ChainCandidate]] = field(default_factory=dict)
    """What the chain gave in each attempt, and the answer in it."""

    def first(self, value: Any, candidate: ChainCandidate) -> Resources:
        """Keep the value of the first attempt, and return what the policy may act with."""
        self.values[candidate.exchange.id] = (value, candidate)
        return self.resources()

    @override
    def chain_query(self, exchange: Exchange) -> str:
        """Return what the chain itself asked its retriever: it may have made the question independent of the chat."""
        _, candidate = self.values[exchange.id]
        return candidate.query or exchange.question or ""

    def with_configurable(self, fields: Mapping[str, Json]) -> Self:
        """Return the same attempts with other `configurable` fields for the chain."""
        return replace(self, config=patch_config(self.config, configurable=dict(fields)))

    @override
    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        """Let the chain retrieve with other `configurable` fields, and return the exchange of its new answer.

        Raises:
            StepUnavailableError: the policy names no such fields.
        """
        if not step.configurable:
            msg = (
                "this guard knows no retriever: pass retriever=retriever, as in wrap(chain, retriever=retriever), "
                "or name `configurable` fields in the policy's retry_retrieval for a chain that owns its retriever"
            )
            raise StepUnavailableError(msg)
        return self.with_configurable(step.configurable).answer(exchange, None)

    @override
    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Ask the chain again and return the exchange of its answer; without passages it retrieves as always.

        Raises:
            StepUnavailableError: there is no chain to ask.
            RetrievalFailedError: the chain did not read the new passages, or asked for tools instead of answering.
        """
        documents = None if passages is None else self.documents.documents_of(passages)
        tracked = Tracked(self._answering(exchange, documents), "semgrad_attempt")
        with hand(documents) as handed:
            value = self.call(tracked, self.input, self.config)
        if handed is not None and not handed.taken and self.tools.answer is None:
            msg = (
                "the chain answered without reading the new passages: it calls its retriever in a thread of its own or "
                "not at all; give wrap(chain, retriever=..., answer=function of question and documents)"
            )
            raise RetrievalFailedError(msg)
        return self._next(exchange, value, tracked, documents or [])

    def _answering(self, exchange: Exchange, documents: list[Document] | None) -> Runnable[Any, Any]:
        """Return what gives the next answer."""
        chain, answer = self.tools.chain, self.tools.answer
        if answer is not None and documents is not None:
            return RunnableLambda(lambda _: answer(exchange.question or "", documents))
        if chain is None:
            msg = "this node cannot answer again: pass SemGradNode(answer=function of question and documents)"
            raise StepUnavailableError(msg)
        return chain

    def _next(self, exchange: Exchange, value: Any, tracked: Tracked, documents: Sequence[Document]) -> Exchange:
        """Keep what the chain gave in a new attempt, and return its exchange."""
        if waits_for_tools(value, self.answer_key) or tracked.run_id is None:
            msg = "answering again ended in a request for tools, not in an answer"
            raise RetrievalFailedError(msg)
        context = CallContext(
            tracked.run_id,
            self.manager,
            within=True,
            question=exchange.question,
            key=self.answer_key,
            own_model=self.tools.own_model,
        )
        candidates = candidates_in(value, context)
        _, earlier = self.values[exchange.id]
        path = earlier.slot.path if earlier.slot else None
        candidate = next((c for c in candidates if c.slot and c.slot.path == path), candidates[0])
        if candidate.error is not None:
            raise candidate.error
        following = replace(candidate.exchange, attempt=exchange.attempt + 1, question=exchange.question)
        following = read_from(following, documents)
        self.values[following.id] = (value, replace(candidate, exchange=following))
        return following

    @override
    def ask_fallback(self, exchange: Exchange, name: str, model: Any) -> Exchange:
        """Ask a fallback model with the very prompt that the chain's model read, and return the exchange of its answer.

        Raises:
            FallbackFailedError: it gave no text.
        """
        value, candidate = self.values[exchange.id]
        if candidate.slot is None:
            msg = (
                f"the chain gives {type(value).__name__}, in which the text of fallback model {name!r} has no place: "
                "guard the chain before its parser, or use SemGradOutputParser"
            )
            raise FallbackFailedError(msg)
        run = candidate.llm_run
        prompt = from_prompt(exchange.prompt) if run is None or isinstance(run.prompt, str) else list(run.prompt)
        tracked = Tracked(model, f"semgrad_fallback:{name}")
        reply = self.call(tracked, prompt, self.config)
        text = text_of(reply)
        if text is None or asks_for_tools(reply):
            msg = f"fallback model {name!r} gave {type(reply).__name__}, not a text"
            raise FallbackFailedError(msg)
        following = exchange.next_attempt(prompt=exchange.prompt, answer=text, passages=exchange.passages, author=name)
        following = replace(following, metadata=self._fallback_metadata(exchange, reply, tracked))
        self.values[following.id] = _in_place(value, candidate, reply, following)
        return following

    def _fallback_metadata(self, exchange: Exchange, reply: Any, tracked: Tracked) -> dict[str, Any]:
        """Return an exchange's metadata with the fallback's own model call in the place of the chain's."""
        context = CallContext(tracked.run_id or self.manager.run_id, self.manager, within=True)
        of_reply = candidates_in(reply, context)[0].exchange.metadata
        of_chain = {RUN_KEY, "llm_run_id", "llm_run_name"}
        return {**{key: value for key, value in exchange.metadata.items() if key not in of_chain}, **of_reply}


def _in_place(value: Any, candidate: ChainCandidate, reply: Any, following: Exchange) -> tuple[Any, ChainCandidate]:
    """Return what a fallback's answer makes of the chain's value: its own message, where the value is one."""
    slot = candidate.slot
    if not isinstance(reply, BaseMessage) or slot is None or slot.message is None or slot.path:
        return value, candidate
    return reply, replace(candidate, slot=Slot((), following.answer, reply), exchange=following)
