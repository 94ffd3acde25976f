"""Asking an engine again: its parts, other retrievers and models, and the attempts at one question."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import Response
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import QueryBundle
from typing_extensions import override

from llama_index_semgrad.convert import passages_of, rebuilt_prompt
from llama_index_semgrad.exchanges import About, Judgeable, judgeable, next_judgeable
from llama_index_semgrad.responses import Reply
from llama_index_semgrad.watcher import capturing
from semgrad_guard.errors import StepUnavailableError
from semgrad_guard.ports import AnswerModel
from semgrad_guard.routing import Resources

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from llama_index.core.llms import LLM
    from llama_index.core.memory import BaseMemory
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import NodeWithScore

    from llama_index_semgrad.watcher import ModelCall
    from semgrad_guard.flow import Exchange, ExchangeId, Outcome, Passage
    from semgrad_guard.guard import Guard
    from semgrad_guard.ports import QueryRewriter

    Fallback = LLM | BaseQueryEngine | BaseChatEngine | AnswerModel

TOP_K_NAMES = (
    "similarity_top_k",
    "_similarity_top_k",
    "num_chunks_per_query",
    "_num_chunks_per_query",
    "top_k",
    "_top_k",
)
"""What retrievers call the number of nodes to return."""

_RETRIEVER, _SYNTHESIZER, _INNER = "_retriever", "_response_synthesizer", "_query_engine"
_MAX_DEPTH = 5


class FixedNodes(BaseRetriever):
    """Returns nodes that were retrieved before, whatever the query."""

    def __init__(self, nodes: Sequence[NodeWithScore]) -> None:
        """Keep the nodes."""
        super().__init__()
        self._nodes = list(nodes)

    @override
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self._nodes)


def _holder(engine: object, name: str, depth: int = 0) -> object | None:
    """Return the engine, or the engine inside it, that has a part."""
    if getattr(engine, name, None) is not None:
        return engine
    inner = getattr(engine, _INNER, None)
    return _holder(inner, name, depth + 1) if inner is not None and depth < _MAX_DEPTH else None


def retriever_of(engine: object) -> BaseRetriever | None:
    """Return the retriever of an engine; `None` when it keeps it elsewhere."""
    found = getattr(_holder(engine, _RETRIEVER), _RETRIEVER, None)
    return found if isinstance(found, BaseRetriever) else None


def postprocessors_of(engine: object) -> tuple[BaseNodePostprocessor, ...]:
    """Return what an engine does to retrieved nodes, in order."""
    return tuple(getattr(_holder(engine, _RETRIEVER), "_node_postprocessors", None) or ())


def llm_of(engine: object) -> Any:
    """Return the LLM that writes an engine's answers; `None` when it keeps it elsewhere."""
    synthesizer = getattr(_holder(engine, _SYNTHESIZER), _SYNTHESIZER, None)
    return getattr(synthesizer, "_llm", None) or getattr(_holder(engine, "_llm"), "_llm", None)


def empty_response_of(engine: object) -> str | None:
    """Return the text that an engine gives, without asking a model, when nothing was retrieved."""
    synthesizer = getattr(_holder(engine, _SYNTHESIZER), _SYNTHESIZER, None)
    return getattr(synthesizer, "_empty_response", None)


def with_nodes(engine: Any, nodes: Sequence[NodeWithScore]) -> Any:
    """Return a copy of an engine that answers from these nodes; `None` when it keeps its retriever elsewhere."""
    return _with(engine, _RETRIEVER, {_RETRIEVER: FixedNodes(nodes), "_node_postprocessors": []})


def with_llm(engine: Any, llm: LLM) -> Any:
    """Return a copy of an engine whose answers another LLM writes; `None` when it keeps its LLM elsewhere."""
    holder = _holder(engine, _SYNTHESIZER)
    if holder is not None:
        return _with(engine, _SYNTHESIZER, {_SYNTHESIZER: _synthesizer_with(getattr(holder, _SYNTHESIZER), llm)})
    return _with(engine, "_llm", {"_llm": llm})


