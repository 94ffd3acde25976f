"""Answering again in an agent: retries and fallbacks call its model once more, or let it search again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, SystemMessage
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphBubbleUp
from typing_extensions import override

from langchain_semgrad.agents.search import final_answer, search_instruction
from langchain_semgrad.convert import asks_for_tools
from langchain_semgrad.rerun import QuestionAttempts
from semgrad_guard.errors import FallbackFailedError, StepUnavailableError
from semgrad_guard.routing import PostponedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain.agents.middleware import ModelRequest, ModelResponse
    from langchain_core.documents import Document

    from semgrad_guard.flow import Exchange, ExchangeId, Passage, RetryRetrieval

PASSAGES = "Answer from these passages:\n\n{passages}"
"""How passages that a retry found are shown to the agent's model, at the end of its system message."""


@dataclass(slots=True, kw_only=True)
class AgentAttempts(QuestionAttempts):
    """The attempts at one final answer of an agent."""

    request: ModelRequest[Any]
    """What the agent asked its model; every attempt starts from it, so nothing of an earlier answer is in it."""
    ask: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    """Asks the model, through the middleware below."""
    is_buffered: bool = True
    """Keep the tokens of every model call out of LangGraph's message stream: they may have to be held back."""
    responses: dict[ExchangeId, ModelResponse[Any]] = field(default_factory=dict)
    """What the model gave in each attempt."""
    stopped_by: GraphBubbleUp | None = None
    """An interrupt or command of LangGraph that a model call ended in; it must reach the graph."""
    instruction: str = ""
    """What the model is told before it searches again, once the next attempt was postponed for that."""

    @override
    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return the exchange of a new answer from other passages."""
        documents = self.documents.documents_of(passages or ())
        return self._ask(exchange, _with_passages(self.request, documents))

    @override
    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        """Let the agent search again with its own tools.

        Raises:
            PostponedError: it has tools.
            StepUnavailableError: it has none.
        """
        if self.request.tools:
            self.instruction = search_instruction(query, exchange.question)
            raise PostponedError
        msg = (
            "this agent has no tools to search again with, and its guard knows no retriever: "
            "pass SemGradMiddleware(retriever=retriever)"
        )
        raise StepUnavailableError(msg)

    @override
    def ask_fallback(self, exchange: Exchange, name: str, model: Any) -> Exchange:
        """Send a fallback model the request that the agent's own model got, and return the exchange of its answer."""
        return self._ask(exchange, self.quiet(self.request.override(model=model)), author=name)

    def _ask(self, exchange: Exchange, request: ModelRequest[Any], author: str | None = None) -> Exchange:
        """Return the exchange of the model's answer to a request, and keep its response.

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
        candidate = final_answer(message, messages_of(request), own_model=self.tools.own_model)
        following = replace(
            candidate.exchange,
            attempt=exchange.attempt + 1,
            question=exchange.question,
            author=author or candidate.exchange.author,
        )
        self.responses[following.id] = response
        return following

    def quiet(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """Return the request with its model kept out of the message stream, where answers are buffered."""
        return request.override(model=quiet(request.model)) if self.is_buffered else request


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


def messages_of(request: ModelRequest[Any]) -> list[Any]:
    """Return all messages of a request, the system message first."""
    return [*([request.system_message] if request.system_message else []), *request.messages]


def with_instruction(request: ModelRequest[Any], text: str) -> ModelRequest[Any]:
    """Return a request with a text at the end of its system message."""
    if not text:
        return request
    before = str(request.system_message.text) if request.system_message else ""
    return request.override(system_message=SystemMessage(f"{before}\n\n{text}".strip()))


def _with_passages(request: ModelRequest[Any], documents: Sequence[Document]) -> ModelRequest[Any]:
    shown = "\n\n".join(f"[{i}] {document.page_content}" for i, document in enumerate(documents, start=1))
    return with_instruction(request, PASSAGES.format(passages=shown))
