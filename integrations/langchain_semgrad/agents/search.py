"""Agents that answer again: by their own tools, by another model, or from passages that a retriever finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from langchain.agents.middleware import ModelResponse
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables.config import ensure_config
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphBubbleUp
from typing_extensions import override

from langchain_semgrad.capture import LlmRun
from langchain_semgrad.convert import asks_for_tools, documents_in, question_in, run_id_of, to_message
from langchain_semgrad.exchanges import CallContext, ChainCandidate, candidate_at, exchange_of, read_from
from langchain_semgrad.rerun import QuestionAttempts
from langchain_semgrad.values import Slot
from semgrad_guard.context import blocks_of
from semgrad_guard.errors import FallbackFailedError, StepUnavailableError
from semgrad_guard.flow import Failure, Progress, RetryRetrieval, utc_now_or_epoch
from semgrad_guard.routing import PostponedError
from semgrad_guard.wire import attempt_fields, attempt_from_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from langchain.agents.middleware import ModelRequest
    from langchain_core.messages import BaseMessage

    from langchain_semgrad.capture import Documents
    from langchain_semgrad.exchanges import OwnModel
    from semgrad_guard.flow import Exchange, ExchangeId, Passage


def final_answer(  # noqa: PLR0913 - what may be known of an answer, each with a usual value
    message: AIMessage,
    before: Sequence[BaseMessage],
    *,
    own_model: OwnModel | None,
    within: bool = True,
    question: str | None = None,
    documents: Sequence[Document] = (),
    text: str | None = None,
) -> ChainCandidate:
    """Return the answer of an agent's model with what it read.

    The prompt is what the captured model call read, after all middleware; where no call was captured, as when a graph
    is resumed, it is the messages before the answer.

    Args:
        message: the answer; calls of tools (a structured answer) are judged as their text.
        before: the messages that led to it, with the system message; tools gave documents in their artifacts.
        own_model: the scoring model, where it may have written the answer.
        within: whether the model was called by the node that runs now, or by an earlier one.
        question: the question in the graph's state.
        documents: the documents in it.
        text: the part of the message that is judged, when it is not the whole.
    """
    text = to_message(message).content if text is None else text
    known: Documents = {"tool": documents_of(before), "state": documents}
    slot = Slot((), text, message)
    callbacks = ensure_config().get("callbacks")
    run_id = getattr(callbacks, "parent_run_id", None)
    labels: dict[str, Any] = {}
    if isinstance(callbacks, BaseCallbackManager) and run_id is not None:
        context = CallContext(run_id, callbacks, within=within, question=question, documents=known, own_model=own_model)
        seen = candidate_at(message, slot, context)
        if seen.error is None:
            return _naming_tools(replace(seen, slot=slot), before)
        labels = {"tags": seen.exchange.tags, "metadata": seen.exchange.metadata}
    asked = (question, question_in(list(before)))
    exchange = exchange_of(_uncaptured(message, before), text, questions=asked, documents=[known])
    return _naming_tools(ChainCandidate(replace(exchange, **labels), slot=slot), before)


def _uncaptured(message: AIMessage, before: Sequence[BaseMessage]) -> LlmRun:
    return LlmRun(
        id=run_id_of(message) or uuid4(),
        name="model",
        prompt=tuple(before),
        model=message.response_metadata.get("model_name"),
        text=to_message(message).content,
    )


def documents_of(messages: Sequence[BaseMessage]) -> list[Document]:
    """Return what tools found since the question, or before it where they found nothing since.

    That are the documents that they gave as artifacts beside their text; where some gave documents, the texts of the
    others are documents as well. Where none did, the texts are in the prompt, and there are no documents.
    """
    last = max((i for i, message in enumerate(messages) if isinstance(message, HumanMessage)), default=-1)
    for part in (messages[last + 1 :], messages[: last + 1]):
        tools = [message for message in part if isinstance(message, ToolMessage)]
        found = [documents_in(message.artifact) for message in tools]
        if any(found):
            return [
                document
                for message, given in zip(tools, found, strict=True)
                for document in given or [Document(block) for block in blocks_of(str(message.text))]
            ]
    return []


def _naming_tools(candidate: ChainCandidate, before: Sequence[BaseMessage]) -> ChainCandidate:
    """Return an answer whose passages from texts of tools have the tool's name as their source."""
    texts = [(message.name, str(message.text)) for message in before if isinstance(message, ToolMessage)]

    def named(passage: Passage) -> Passage:
        name = None if passage.source else next((name for name, text in texts if passage.text in text), None)
        return replace(passage, source=name) if name else passage

    exchange = candidate.exchange
    return replace(candidate, exchange=replace(exchange, passages=tuple(map(named, exchange.passages))))