def with_memory(engine: Any, memory: BaseMemory) -> Any:
    """Return a copy of a chat engine that reads and writes another memory."""
    return _with(engine, "_memory", {"_memory": memory})


def with_top_k(retriever: Any, top_k: int) -> Any:
    """Return a copy of a retriever, and of those inside it, that returns at least `top_k` nodes where it can count."""
    changed = copy.copy(retriever)
    for name in TOP_K_NAMES:
        present = getattr(retriever, name, None)
        if isinstance(present, int):
            setattr(changed, name, max(present, top_k))
            break
    for name in (_RETRIEVER, "_vector_retriever"):
        if isinstance(getattr(retriever, name, None), BaseRetriever):
            setattr(changed, name, with_top_k(getattr(retriever, name), top_k))
    inner = getattr(retriever, "_retrievers", None)
    if isinstance(inner, list):
        changed._retrievers = [with_top_k(one, top_k) for one in inner]  # noqa: SLF001 - LlamaIndex offers no other way
    return changed


def _with(engine: Any, part: str, changes: dict[str, Any]) -> Any:
    """Return a copy of an engine in which the engine that has a part gets other attributes; `None` if none has it."""
    holder = _holder(engine, part)
    if holder is None:
        return None
    changed = copy.copy(engine)
    if holder is engine:
        vars(changed).update(changes)
    else:
        vars(changed)[_INNER] = _with(getattr(engine, _INNER), part, changes)
    return changed


def _synthesizer_with(synthesizer: Any, llm: LLM) -> Any:
    """Return a copy of a response synthesizer that asks another LLM."""
    changed = copy.copy(synthesizer)
    present = synthesizer._llm  # noqa: SLF001 - LlamaIndex offers no other way
    if llm.metadata.context_window < present.metadata.context_window:
        changed._prompt_helper = PromptHelper.from_llm_metadata(llm.metadata)  # noqa: SLF001 - same
    changed._llm = llm  # noqa: SLF001 - same
    for name, value in vars(changed).items():  # a bound method would still ask the LLM of the original
        if isinstance(value, MethodType) and value.__self__ is synthesizer:
            setattr(changed, name, MethodType(value.__func__, changed))
    return changed


REWRITE_TEMPLATE = PromptTemplate(
    "Write one search query that finds passages which answer the question below. Keep every name, number and date; use "
    "other words where a document may use them. Give the search query alone, without quotes or explanation.\n"
    "Question: {question}\n"
    "Search query: "
)


class LlmRewriter:
    """Asks an LLM for a search query; only retrieval uses it, the answer's prompt keeps the question."""

    def __init__(self, llm: LLM, template: PromptTemplate = REWRITE_TEMPLATE) -> None:
        """Keep the LLM and the template, which has one variable: `question`."""
        self._llm, self._template = llm, template

    def rewrite(self, question: str) -> str:
        """Return the question in other words; as it is when the model has none."""
        lines = (line.strip(" \"'`") for line in self._llm.predict(self._template, question=question).splitlines())
        return next(filter(None, lines), question)


class Asker(Protocol):
    """Asks an engine one question, in the manner of query engines or of chat engines."""

    @property
    def question(self) -> str:
        """The user's question."""
        ...

    def ask(self, engine: Any) -> Reply:
        """Return the engine's answer, read to the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What a guarded engine can act with; made once by `SemGradGuard.wrap`."""

    answering: Any
    """The engine that answers again: the guarded one, or one made of the retriever and synthesizer given."""
    retriever: BaseRetriever | None = None
    postprocessors: Sequence[BaseNodePostprocessor] = ()
    retrievers: Mapping[str, BaseRetriever] = field(default_factory=dict[str, "BaseRetriever"])
    rewriter: QueryRewriter | None = None
    fallbacks: Mapping[str, Fallback] = field(default_factory=dict[str, "Fallback"])
    tags: frozenset[str] = frozenset()
    weights: object | None = None
    """The live model whose weights score."""
    empty_response: str | None = None

    def about(self, question: str) -> About:
        """Return what is known of a question."""
        return About(question, self.tags, self.weights, self.empty_response)


