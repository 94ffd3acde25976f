"""One final answer of an agent: how its retries and fallbacks are carried out, by calling the model again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, SystemMessage
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphBubbleUp
from typing_extensions import override

from langchain_semgrad.agents.search import final_answer, instruction
from langchain_semgrad.convert import asks_for_tools
from langchain_semgrad.rerun import reworded
from semgrad_guard.errors import FallbackFailedError, StepUnavailableError
from semgrad_guard.ports import AnswerModel
from semgrad_guard.routing import PostponedError, Resources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain.agents.middleware import ModelRequest, ModelResponse
    from langchain_core.documents import Document
    from langchain_core.runnables import Runnable, RunnableConfig

    from langchain_semgrad.exchanges import OwnModel
    from langchain_semgrad.invoke import Caller
    from langchain_semgrad.rerun import FallbackModels, Finder
    from semgrad_guard.flow import Exchange, ExchangeId, Passage, RetryRetrieval

PASSAGES = "Answer from these passages:\n\n{passages}"
"""How passages that a retry found are shown to the agent's model, at the end of its system message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """What a guarded agent may act with; the same for all answers."""

    finder: Finder
    fallbacks: FallbackModels
    rewriter: Runnable[Any, Any] | None = None
    own_model: OwnModel | None = None
    buffered: bool = True
    """Keep the tokens of every model call out of LangGraph's message stream: they may have to be held back."""


@dataclass(slots=True)
class AgentAttempts:
    """The attempts at one final answer.

    Args:
        plan: what to act with.
        request: what the agent asked its model; every attempt starts from it, so nothing of an earlier answer is in it.
        ask: asks the model, through the middleware below.
        call: calls retriever and rewriter.
        config: how they are called.
    """

    plan: AgentPlan
    request: ModelRequest[Any]
    ask: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    call: Caller
    config: RunnableConfig
    made: dict[ExchangeId, ModelResponse[Any]] = field(default_factory=dict)
    """Attempt -> what the model gave then."""
    stopped_by: GraphBubbleUp | None = None
    """An interrupt or command of LangGraph that a model call ended in; it must reach the graph."""
    told: str = ""
    """What the model is to be told before it searches again, once the next attempt was postponed for that."""

    def resources(self) -> Resources:
        """Return what the policy may act with."""
        return Resources(
            chain=self, rewriter=self if self.plan.rewriter is not None else None, fallbacks=_Fallbacks(self)
        )

    def rewrite(self, question: str) -> str:
        """Return the question in other words, by the rewriter."""
        return reworded(self.plan.rewriter, question, self.call, self.config)

    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        """Return the exchange of a new answer, from passages that the retriever finds.

        Raises:
            PostponedError: there is no retriever, but the agent has tools to search again with.
            StepUnavailableError: there is neither.
            RetrievalFailedError: there is nothing new to answer from.
        """
        if not self.plan.finder.knows(step):
            if self.request.tools:
                self.told = instruction(query, exchange.question)
                raise PostponedError
            msg = (
                "this agent has no tools to search again with, and its guard knows no retriever: "
                "pass SemGradMiddleware(retriever=retriever)"
            )
            raise StepUnavailableError(msg)
        documents = self.plan.finder.find(step, exchange, query, call=self.call, config=self.config)
        return self.asked(exchange, _with_passages(self.request, documents))

    def asked(self, exchange: Exchange, request: ModelRequest[Any], author: str | None = None) -> Exchange:
        """Return the exchange of the model's answer to a request, and note it.

        Raises:
            FallbackFailedError: it asked for tools instead of answering.
        """
        try:
            response = self.ask(request)
        except GraphBubbleUp as stop:
            self.stopped_by = stop
            raise
        message = answer_in(response)
        if message is None:
            msg = "the model asked for tools or gave nothing instead of answering"
            raise FallbackFailedError(msg)
        candidate = final_answer(message, read_by(request), own_model=self.plan.own_model)
        following = replace(
            candidate.exchange,
            attempt=exchange.attempt + 1,
            question=exchange.question,
            author=author or candidate.exchange.author,
        )
        self.made[following.id] = response
        return following

    def quiet(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """Return the request with its model kept out of the message stream, where answers are buffered."""
        return request.override(model=quiet(request.model)) if self.plan.buffered else request


class _Fallbacks(Mapping[str, AnswerModel]):
    """The fallback models as the policy's steps call them, for one answer."""

    def __init__(self, attempts: AgentAttempts) -> None:
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
    """One fallback model, asked what the agent's own model was asked."""

    attempts: AgentAttempts
    name: str
    model: Any

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:  # noqa: ARG002 - same prompt
        """Return the exchange of the fallback model's answer."""
        request = self.attempts.request.override(model=self.model)
        return self.attempts.asked(exchange, self.attempts.quiet(request), self.name)


def quiet(model: Any) -> Any:
    """Return a model whose tokens stay out of LangGraph's `stream_mode="messages"`; `astream_events` shows them."""
    if not hasattr(model, "model_copy") or not hasattr(model, "tags"):
        return model
    return model.model_copy(update={"tags": [*(model.tags or []), TAG_NOSTREAM]})


def answer_in(response: ModelResponse[Any]) -> AIMessage | None:
    """Return the final answer in a response; `None` where the model asked for tools.

    A structured answer may be given as the call of a tool of its own; it is final as well.
    """
    message = next((m for m in reversed(response.result) if isinstance(m, AIMessage)), None)
    if message is None or (asks_for_tools(message) and response.structured_response is None):
        return None
    return message


def read_by(request: ModelRequest[Any]) -> list[Any]:
    """Return all messages of a request, the system message first."""
    return [*([request.system_message] if request.system_message else []), *request.messages]


def told(request: ModelRequest[Any], text: str) -> ModelRequest[Any]:
    """Return a request with a text at the end of its system message."""
    if not text:
        return request
    said = str(request.system_message.text) if request.system_message else ""
    return request.override(system_message=SystemMessage(f"{said}\n\n{text}".strip()))


def _with_passages(request: ModelRequest[Any], documents: Sequence[Document]) -> ModelRequest[Any]:
    shown = "\n\n".join(f"[{i}] {document.page_content}" for i, document in enumerate(documents, start=1))
    return told(request, PASSAGES.format(passages=shown))