SEARCH_AGAIN = (
    "You have not found enough for an answer that can be relied on. Search again with your tools before you answer: in "
    "other words than before, or with another tool."
)
"""What the agent's model is told, at the end of its system message; nothing of the rejected answer is in it.

It reads as an instruction (`semgrad_guard.context`), so it is not taken for a passage."""
REWORDED = "You may ask for: {query}"
"""The question in other words, where the policy wants that and there is a rewriter."""


def search_instruction(query: str, question: str | None) -> str:
    """Return what the model is told before it searches again."""
    return SEARCH_AGAIN if query == question else f"{SEARCH_AGAIN} {REWORDED.format(query=query)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One question whose last answer was not good enough, while the agent searches again."""

    instruction: str = ""
    """What the model is told before it searches again."""
    progress: Progress = field(default_factory=Progress)
    responses: Mapping[ExchangeId, ModelResponse[Any]] = field(default_factory=dict["ExchangeId", ModelResponse[Any]])
    """What the model gave in each attempt: the best may be an earlier one."""

    def continued(self, exchange: Exchange) -> Exchange:
        """Return the exchange of a new answer as the next attempt."""
        earlier = self.progress.attempts
        return replace(exchange, attempt=earlier[-1].exchange.attempt + 1) if earlier else exchange

    def progress_at(self, exchange: Exchange) -> Progress:
        """Return what happened before an answer; a search that found nothing new is not repeated."""
        last = self.progress.attempts[-1] if self.progress.attempts else None
        if last is None or {p.text for p in exchange.passages} != {p.text for p in last.exchange.passages}:
            return self.progress
        nothing_new = Failure(
            RetryRetrieval.action.value,
            "RetrievalFailedError",
            "the agent's tools found nothing new: searching again can't help",
        )
        return replace(
            self.progress,
            exhausted=self.progress.exhausted | {last.decision.rule},
            failures=(*self.progress.failures, nothing_new),
        )


NO_SEARCH = Search()


def to_state(search: Search, message_id: str, messages: Sequence[object]) -> dict[str, Any]:
    """Return what the graph's state keeps: JSON values and messages, so any checkpointer can store it.

    Args:
        search: what to keep.
        message_id: the empty message that takes the rejected answer's place until the model is called again.
        messages: the messages that led to the answer.
    """
    progress = search.progress
    return {
        "message_id": message_id,
        "question_id": _question_id(messages),
        "instruction": search.instruction,
        "stopped_at": utc_now_or_epoch().isoformat(),
        "progress": {
            "attempts": [attempt_fields(attempt, log_text=True) for attempt in progress.attempts],
            "tried": dict(progress.tried),
            "exhausted": sorted(progress.exhausted),
            "elapsed_s": progress.elapsed_s,
            "cost": progress.cost,
            "failures": [asdict(failure) for failure in progress.failures],
        },
        "responses": {
            str(key): {"result": list(one.result), "structured": one.structured_response}
            for key, one in search.responses.items()
        },
    }


def search_in(request: ModelRequest[Any]) -> Search:
    """Return the search that is under way for the question of a request; an empty one where there is none."""
    state = cast("dict[str, Any]", request.state)
    kept = state.get("semgrad_search")
    if not kept or kept["question_id"] != _question_id(request.messages):
        return NO_SEARCH
    earlier = dict(kept["progress"])
    since = utc_now_or_epoch() - datetime.fromisoformat(kept["stopped_at"])
    progress = Progress(
        attempts=tuple(attempt_from_fields(one) for one in earlier["attempts"]),
        tried=earlier["tried"],
        exhausted=frozenset(earlier["exhausted"]),
        elapsed_s=earlier["elapsed_s"] + max(0.0, since.total_seconds()),
        cost=earlier["cost"],
        failures=tuple(Failure(**one) for one in earlier["failures"]),
    )
    responses = {
        key: ModelResponse(result=one["result"], structured_response=one["structured"])
        for key, one in kept["responses"].items()
    }
    return Search(
        instruction=kept["instruction"],
        progress=progress,
        responses=cast("dict[ExchangeId, ModelResponse[Any]]", responses),
    )


def _question_id(messages: Sequence[object]) -> str | None:
    """Return the id of the last human message: another question starts a new search."""
    return next((m.id for m in reversed(messages) if isinstance(m, HumanMessage)), None)


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
        return self._ask(exchange, _request_with_passages(self.request, documents), documents=documents)

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

    def _ask(
        self,
        exchange: Exchange,
        request: ModelRequest[Any],
        author: str | None = None,
        documents: Sequence[Document] = (),
    ) -> Exchange:
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
            read_from(candidate.exchange, documents),
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


def _request_with_passages(request: ModelRequest[Any], documents: Sequence[Document]) -> ModelRequest[Any]:
    shown = "\n\n".join(f"[{i}] {document.page_content}" for i, document in enumerate(documents, start=1))
    return with_instruction(request, PASSAGES.format(passages=shown))
