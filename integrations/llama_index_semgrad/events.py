"""Judging without guarding: an event for every finished answer, and a handler that judges it and changes nothing."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import AsyncStreamingResponse, PydanticResponse, Response, StreamingResponse
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.schema import QueryBundle
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers.base import BaseEventHandler
from pydantic import Field, PrivateAttr
from typing_extensions import override

from llama_index_semgrad.convert import passages_of, prompt_holds
from llama_index_semgrad.exchanges import EngineContext, engine_candidate
from llama_index_semgrad.guard import SemGradGuard
from llama_index_semgrad.responses import Reply, is_guarded
from llama_index_semgrad.watcher import CALL_METHODS, WATCHER, install, method_of
from semgrad_guard.adapter_kit import BackgroundJudge, observe
from semgrad_guard.errors import in_log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llama_index.core.llms import LLM

    from llama_index_semgrad.convert import LlmCall
    from semgrad_guard.adapter_kit import Candidate
    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard
    from semgrad_guard.policy import AcceptOption, PolicySource

_log = logging.getLogger("semgrad_guard")

MAX_SPANS = 10_000
"""The most open spans that are remembered: those of a stream that is never read to its end stay open."""
MAX_STREAMS = 256
"""The most streams that are remembered until they were read to their end."""

_ASKING = frozenset({"query", "aquery", "chat", "achat", "stream_chat", "astream_chat"})
_WRITING = frozenset({"write_response_to_history", "awrite_response_to_history"})
"""Methods that read a chat engine's stream, in a thread or task of LlamaIndex itself."""
_STREAMING = (StreamingResponse, AsyncStreamingResponse, StreamingAgentChatResponse)


class SemGradAnswerEvent(BaseEvent):
    """An answer is finished.

    The event is dispatched on the root dispatcher, as soon as a `SemGradEventHandler` was made.
    """

    question: str | None = None
    answer: str
    contexts: list[str] = Field(default_factory=list)
    """The passages that it was written from."""
    _reply: Reply = PrivateAttr()
    _calls: list[LlmCall] = PrivateAttr(default_factory=list)

    @classmethod
    def of(cls, question: str | None, reply: Reply, calls: Sequence[LlmCall]) -> SemGradAnswerEvent:
        """Return the event of an answer and its model calls."""
        contexts = [passage.text for passage in passages_of(reply.nodes)]
        event = cls(question=question, answer=reply.text, contexts=contexts)
        event._reply, event._calls = reply, list(calls)
        return event

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradAnswerEvent"

    @property
    def reply(self) -> Reply:
        """The response itself."""
        return self._reply

    @property
    def calls(self) -> list[LlmCall]:
        """The model calls that were made for it, oldest first."""
        return self._calls


@dataclass(eq=False, slots=True)
class _OpenQuestion:
    """A question to an outermost engine that is not answered yet."""

    span_id: str
    """The span of the engine's method."""
    text: str | None
    calls: list[LlmCall] = field(default_factory=list["LlmCall"])
    response: object | None = None
    """What the engine returned; a stream may still have to be read."""
    spans: set[str] = field(default_factory=set[str])
    """Spans inside it that are open, or whose model call has not ended."""
    is_written: bool = False
    """Whether a chat engine's stream was read to its end, which may be before the engine returns it."""


class AnswerTracker:
    """Finds finished answers among spans and model calls; a `watcher.Listener`."""

    def __init__(self) -> None:
        """Start without an open question."""
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenQuestion] = OrderedDict()
        self._streams: deque[_OpenQuestion] = deque(maxlen=MAX_STREAMS)

    def span_entered(self, span_id: str, parent_id: str | None, instance: object, arguments: dict[str, Any]) -> None:
        """Begin a question, or add a span to the one that it belongs to."""
        with self._lock:
            question = self._open.get(parent_id or "")
            is_engine = isinstance(instance, BaseQueryEngine | BaseChatEngine)
            if question is None and is_engine and method_of(span_id) in _ASKING:
                question = _OpenQuestion(span_id, _question_text(arguments))
            if question is not None:
                self._open[span_id] = question
                question.spans.add(span_id)
                if len(self._open) > MAX_SPANS:
                    self._open.popitem(last=False)

    def span_left(self, span_id: str, result: object, *, raised: bool = False) -> None:
        """End a question, or wait for its stream."""
        with self._lock:
            question = self._open.get(span_id)
            if question is None:
                return
            if question.span_id == span_id:
                is_answered = self._engine_returned(question, result)
            else:
                is_answered = self._inner_span_left(question, span_id, raised=raised)
        if is_answered:
            response = question.response
            last_text = question.calls[-1].text if question.calls else ""
            _dispatch(question.text, Reply(response, _response_text(response) or last_text), question.calls)

    def call_ended(self, span_id: str | None, call: LlmCall) -> None:
        """Add a model call to its question, or end the stream that the call wrote."""
        with self._lock:
            question = self._open.pop(span_id or "", None)
            if question is not None and (
                question.response is None or isinstance(question.response, StreamingAgentChatResponse)
            ):
                question.calls.append(call)
                return
            if question is None:
                question = next((one for one in reversed(self._streams) if _wrote_stream(call, one)), None)
            if question is not None:
                self._forget(question)
        if question is None:
            _dispatch(None, Reply(None, call.text), [call])
        else:
            _dispatch(question.text, Reply(question.response, call.text), [*question.calls, call])

    def _engine_returned(self, question: _OpenQuestion, result: object) -> bool:
        """Return whether the question has its answer; a stream must be read to its end first."""
        question.response = result
        if result is None or is_guarded(result) or not isinstance(result, _STREAMING) or question.is_written:
            self._forget(question)
            return result is not None and not is_guarded(result) and not _failed(result)
        self._streams.append(question)
        return False

    def _inner_span_left(self, question: _OpenQuestion, span_id: str, *, raised: bool) -> bool:
        """Return whether the question has its answer now."""
        method = method_of(span_id)
        if raised or method not in CALL_METHODS:  # a model call is kept until its answer ends, which may be later
            self._open.pop(span_id, None)
            question.spans.discard(span_id)
        if method not in _WRITING:
            return False
        question.is_written = True
        if question.response is None:
            return False
        self._forget(question)
        return not _failed(question.response)

    def _forget(self, question: _OpenQuestion) -> None:
        for span_id in question.spans:
            self._open.pop(span_id, None)
        if question in self._streams:
            self._streams.remove(question)


