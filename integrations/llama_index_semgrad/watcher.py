"""Sees every model call and span of LlamaIndex, and says which calls belong to which answer."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers.base import BaseEventHandler
from llama_index_instrumentation.span_handlers import NullSpanHandler
from typing_extensions import override

from llama_index_semgrad.convert import flow_messages
from semgrad_guard.flow import Score

if TYPE_CHECKING:
    import inspect
    from collections.abc import Generator, Sequence

    from llama_index.core.llms import ChatMessage
    from llama_index_instrumentation.base import BaseEvent

    from semgrad_guard.flow import Prompt

CallEndEvent = LLMChatEndEvent | LLMCompletionEndEvent

SCORE_KEY = "semgrad_score"
"""Where `SemGradLLM` puts the score that it took while writing: a key of the response's `additional_kwargs`."""

_SPECIAL_TOKENS_AT_MOST = 16
"""Tokens that an answer may have beyond one a character: end-of-turn tokens and the like decode to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmCall:
    """What a language model read and wrote in one call."""

    prompt: Prompt
    """The messages or the text that the caller gave."""
    text: str
    llm: object | None = None
    """The LlamaIndex LLM, where its span was seen."""
    asked_for_tools: bool = False
    """Whether the model asked for tools instead of answering."""
    rendered: str | None = None
    """The text that a local model really read, where it is known."""
    raw: object | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def author(self) -> str | None:
        """Name of the model."""
        if self.llm is None:
            return None
        # A HuggingFaceLLM that was given a live model still reports the name of LlamaIndex' default one.
        weights = getattr(self.llm, "_model", None) if is_local(self.llm) else None
        name = weights.name_or_path if weights is not None else self.llm.metadata.model_name  # type: ignore[attr-defined] # a BaseLLM
        return str(name) if name and name != "unknown" else type(weights if weights is not None else self.llm).__name__

    @property
    def score(self) -> Score | None:
        """The score that was taken while the answer was written."""
        found = self.extra.get(SCORE_KEY)
        try:
            return Score.from_json(found) if isinstance(found, Mapping) else None
        except (TypeError, KeyError):
            return None

    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return the exact ids of prompt and answer; `None` when the response does not carry them."""
        if isinstance(self.raw, dict) and self.raw.get("prompt_ids") and self.raw.get("answer_ids"):
            return tuple(self.raw["prompt_ids"]), tuple(self.raw["answer_ids"])
        tokenizer = getattr(self.llm, "_tokenizer", None)
        tokens = _model_output(self.raw)
        if tokenizer is None or tokens is None:
            return None
        prompt = self.rendered if self.rendered is not None else self.prompt
        at = _answer_start(tokenizer, tokens, prompt, self.text)
        return None if at is None else (tuple(tokens[:at]), tuple(tokens[at:]))


def call_of(event: CallEndEvent, llm: object | None) -> LlmCall | None:
    """Return the call that an end event reports; `None` when the model gave no response."""
    if isinstance(event, LLMCompletionEndEvent):
        response = event.response
        rendered = event.prompt if is_local(llm) else None
        return LlmCall(
            prompt=event.prompt,
            text=response.text or "",
            llm=llm,
            rendered=rendered,
            raw=response.raw,
            extra=response.additional_kwargs,
        )
    if event.response is None:
        return None
    chat = event.response
    return LlmCall(
        prompt=flow_messages(event.messages),
        text=chat.message.content or "",
        llm=llm,
        asked_for_tools=_asks_for_tools(chat.message),
        rendered=_rendered(llm, event.messages),
        raw=chat.raw,
        extra={**chat.message.additional_kwargs, **chat.additional_kwargs},
    )


def is_local(llm: object) -> bool:
    """Return whether an LLM holds a transformers model and its tokenizer in this process."""
    return hasattr(type(llm), "local_model") or (
        getattr(llm, "_tokenizer", None) is not None and hasattr(getattr(llm, "_model", None), "generate")
    )


