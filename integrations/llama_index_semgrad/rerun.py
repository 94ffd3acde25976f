"""Asking an engine again: with other passages, another model, or another engine."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
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
from llama_index_semgrad.exchanges import EngineContext, engine_candidate
from llama_index_semgrad.responses import Reply
from llama_index_semgrad.watcher import capturing
from semgrad_guard.adapter_kit import Attempts, run_guard
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

    from llama_index_semgrad.convert import LlmCall
    from semgrad_guard.adapter_kit import Candidate
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
    """Returns the same nodes for every query."""

    def __init__(self, nodes: Sequence[NodeWithScore]) -> None:
        """Keep the nodes."""
        super().__init__()
        self._nodes = list(nodes)

    @override
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self._nodes)


def _holder(engine: object, name: str, depth: int = 0) -> object | None:
    """Return the engine that has a part: the one given, or one inside it."""
    if getattr(engine, name, None) is not None:
        return engine
    inner = getattr(engine, _INNER, None)
    return _holder(inner, name, depth + 1) if inner is not None and depth < _MAX_DEPTH else None


def retriever_of(engine: object) -> BaseRetriever | None:
    """Return the retriever of an engine; `None` when it keeps it elsewhere."""
    retriever = getattr(_holder(engine, _RETRIEVER), _RETRIEVER, None)
    return retriever if isinstance(retriever, BaseRetriever) else None


def postprocessors_of(engine: object) -> tuple[BaseNodePostprocessor, ...]:
    """Return the postprocessors of an engine's retrieved nodes, in order."""
    return tuple(getattr(_holder(engine, _RETRIEVER), "_node_postprocessors", None) or ())


def llm_of(engine: object) -> Any:
    """Return the LLM that writes an engine's answers; `None` when it keeps it elsewhere."""
    synthesizer = getattr(_holder(engine, _SYNTHESIZER), _SYNTHESIZER, None)
    return getattr(synthesizer, "_llm", None) or getattr(_holder(engine, "_llm"), "_llm", None)


def empty_response_of(engine: object) -> str | None:
    """Return the text that an engine returns, without calling a model, when nothing was retrieved."""
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
    """Return a copy of a retriever that returns at least `top_k` nodes, where the retriever has such a setting.

    Retrievers inside it are copied and changed too.
    """
    changed = copy.copy(retriever)
    for name in TOP_K_NAMES:
        current = getattr(retriever, name, None)
        if isinstance(current, int):
            setattr(changed, name, max(current, top_k))
            break
    for name in (_RETRIEVER, "_vector_retriever"):
        if isinstance(getattr(retriever, name, None), BaseRetriever):
            setattr(changed, name, with_top_k(getattr(retriever, name), top_k))
    inner = getattr(retriever, "_retrievers", None)
    if isinstance(inner, list):
        changed._retrievers = [with_top_k(part, top_k) for part in inner]  # noqa: SLF001 - LlamaIndex offers no other way
    return changed


def _with(engine: Any, part: str, changes: dict[str, Any]) -> Any:
    """Return a copy of an engine with other attributes in the engine, itself or inside it, that has a part.

    `None` when no engine has it.
    """
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
    current = synthesizer._llm  # noqa: SLF001 - LlamaIndex offers no other way
    if llm.metadata.context_window < current.metadata.context_window:
        changed._prompt_helper = PromptHelper.from_llm_metadata(llm.metadata)  # noqa: SLF001 - same
    changed._llm = llm  # noqa: SLF001 - same
    for name, value in vars(changed).items():  # a bound method would still call the LLM of the original
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
    """Asks an LLM for a search query; only retrieval uses the query, and the answer's prompt keeps the question."""

    def __init__(self, llm: LLM, template: PromptTemplate = REWRITE_TEMPLATE) -> None:
        """Keep the LLM and the template, which has one variable: `question`."""
        self._llm, self._template = llm, template

    def rewrite(self, question: str) -> str:
        """Return the question in other words, or the question itself when the model writes nothing."""
        lines = (line.strip(" \"'`") for line in self._llm.predict(self._template, question=question).splitlines())
        return next(filter(None, lines), question)


