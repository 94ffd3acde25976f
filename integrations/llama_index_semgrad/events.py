"""Only listening: an event for every finished answer, and a handler that judges each and changes none."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from queue import Full, Queue
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

from llama_index_semgrad.convert import passages_of
from llama_index_semgrad.exchanges import About, Judgeable, judgeable
from llama_index_semgrad.guard import SemGradGuard
from llama_index_semgrad.observing import observe
from llama_index_semgrad.responses import Reply, is_guarded
from llama_index_semgrad.watcher import CALL_METHODS, WATCHER, install, method_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from llama_index.core.llms import LLM

    from llama_index_semgrad.watcher import ModelCall
    from semgrad_guard.flow import Outcome
    from semgrad_guard.guard import Guard

MAX_SPANS = 10_000
"""Open spans that are kept in mind; those of a stream that nobody drains never close."""
MAX_STREAMS = 256
"""Streams kept in mind until somebody drains them."""

_ASKING = frozenset({"query", "aquery", "chat", "achat", "stream_chat", "astream_chat"})
_WRITING = frozenset({"write_response_to_history", "awrite_response_to_history"})
"""Methods that drain a chat engine's stream, in a thread or task of LlamaIndex' own."""
_STREAMING = (StreamingResponse, AsyncStreamingResponse, StreamingAgentChatResponse)


class SemGradAnswerEvent(BaseEvent):
    """An answer is finished: dispatched on the root dispatcher once a `SemGradEventHandler` was made."""

    question: str | None = None
    answer: str
    contexts: list[str] = Field(default_factory=list)
    """The passages that it was written from."""
    _reply: Reply = PrivateAttr()
    _calls: list[ModelCall] = PrivateAttr(default_factory=list)

    @classmethod
    def made(cls, question: str | None, reply: Reply, calls: Sequence[ModelCall]) -> SemGradAnswerEvent:
        """Return the event of an answer and the model calls behind it."""
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
    def calls(self) -> list[ModelCall]:
        """The model calls that were made for it, oldest first."""
        return self._calls


@dataclass(eq=False, slots=True)
class _Asked:
    """One question to an outermost engine."""

    root: str
    question: str | None
    calls: list[ModelCall] = field(default_factory=list["ModelCall"])
    stream: object | None = None
    """The streaming response that was returned and is being drained."""
    spans: set[str] = field(default_factory=set[str])
    """Spans inside it that are open, or whose model call has not ended."""
    is_written: bool = False
    """A chat engine's stream is drained; that may be so before the engine has returned it."""


class Answers:
    """Follows spans and model calls; a `watcher.Listener`."""

    def __init__(self) -> None:
        """Start with nothing open."""
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Asked] = OrderedDict()
        self._streams: deque[_Asked] = deque(maxlen=MAX_STREAMS)

    def span_entered(self, span_id: str, parent_id: str | None, instance: object, arguments: dict[str, Any]) -> None:
        """Begin a question, or note that a span belongs to one."""
        with self._lock:
            asked = self._open.get(parent_id or "")
            is_engine = isinstance(instance, BaseQueryEngine | BaseChatEngine)
            if asked is None and is_engine and method_of(span_id) in _ASKING:
                asked = _Asked(span_id, _question(arguments))
            if asked is not None:
                self._open[span_id] = asked
                asked.spans.add(span_id)
                if len(self._open) > MAX_SPANS:
                    self._open.popitem(last=False)

    def span_left(self, span_id: str, result: object, *, raised: bool = False) -> None:
        """End a question, or wait for its stream."""
        with self._lock:
            asked = self._open.get(span_id)
            if asked is None:
                return
            if asked.root == span_id:
                finished = self._root_left(asked, result)
            else:
                finished = self._part_left(asked, span_id, raised=raised)
        if finished:
            stream = asked.stream
            written = asked.calls[-1].text if asked.calls else ""
            _say(asked.question, Reply(stream, _text(stream) or written), asked.calls)

    def call_ended(self, span_id: str | None, call: ModelCall) -> None:
        """Add a model call to its question, or end the stream that it fed."""
        with self._lock:
            asked = self._open.pop(span_id or "", None)
            if asked is not None and (asked.stream is None or isinstance(asked.stream, StreamingAgentChatResponse)):
                asked.calls.append(call)
                return
            if asked is None:
                asked = next((a for a in reversed(self._streams) if _fed(a, call)), None)
            if asked is not None:
                self._finish(asked)
        if asked is None:
            _say(None, Reply(None, call.text), [call])
        else:
            _say(asked.question, Reply(asked.stream, call.text), [*asked.calls, call])

    def _root_left(self, asked: _Asked, result: object) -> bool:
        """Return whether the question has its answer; a stream must be drained first."""
        asked.stream = result
        if result is None or is_guarded(result) or not isinstance(result, _STREAMING) or asked.is_written:
            self._finish(asked)
            return result is not None and not is_guarded(result) and not _died(result)
        self._streams.append(asked)
        return False

    def _part_left(self, asked: _Asked, span_id: str, *, raised: bool) -> bool:
        """Return whether this was what the question's answer waited for."""
        method = method_of(span_id)
        if raised or method not in CALL_METHODS:  # a model call is kept until its answer ends, which may be later
            self._open.pop(span_id, None)
            asked.spans.discard(span_id)
        if method not in _WRITING:
            return False
        asked.is_written = True
        if asked.stream is None:
            return False
        self._finish(asked)
        return not _died(asked.stream)

    def _finish(self, asked: _Asked) -> None:
        """Forget a question."""
        for span_id in asked.spans:
            self._open.pop(span_id, None)
        if asked in self._streams:
            self._streams.remove(asked)