def weights_of(source: object) -> object | None:
    """Return the live model inside an LLM, a (model, tokenizer) pair or a loaded model; `None` when there is none.

    Two objects that share it score and write with the same weights.
    """
    if isinstance(source, tuple):
        return source[0] if source else None
    if is_local(source):
        ours = hasattr(type(source), "local_model")
        return weights_of(getattr(source, "local_model", None)) if ours else getattr(source, "_model", None)
    inner = getattr(source, "model", None)
    return inner if hasattr(inner, "generate") else (source if hasattr(source, "generate") else None)


def _asks_for_tools(message: ChatMessage) -> bool:
    """Return whether a model's message asks for tools; older integrations say so in `additional_kwargs` alone."""
    in_blocks = any(isinstance(block, ToolCallBlock) for block in message.blocks)
    return in_blocks or bool(message.additional_kwargs.get("tool_calls"))


def _rendered(llm: object, messages: Sequence[Any]) -> str | None:
    """Return the text into which a local chat model turned the messages."""
    render = getattr(llm, "messages_to_prompt", None)
    if render is None or getattr(llm, "_tokenizer", None) is None:
        return None
    return str(render(messages))


def _model_output(raw: object) -> list[int] | None:
    """Return the ids of prompt and answer together, as LlamaIndex' `HuggingFaceLLM` leaves them in `raw`."""
    output = raw.get("model_output") if isinstance(raw, dict) else None
    if output is None or not hasattr(output, "tolist"):
        return None
    rows = output.tolist()
    row = rows[0] if rows and isinstance(rows[0], list) else rows
    return row if row and all(isinstance(token, int) for token in row) else None


def _answer_start(tokenizer: Any, tokens: list[int], prompt: Prompt, text: str) -> int | None:
    """Return where the answer begins: behind the prompt's own ids, else where the rest decodes to the answer."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if ids and tokens[: len(ids)] == ids:
            return len(ids)
    # The model read more than the event says: a wrapper prompt that `complete(formatted=False)` puts around it.
    for length in range(1, min(len(tokens), len(text) + _SPECIAL_TOKENS_AT_MOST)):
        if tokenizer.decode(tokens[-length:], skip_special_tokens=True) == text and text:
            return len(tokens) - length
    return None


_log = logging.getLogger("semgrad_guard")

CALL_METHODS = frozenset(
    prefix + name for prefix in ("", "a") for name in ("chat", "complete", "stream_chat", "stream_complete")
)
"""Methods of an LLM that read a prompt and write an answer."""

MAX_OPEN_CALLS = 10_000
"""Calls under way that are kept in mind; a stream that nobody drains or closes never ends."""
MAX_RECENT_CALLS = 256
MAX_LAST_CALLS = 4
_MAX_SEEN = 64
_UUID_LENGTH = 37


@dataclass(slots=True)
class _Capture:
    calls: list[LlmCall] = field(default_factory=list[LlmCall])
    outer: _Capture | None = None


_capture: ContextVar[_Capture | None] = ContextVar("semgrad_capture", default=None)
_last: ContextVar[tuple[LlmCall, ...]] = ContextVar("semgrad_last_calls", default=())


class Listener(Protocol):
    """Gets what the watcher sees, in the thread where it happens."""

    def span_entered(self, span_id: str, parent_id: str | None, instance: object, arguments: dict[str, Any]) -> None:
        """A method of a LlamaIndex object begins."""
        ...

    def span_left(self, span_id: str, result: object, *, raised: bool = False) -> None:
        """It ends; `result` is `None` when it raised."""
        ...

    def call_ended(self, span_id: str | None, call: LlmCall) -> None:
        """A model wrote an answer."""
        ...


@contextmanager
def capturing(into: list[LlmCall] | None = None) -> Generator[list[LlmCall], None, None]:
    """Collect the model calls made in this block; a block inside another reports to both.

    Args:
        into: go on with a list that an earlier block began, as when a stream is drained after the call that made it.
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
    """Return the name of the method that a span is about; spans are named `Class.method-uuid`."""
    return span_id[:-_UUID_LENGTH].rpartition(".")[2] if span_id else ""