class Question:
    """The attempts at one question."""

    def __init__(self, wiring: Wiring, asker: Asker) -> None:
        """Keep how to ask."""
        self.wiring, self.asker = wiring, asker
        self.replies: dict[ExchangeId, Reply] = {}
        self._retrieved: dict[ExchangeId, list[NodeWithScore]] = {}
        self._nodes_by_text: dict[str, NodeWithScore] = {}

    def first(self, reply: Reply, calls: Sequence[ModelCall]) -> Judgeable:
        """Return the first answer as an exchange."""
        made = judgeable(reply, calls, self.wiring.about(self.asker.question))
        self.replies[made.exchange.id] = reply
        return made

    def settle(self, guard: Guard, made: Judgeable, cancel: threading.Event | None = None) -> Outcome:
        """Return what the caller gets for the first answer, after whatever the policy adds."""
        if made.error is not None:
            return guard.run_unjudged(made.exchange, made.error, self.resources(), cancel=cancel)
        return guard.run(made.exchange, self.resources(), cancel=cancel)

    def reply_of(self, exchange: Exchange) -> Reply:
        """Return the response of an attempt; a bare one for an answer model of the caller's own."""
        known = self.replies.get(exchange.id)
        return known or Reply(Response(exchange.answer), exchange.answer)

    def resources(self) -> Resources:
        """Return what the policy's steps act with."""
        wiring = self.wiring
        own = NodeRetriever(self, wiring.retriever) if wiring.retriever else None
        return Resources(
            chain=EngineAnswerer(self),
            retriever=own,
            retrievers={name: NodeRetriever(self, one) for name, one in wiring.retrievers.items()},
            rewriter=wiring.rewriter,
            fallbacks={name: answerer_of(self, one) for name, one in wiring.fallbacks.items()},
        )

    def retrieve(self, retriever: BaseRetriever, query: str, top_k: int) -> list[NodeWithScore]:
        """Return nodes for a query, treated as the engine treats those for the question itself."""
        nodes = with_top_k(retriever, top_k).retrieve(QueryBundle(query))
        for postprocessor in self.wiring.postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=QueryBundle(self.asker.question))
        return list(nodes)

    def remember(self, nodes: Sequence[NodeWithScore]) -> tuple[Passage, ...]:
        """Return nodes as passages, and keep in mind which is which."""
        passages = passages_of(nodes)
        self._nodes_by_text.update(zip((p.text for p in passages), nodes, strict=True))
        return passages

    def nodes_for(self, passages: Sequence[Passage]) -> list[NodeWithScore]:
        """Return the nodes that passages were made of."""
        return [self._nodes_by_text[p.text] for p in passages if p.text in self._nodes_by_text]

    def nodes_behind(self, exchange: Exchange) -> list[NodeWithScore] | None:
        """Return the nodes that an attempt was written from; `None` where the engine makes others of them."""
        retrieved = self._retrieved.get(exchange.id)
        if retrieved is not None:
            return retrieved
        reply = self.replies.get(exchange.id)
        plain = isinstance(self.wiring.answering, BaseChatEngine) or type(self.wiring.answering) is RetrieverQueryEngine
        return reply.nodes if reply and plain and reply.nodes else None

    def attempt(self, earlier: Exchange, engine: Any, nodes: Sequence[NodeWithScore] | None = None) -> Exchange:
        """Ask an engine the question and return the new attempt; it knows nothing of the earlier answer."""
        with capturing() as calls:
            reply = self.asker.ask(engine)
        return self.made(earlier, reply, calls, nodes)

    def made(
        self,
        earlier: Exchange,
        reply: Reply,
        calls: Sequence[ModelCall],
        nodes: Sequence[NodeWithScore] | None = None,
    ) -> Exchange:
        """Return an answer as the new attempt."""
        made = next_judgeable(earlier, judgeable(reply, calls, self.wiring.about(self.asker.question)))
        self.replies[made.id] = reply
        if nodes is not None:
            self._retrieved[made.id] = list(nodes)
        return made