class Asker(Protocol):
    """Asks an engine one question; there is one for query engines, and one for chat engines."""

    @property
    def question(self) -> str:
        """The user's question."""
        ...

    def ask(self, engine: Any) -> Reply:
        """Return the engine's answer, read to the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunTools:
    """What a guarded engine can answer again with; `SemGradGuard.wrap` makes it once for an engine."""

    engine: Any
    """The engine that answers again: the guarded one, or one made of the retriever and synthesizer given."""
    retriever: BaseRetriever | None = None
    postprocessors: Sequence[BaseNodePostprocessor] = ()
    retrievers: Mapping[str, BaseRetriever] = field(default_factory=dict[str, "BaseRetriever"])
    rewriter: QueryRewriter | None = None
    fallbacks: Mapping[str, Fallback] = field(default_factory=dict[str, "Fallback"])
    tags: frozenset[str] = frozenset()
    weights: object | None = None
    """The live model that scores."""
    empty_response: str | None = None

    def context(self, question: str) -> EngineContext:
        """Return what is known about a question."""
        return EngineContext(question, self.tags, self.weights, self.empty_response)


class EngineRun:
    """One question to a guarded engine, and its attempts."""

    def __init__(self, tools: RerunTools, asker: Asker) -> None:
        """Keep how to ask the question again."""
        self.tools, self.asker = tools, asker
        self._context = tools.context(asker.question)  # a stream may be judged outside of an `answering` block
        self._attempts = Attempts[Reply]()
        self._retrieved: dict[ExchangeId, list[NodeWithScore]] = {}
        self._nodes_by_text: dict[str, NodeWithScore] = {}

    @property
    def question(self) -> str:
        """The user's question."""
        return self.asker.question

    def first(self, reply: Reply, calls: Sequence[LlmCall]) -> Candidate:
        """Return the engine's own answer as something to judge."""
        return self._attempts.first(self._candidate(reply, calls), reply)

    def outcome(
        self, guard: Guard, reply: Reply, calls: Sequence[LlmCall], cancel: threading.Event | None = None
    ) -> tuple[Outcome, Reply]:
        """Return what the guard decides about the engine's own answer, and the reply of the attempt that it chose."""
        outcome = run_guard(guard, self.first(reply, calls), self._resources(), cancel)
        chosen = self.reply_to(outcome.exchange)  # there is none for an answer model of the caller's own
        return outcome, chosen or Reply(Response(outcome.exchange.answer), outcome.exchange.answer)

    def beside_tools(self, text: str, reply: Reply, calls: Sequence[LlmCall]) -> Candidate:
        """Return a text that stood beside a request for tools, on the way to a reply, as something to judge."""
        return self._candidate(replace(reply, text=text), calls)

    def reply_to(self, exchange: Exchange) -> Reply | None:
        """Return the response of an attempt; `None` for one that LlamaIndex did not make."""
        return self._attempts.values.get(exchange.id)

    def retrieve(self, retriever: BaseRetriever, query: str, top_k: int) -> tuple[Passage, ...]:
        """Return passages for a query; their nodes are postprocessed as the engine's own are."""
        nodes = with_top_k(retriever, top_k).retrieve(QueryBundle(query))
        for postprocessor in self.tools.postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=QueryBundle(self.question))
        passages = passages_of(nodes)
        self._nodes_by_text.update(zip((p.text for p in passages), nodes, strict=True))
        return passages

    def nodes_for(self, passages: Sequence[Passage]) -> list[NodeWithScore]:
        """Return the nodes that retrieved passages were made of."""
        return [self._nodes_by_text[p.text] for p in passages if p.text in self._nodes_by_text]

    def nodes_of(self, exchange: Exchange) -> list[NodeWithScore] | None:
        """Return the nodes that an attempt was written from; `None` where the engine makes others of them."""
        retrieved = self._retrieved.get(exchange.id)
        if retrieved is not None:
            return retrieved
        reply, engine = self.reply_to(exchange), self.tools.engine
        plain = isinstance(engine, BaseChatEngine) or type(engine) is RetrieverQueryEngine
        return reply.nodes if reply and plain and reply.nodes else None

    def ask(self, earlier: Exchange, engine: Any, nodes: Sequence[NodeWithScore] | None = None) -> Exchange:
        """Ask an engine the question, and return the new attempt; nothing of the earlier answer is in it."""
        with capturing() as calls:
            reply = self.asker.ask(engine)
        if nodes is not None:  # what a retry retrieved counts before what was stated
            earlier = replace(earlier, passages_from="retriever")
        return self.following(earlier, reply, calls, nodes)

    def following(
        self,
        earlier: Exchange,
        reply: Reply,
        calls: Sequence[LlmCall],
        nodes: Sequence[NodeWithScore] | None = None,
    ) -> Exchange:
        """Return a new answer as the attempt after an earlier one.

        Args:
            earlier: the attempt that was not good enough.
            reply: the new response.
            calls: the model calls that were made for it.
            nodes: the nodes that it was written from, where they were given to the engine.

        Raises:
            ScoringError: the new answer cannot be judged.
        """
        candidate = self._candidate(reply, calls)
        if nodes is not None and earlier.passages_from == "retriever":
            candidate = _read_from(candidate, nodes)
        exchange = self._attempts.following(earlier, candidate, reply)
        if nodes is not None:
            self._retrieved[exchange.id] = list(nodes)
        return exchange

    def _candidate(self, reply: Reply, calls: Sequence[LlmCall]) -> Candidate:
        return engine_candidate(reply, calls, self._context)

    def _resources(self) -> Resources:
        """Return what the policy's steps act with."""
        tools = self.tools
        return Resources(
            chain=EngineAnswerer(self),
            retriever=NodeRetriever(self, tools.retriever) if tools.retriever else None,
            retrievers={name: NodeRetriever(self, retriever) for name, retriever in tools.retrievers.items()},
            rewriter=tools.rewriter,
            fallbacks={name: answer_model(self, fallback) for name, fallback in tools.fallbacks.items()},
        )