class Watcher:
    """The state behind the handlers; there is one, because there is one root dispatcher."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.remember_last = False
        self.remember_recent = False
        self.listeners: list[Listener] = []
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[object, bool]] = OrderedDict()
        self._recent: deque[LlmCall] = deque(maxlen=MAX_RECENT_CALLS)
        self._seen: deque[weakref.ref[Any]] = deque(maxlen=_MAX_SEEN)

    def recent(self) -> list[LlmCall]:
        """Return the latest calls of all threads, oldest first."""
        with self._lock:
            return list(self._recent)

    def span_entered(self, span_id: str, parent_id: str | None, instance: object) -> None:
        """Keep in mind which LLM a call belongs to, and whether it is made inside another call."""
        if not isinstance(instance, BaseLLM) or method_of(span_id) not in CALL_METHODS:
            return
        with self._lock:
            self._open[span_id] = (instance, parent_id in self._open)
            if len(self._open) > MAX_OPEN_CALLS:
                self._open.popitem(last=False)

    def forget(self, span_id: str | None) -> None:
        """Drop a call that ended without an answer."""
        if span_id is not None:
            with self._lock:
                self._open.pop(span_id, None)

    def call_ended(self, event: LLMChatEndEvent | LLMCompletionEndEvent) -> None:
        """Hand a finished call to whoever wants it."""
        llm, nested = self._close(event.span_id)
        if nested or self._was_seen(event.response):
            return
        call = call_of(event, llm)
        if call is None:
            return
        guarding = capture = _capture.get()
        while capture is not None:
            capture.calls.append(call)
            capture = capture.outer
        if self.remember_last:
            _last.set((*_last.get(), call)[-MAX_LAST_CALLS:])
        if self.remember_recent:
            with self._lock:
                self._recent.append(call)
        for listener in self.listeners if guarding is None else ():  # a guard records its own calls
            listener.call_ended(event.span_id, call)

    def _close(self, span_id: str | None) -> tuple[object | None, bool]:
        with self._lock:
            return self._open.pop(span_id or "", (None, False))

    def _was_seen(self, response: object) -> bool:
        """Return whether this very response was reported before: an async twin passes on what the sync method gave."""
        if response is None:
            return False
        with self._lock:
            if any(ref() is response for ref in self._seen):
                return True
            self._seen.append(weakref.ref(response))
            return False


WATCHER = Watcher()


class _Spans(NullSpanHandler):
    """Tells the watcher which spans begin and end."""

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
        with _logged():
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
        with _logged():
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
        with _logged():
            WATCHER.forget(id_)
            for listener in WATCHER.listeners:
                listener.span_left(id_, None, raised=True)


class _Events(BaseEventHandler):
    """Tells the watcher which model calls ended."""

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradEvents"

    @override
    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        with _logged():
            if isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
                WATCHER.call_ended(event)
            elif isinstance(event, ExceptionEvent):
                WATCHER.forget(event.span_id)


def install() -> None:
    """Put the handlers on the root dispatcher, once."""
    root = get_dispatcher()
    with _installing:
        if not any(isinstance(handler, _Events) for handler in root.event_handlers):
            root.add_event_handler(_Events())
        if not any(isinstance(handler, _Spans) for handler in root.span_handlers):
            root.add_span_handler(_Spans())


_installing = threading.Lock()


@contextmanager
def _logged() -> Generator[None, None, None]:
    """Log our own errors."""
    try:
        yield
    except Exception:  # noqa: BLE001 - the dispatcher would swallow it unseen
        _log.exception("a model call could not be watched")