class NodeRetriever:
    """A LlamaIndex retriever as the guard's retriever."""

    def __init__(self, question: Question, retriever: BaseRetriever) -> None:
        """Keep whose question it is."""
        self._question, self._retriever = question, retriever

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        """Return passages for a query."""
        return self._question.remember(self._question.retrieve(self._retriever, query, top_k))


class EngineAnswerer:
    """The guarded engine, answering again from other passages; the original question goes into the prompt."""

    def __init__(self, question: Question) -> None:
        """Keep whose question it is."""
        self._question = question

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return a new attempt.

        Raises:
            StepUnavailableError: the engine keeps its retriever out of reach.
        """
        nodes = self._question.nodes_for(passages or exchange.passages)
        engine = with_nodes(self._question.wiring.answering, nodes)
        if engine is None:
            kind = type(self._question.wiring.answering).__name__
            msg = f"{kind} keeps its retriever out of reach: use wrap(retriever=..., synthesizer=...)"
            raise StepUnavailableError(msg)
        return self._question.attempt(exchange, engine, nodes)


class LlmAnswerer:
    """A fallback LLM: the same engine, prompt template and passages, another model."""

    def __init__(self, question: Question, llm: LLM) -> None:
        """Keep whose question it is."""
        self._question, self._llm = question, llm

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return a new attempt."""
        nodes = self._question.nodes_for(passages) if passages else self._question.nodes_behind(exchange)
        engine = with_llm(self._question.wiring.answering, self._llm)
        if engine is not None and nodes is not None:
            engine = with_nodes(engine, nodes) or engine
        if engine is not None:
            with capturing() as calls:
                reply = self._question.asker.ask(engine)
            if any(call.llm is self._llm for call in calls):
                return self._question.made(exchange, reply, calls, nodes)
        return self._directly(exchange)

    def _directly(self, exchange: Exchange) -> Exchange:
        """Ask the LLM itself, where the engine has no place for it."""
        with capturing() as calls:
            text = _ask(self._llm, exchange)
        behind = self._question.replies.get(exchange.id)
        reply = Reply(Response(text, source_nodes=behind.nodes if behind else []), text)
        return self._question.made(exchange, reply, calls)


class EngineFallback:
    """A whole other engine as a fallback."""

    def __init__(self, question: Question, engine: BaseQueryEngine | BaseChatEngine) -> None:
        """Keep whose question it is."""
        self._question, self._engine = question, engine

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:  # noqa: ARG002 - it has its own
        """Return a new attempt."""
        return self._question.attempt(exchange, self._engine)


def answerer_of(question: Question, fallback: Fallback) -> AnswerModel:
    """Return a fallback as the guard's answer model."""
    if isinstance(fallback, BaseQueryEngine | BaseChatEngine):
        return EngineFallback(question, fallback)
    return fallback if isinstance(fallback, AnswerModel) else LlmAnswerer(question, fallback)


def _ask(llm: LLM, exchange: Exchange) -> str:
    if not isinstance(exchange.prompt, str):
        messages = [ChatMessage(role=m.role, content=m.content) for m in exchange.prompt]
        return llm.chat(messages).message.content or ""
    # A text that was rendered for one model's template means nothing to another: ask anew.
    prompt = rebuilt_prompt(exchange.question or exchange.prompt, [p.text for p in exchange.passages])
    if llm.metadata.is_chat_model:
        return llm.chat([ChatMessage(role="user", content=prompt)]).message.content or ""
    return llm.complete(prompt).text
