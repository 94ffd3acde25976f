"""Watches the model calls and spans of LlamaIndex, by handlers on its root dispatcher."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict, deque
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers.base import BaseEventHandler
from llama_index_instrumentation.span_handlers import NullSpanHandler
from typing_extensions import override

from llama_index_semgrad.convert import LlmCall, call_of
from semgrad_guard.adapter_kit import stated_here
from semgrad_guard.errors import in_log

if TYPE_CHECKING:
    import inspect
    from collections.abc import Generator

    from llama_index_instrumentation.base import BaseEvent

    from semgrad_guard.adapter_kit import Stated

_log = logging.getLogger("semgrad_guard")

CALL_METHODS = frozenset(
    prefix + name for prefix in ("", "a") for name in ("chat", "complete", "stream_chat", "stream_complete")
)
"""Methods of an LLM that write an answer to a prompt."""

MAX_OPEN_CALLS = 10_000
"""The most unfinished calls that are remembered: the call of a stream that is never read to its end stays open."""
MAX_RECENT_CALLS = 256
MAX_LAST_CALLS = 4
_MAX_SEEN = 64
_UUID_LENGTH = 37  # with its dash


@dataclass(slots=True)
class _Capture:
    """One block of `capturing`."""

    calls: list[LlmCall] = field(default_factory=list[LlmCall])
    outer: _Capture | None = None


@dataclass(frozen=True, slots=True)
class _OpenCall:
    """A model call that has not ended."""

    llm: object | None
    is_nested: bool
    """Whether it is made inside another call."""
    stated: Stated
    """What `answering` blocks around its begin state; a stream may end outside of them."""


_capture: ContextVar[_Capture | None] = ContextVar("semgrad_capture", default=None)
_last: ContextVar[tuple[LlmCall, ...]] = ContextVar("semgrad_last_calls", default=())


class Listener(Protocol):
    """Is called by the watcher, in the thread of the LlamaIndex object."""

    def span_entered(self, span_id: str, parent_id: str | None, instance: object, arguments: dict[str, Any]) -> None:
        """A method of a LlamaIndex object begins."""
        ...

    def span_left(self, span_id: str, result: object, *, raised: bool = False) -> None:
        """The method ends; `result` is `None` when it raised."""
        ...

    def call_ended(self, span_id: str | None, call: LlmCall) -> None:
        """A model has written an answer."""
        ...


@contextmanager
def capturing(into: list[LlmCall] | None = None) -> Generator[list[LlmCall], None, None]:
    """Collect the model calls made in this block; a block inside another reports to both.

    Args:
        into: a list of an earlier block to add to, as for a stream that is read after the call that returned it.
    """
    install()
    capture = _Capture([] if into is None else into, outer=_capture.get())
    token = _capture.set(capture)
    try:
        yield capture.calls
    finally:
        _capture.reset(token)


def last_calls() -> tuple[LlmCall, ...]:
    """Return the latest calls of this thread or task, oldest first; needs `WATCHER.remember_last`."""
    return _last.get()


def method_of(span_id: str | None) -> str:
    """Return the method that a span belongs to; spans are named `Class.method-uuid`."""
    return span_id[:-_UUID_LENGTH].rpartition(".")[2] if span_id else ""


class Watcher:
    """What the handlers remember; there is one, as there is one root dispatcher."""

    def __init__(self) -> None:
        """Start without a call."""
        self.remember_last = False
        self.remember_recent = False
        self.listeners: list[Listener] = []
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenCall] = OrderedDict()
        self._recent: deque[LlmCall] = deque(maxlen=MAX_RECENT_CALLS)
        self._seen: deque[weakref.ref[Any]] = deque(maxlen=_MAX_SEEN)

    def recent(self) -> list[LlmCall]:
        """Return the latest calls of all threads, oldest first."""
        with self._lock:
            return list(self._recent)

    def span_entered(self, span_id: str, parent_id: str | None, instance: object) -> None:
        """Remember which LLM a call belongs to, and whether it is made inside another call."""
        if not isinstance(instance, BaseLLM) or method_of(span_id) not in CALL_METHODS:
            return
        with self._lock:
            outer = self._open.get(parent_id or "")
            # `OpenAILike.chat` calls `OpenAI.chat`, and only the inner one reports an end: both are one call
            is_one = outer is not None and outer.llm is instance and method_of(parent_id) == method_of(span_id)
            is_nested = outer is not None and (outer.is_nested or not is_one)
            self._open[span_id] = _OpenCall(instance, is_nested, stated_here())
            if len(self._open) > MAX_OPEN_CALLS:
                self._open.popitem(last=False)

    def forget(self, span_id: str | None) -> None:
        """Forget a call that ended without an answer."""
        if span_id is not None:
            with self._lock:
                self._open.pop(span_id, None)

    def call_ended(self, event: LLMChatEndEvent | LLMCompletionEndEvent) -> None:
        """Pass a finished call on to the blocks that capture it, and to the listeners."""
        opened = self._close(event.span_id)
        if opened.is_nested or self._was_reported(event.response):
            return
        call = call_of(event, opened.llm)
        if call is None:
            return
        call = replace(call, stated=opened.stated)
        innermost = capture = _capture.get()
        while capture is not None:
            capture.calls.append(call)
            capture = capture.outer
        if self.remember_last:
            _last.set((*_last.get(), call)[-MAX_LAST_CALLS:])
        if self.remember_recent:
            with self._lock:
                self._recent.append(call)
        for listener in self.listeners if innermost is None else ():  # a guard records the calls that it captures
            listener.call_ended(event.span_id, call)

    def _close(self, span_id: str | None) -> _OpenCall:
        with self._lock:
            return self._open.pop(span_id or "", None) or _OpenCall(None, is_nested=False, stated=stated_here())

    def _was_reported(self, response: object) -> bool:
        """Return whether this very response was reported before: an async method may return that of its sync twin."""
        if response is None:
            return False
        with self._lock:
            if any(ref() is response for ref in self._seen):
                return True
            self._seen.append(weakref.ref(response))
            return False


WATCHER = Watcher()


class _Spans(NullSpanHandler):
    """Reports the begin and end of spans to the watcher."""

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradSpans"

    @override
    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        with _logging_errors():
            WATCHER.span_entered(id_, parent_id, instance)
            for listener in WATCHER.listeners:
                listener.span_entered(id_, parent_id, instance, bound_args.arguments)

    @override
    def span_exit(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> None:
        with _logging_errors():
            for listener in WATCHER.listeners:
                listener.span_left(id_, result)

    @override
    def span_drop(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        with _logging_errors():
            WATCHER.forget(id_)
            for listener in WATCHER.listeners:
                listener.span_left(id_, None, raised=True)


class _Events(BaseEventHandler):
    """Reports the end of model calls to the watcher."""

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradEvents"

    @override
    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        with _logging_errors():
            if isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
                WATCHER.call_ended(event)
            elif isinstance(event, ExceptionEvent):
                WATCHER.forget(event.span_id)


_installing = threading.Lock()


def install() -> None:
    """Put the handlers on the root dispatcher; further calls change nothing."""
    root = get_dispatcher()
    with _installing:
        if not any(isinstance(handler, _Events) for handler in root.event_handlers):
            root.add_event_handler(_Events())
        if not any(isinstance(handler, _Spans) for handler in root.span_handlers):
            root.add_span_handler(_Spans())


@contextmanager
def _logging_errors() -> Generator[None, None, None]:
    """Log an error of the adapter itself, and go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the dispatcher would swallow it unseen
        _log.warning("a model call could not be watched: %s", in_log(error))