def track_answers() -> None:
    """Dispatch a `SemGradAnswerEvent` for every answer from now on; further calls change nothing."""
    install()
    if not any(isinstance(listener, AnswerTracker) for listener in WATCHER.listeners):
        WATCHER.listeners.append(AnswerTracker())


def _dispatch(question: str | None, reply: Reply, calls: Sequence[LlmCall]) -> None:
    get_dispatcher().event(SemGradAnswerEvent.of(question, reply, calls))


def _question_text(arguments: dict[str, Any]) -> str | None:
    """Return the question in the arguments of an engine's method."""
    question = arguments.get("str_or_query_bundle", arguments.get("message"))
    if isinstance(question, QueryBundle):
        return question.query_str
    return question if isinstance(question, str) else None


def _failed(response: object) -> bool:
    return isinstance(response, StreamingAgentChatResponse) and response.exception is not None


def _response_text(response: object) -> str:
    if isinstance(response, PydanticResponse):
        return "" if response.response is None else response.response.model_dump_json()
    if isinstance(response, Response | AgentChatResponse | StreamingAgentChatResponse):
        return response.response or ""
    return str(response)


def _wrote_stream(call: LlmCall, question: _OpenQuestion) -> bool:
    """Return whether a call wrote the stream of a question.

    LlamaIndex begins such a call outside the span of the query, so question and passages are looked for in its prompt.
    """
    passages = passages_of(getattr(question.response, "source_nodes", None) or ())
    return bool(question.text) and prompt_holds(call.prompt, (question.text or "", *(p.text for p in passages)))


class SemGradEventHandler(BaseEventHandler):
    """Judges every answer of the query engines, chat engines and LLMs in this process, and logs a record of each.

    The policy's decision is logged, not carried out. A bare LLM's text beside a request for tools is no answer: it is
    judged as well, and its record says so. Errors while judging are logged and never reach the engine.

    Example:
        >>> from llama_index.core.instrumentation import get_dispatcher
        >>> get_dispatcher().add_event_handler(SemGradEventHandler(policy="policy.yaml"))  # doctest: +SKIP
    """

    _guard: Guard = PrivateAttr()
    _weights: object | None = PrivateAttr(default=None)
    _on_outcome: Callable[[Outcome], None] | None = PrivateAttr(default=None)
    _background: BackgroundJudge | None = PrivateAttr(default=None)

    def __init__(
        self,
        llm: LLM | None = None,
        *,
        accept: AcceptOption | None = None,
        policy: PolicySource | None = None,
        guard: Guard | None = None,
        background: bool = False,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> None:
        """Take the options of `SemGradGuard`.

        Args:
            llm: the LLM, when it is a local model: its own weights score its answers.
            accept: in place of a policy: the record counts answers with less confidence, or without one, as held
                back.
            policy: a policy file or its content. With neither, the record is of the confidence alone.
            guard: a ready guard, in place of `policy`.
            background: judge in a thread of its own, so that no answer waits for its score.
            on_outcome: called with every judgement, in the thread that made it.
        """
        super().__init__()
        chosen = SemGradGuard(llm, accept=accept, policy=policy, guard=guard)
        self._guard, self._weights, self._on_outcome = chosen.guard, chosen.weights, on_outcome
        self._background = BackgroundJudge() if background else None
        track_answers()

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradEventHandler"

    @property
    def guard(self) -> Guard:
        """The guard that judges."""
        return self._guard

    @override
    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Judge the answer of a `SemGradAnswerEvent`, and ignore other events."""
        if not isinstance(event, SemGradAnswerEvent):
            return
        try:
            context = EngineContext(event.question or "", weights=self._weights)
            beside_tools = event.reply.native is None and all(call.asked_for_tools for call in event.calls)
            if beside_tools and not event.answer.strip():
                return
            candidate = engine_candidate(event.reply, event.calls, context)
            if self._background is None:
                self._judge(candidate, beside_tools=beside_tools)
            else:
                self._background.put(partial(self._judge, candidate, beside_tools=beside_tools))
        except Exception as error:  # noqa: BLE001 - the dispatcher would swallow it unseen
            _log.warning("an answer could not be observed: %s", in_log(error))

    def flush(self) -> None:
        """Wait until every answer so far is judged."""
        if self._background is not None:
            self._background.flush()

    def close(self) -> None:
        """Wait until every answer so far is judged; the background thread ends then."""
        self.flush()

    def _judge(self, candidate: Candidate, *, beside_tools: bool) -> None:
        outcome = observe(self._guard, candidate, beside_tools=beside_tools)
        if self._on_outcome is not None:
            self._on_outcome(outcome)