def _read_from(candidate: Candidate, nodes: Sequence[NodeWithScore]) -> Candidate:
    """Return an answer with the nodes that it was written from."""
    exchange = replace(candidate.exchange, passages=passages_of(nodes), passages_from="retriever")
    return replace(candidate, exchange=exchange)


class NodeRetriever:
    """A LlamaIndex retriever as the guard's retriever."""

    def __init__(self, run: EngineRun, retriever: BaseRetriever) -> None:
        """Keep the retriever, and the question that it retrieves for."""
        self._run, self._retriever = run, retriever

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        """Return passages for a query."""
        return self._run.retrieve(self._retriever, query, top_k)


class EngineAnswerer:
    """The guarded engine, which answers again from other passages; its prompt holds the original question."""

    def __init__(self, run: EngineRun) -> None:
        """Keep the question."""
        self._run = run

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return a new attempt.

        Raises:
            StepUnavailableError: the engine keeps its retriever out of reach.
        """
        nodes = self._run.nodes_for(passages or exchange.passages)
        engine = with_nodes(self._run.tools.engine, nodes)
        if engine is None:
            kind = type(self._run.tools.engine).__name__
            msg = f"{kind} keeps its retriever out of reach: use wrap(retriever=..., synthesizer=...)"
            raise StepUnavailableError(msg)
        return self._run.ask(exchange, engine, nodes)


class LlmAnswerer:
    """A fallback LLM: the same engine, prompt template and passages, but another model."""

    def __init__(self, run: EngineRun, llm: LLM) -> None:
        """Keep the LLM and the question."""
        self._run, self._llm = run, llm

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return a new attempt."""
        nodes = self._run.nodes_for(passages) if passages else self._run.nodes_of(exchange)
        engine = with_llm(self._run.tools.engine, self._llm)
        if engine is not None and nodes is not None:
            engine = with_nodes(engine, nodes) or engine
        if engine is not None:
            with capturing() as calls:
                reply = self._run.asker.ask(engine)
            if any(call.llm is self._llm for call in calls):
                return self._run.following(exchange, reply, calls, nodes)
        return self._ask_llm(exchange)

    def _ask_llm(self, exchange: Exchange) -> Exchange:
        """Ask the LLM itself, because the engine did not call it."""
        with capturing() as calls:
            text = _complete(self._llm, exchange)
        earlier = self._run.reply_to(exchange)
        reply = Reply(Response(text, source_nodes=earlier.nodes if earlier else []), text)
        return self._run.following(exchange, reply, calls)


class EngineFallback:
    """Another engine as a fallback."""

    def __init__(self, run: EngineRun, engine: BaseQueryEngine | BaseChatEngine) -> None:
        """Keep the engine and the question."""
        self._run, self._engine = run, engine

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:  # noqa: ARG002 - it has its own
        """Return a new attempt."""
        return self._run.ask(exchange, self._engine)


def answer_model(run: EngineRun, fallback: Fallback) -> AnswerModel:
    """Return a fallback as the guard's answer model."""
    if isinstance(fallback, BaseQueryEngine | BaseChatEngine):
        return EngineFallback(run, fallback)
    return fallback if isinstance(fallback, AnswerModel) else LlmAnswerer(run, fallback)


def _complete(llm: LLM, exchange: Exchange) -> str:
    """Return what an LLM writes for an exchange's prompt."""
    if not isinstance(exchange.prompt, str):
        messages = [ChatMessage(role=m.role, content=m.content) for m in exchange.prompt]
        return llm.chat(messages).message.content or ""
    # A text that was rendered for one model's template means nothing to another one, so a new prompt is made.
    prompt = rebuilt_prompt(exchange.question or exchange.prompt, [p.text for p in exchange.passages])
    if llm.metadata.is_chat_model:
        return llm.chat([ChatMessage(role="user", content=prompt)]).message.content or ""
    return llm.complete(prompt).text