def follow() -> None:
    """Begin to dispatch `SemGradAnswerEvent`, once."""
    install()
    if not any(isinstance(listener, Answers) for listener in WATCHER.listeners):
        WATCHER.listeners.append(Answers())


def _say(question: str | None, reply: Reply, calls: Sequence[ModelCall]) -> None:
    get_dispatcher().event(SemGradAnswerEvent.made(question, reply, calls))


def _question(arguments: dict[str, Any]) -> str | None:
    asked = arguments.get("str_or_query_bundle", arguments.get("message"))
    return asked.query_str if isinstance(asked, QueryBundle) else (asked if isinstance(asked, str) else None)


def _died(result: object) -> bool:
    return isinstance(result, StreamingAgentChatResponse) and result.exception is not None


def _text(result: object) -> str:
    if isinstance(result, PydanticResponse):
        return result.response.model_dump_json() if result.response else ""
    if isinstance(result, Response | AgentChatResponse | StreamingAgentChatResponse):
        return result.response or ""
    return str(result)


def _fed(asked: _Asked, call: ModelCall) -> bool:
    """Return whether a call fed a stream, by content: LlamaIndex begins it outside the span of the query."""
    prompt = call.prompt if isinstance(call.prompt, str) else "\n".join(m.content for m in call.prompt)
    passages = passages_of(getattr(asked.stream, "source_nodes", None) or ())
    wanted = (asked.question or "", *(p.text for p in passages))
    return bool(asked.question) and all(text in prompt for text in wanted)


_log = logging.getLogger("semgrad_guard")

MAX_WAITING = 1_000
"""Answers that wait for the background worker; of more, the new ones are not judged, which is logged."""


class SemGradEventHandler(BaseEventHandler):
    """Judges every answer that a query engine, a chat engine or a bare LLM of this process gives, and logs the record.

    The policy's decision is logged, not carried out. Errors of the judging are logged and never reach the engine.

    Example:
        >>> from llama_index.core.instrumentation import get_dispatcher
        >>> get_dispatcher().add_event_handler(SemGradEventHandler(policy="policy.yaml"))  # doctest: +SKIP
    """

    _guard: Guard = PrivateAttr()
    _weights: object | None = PrivateAttr(default=None)
    _on_outcome: Callable[[Outcome], None] | None = PrivateAttr(default=None)
    _waiting: Queue[Judgeable | None] | None = PrivateAttr(default=None)

    def __init__(
        self,
        llm: LLM | None = None,
        *,
        policy: str | Path | Mapping[str, object] | None = None,
        guard: Guard | None = None,
        background: bool = False,
        on_outcome: Callable[[Outcome], None] | None = None,
    ) -> None:
        """Take the options of `SemGradGuard`.

        Args:
            llm: the LLM, when it is a local model: its own weights score its answers.
            policy: a policy file or its content.
            guard: a ready guard, in place of `policy`.
            background: judge in a thread of its own, so that no answer waits for its score.
            on_outcome: called with every judgement, in the thread that made it.
        """
        super().__init__()
        chosen = SemGradGuard(llm, policy=policy, guard=guard)
        self._guard, self._weights, self._on_outcome = chosen.guard, chosen.weights, on_outcome
        if background:
            self._waiting = Queue(MAX_WAITING)
            threading.Thread(target=self._work, name="semgrad-guard observer", daemon=True).start()
        follow()

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
        """Judge the answer of a `SemGradAnswerEvent`; other events pass by."""
        if not isinstance(event, SemGradAnswerEvent):
            return
        try:
            made = judgeable(event.reply, event.calls, About(event.question or "", weights=self._weights))
            self._judge(made) if self._waiting is None else self._waiting.put_nowait(made)
        except Full:
            _log.warning("%d answers wait to be judged: one more is not", MAX_WAITING)
        except Exception:  # noqa: BLE001 - the dispatcher would swallow it unseen
            _log.exception("an answer could not be observed")

    def flush(self) -> None:
        """Wait until every answer seen so far is judged."""
        if self._waiting is not None:
            self._waiting.join()

    def close(self) -> None:
        """Judge what waits, then end the background worker."""
        if self._waiting is not None:
            self._waiting.put(None)
            self._waiting.join()

    def _judge(self, made: Judgeable) -> None:
        outcome = observe(self._guard, made)
        if self._on_outcome is not None:
            self._on_outcome(outcome)

    def _work(self) -> None:
        waiting = self._waiting
        while waiting is not None:
            made = waiting.get()
            try:
                if made is None:
                    return
                self._judge(made)
            except Exception:  # noqa: BLE001 - the next answer may be judged
                _log.exception("an answer could not be observed")
            finally:
                waiting.task_done()
