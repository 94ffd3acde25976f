"""Finds the answers in a chain's value, and puts texts and findings in their places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import BaseModel
from typing_extensions import override

from langchain_semgrad.convert import asks_for_tools, text_of
from semgrad_guard.adapter_kit import shown_decision, turn_start

if TYPE_CHECKING:
    from semgrad_guard.adapter_kit import Place
    from semgrad_guard.flow import Attempt, Decision, Json, Outcome, ReviewId, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedAnswer:
    """Everything about one guarded answer: what `SemGradGuard(output="result")` gives."""

    text: str
    """What the user may see: the answer, or the policy's message in its place."""
    value: Any
    """The chain's value with that text in it: what `output="same"` gives."""
    outcome: Outcome

    @property
    def llm_run_id(self) -> str | None:
        """Run of the model call that wrote the answer."""
        return text_or_none(self.outcome.exchange.metadata.get("llm_run_id"))

    @property
    def llm_run_name(self) -> str | None:
        """Name of that run: the model's class, or what `with_config(run_name=...)` says."""
        return text_or_none(self.outcome.exchange.metadata.get("llm_run_name"))

    @property
    def status(self) -> Status:
        """What kind of text it is."""
        return self.outcome.status

    @property
    def confidence(self) -> float | None:
        """Calibrated P(answer is correct), in [0, 1]; `None` when nothing calibrated it."""
        return self.outcome.confidence

    @property
    def decision(self) -> Decision:
        """The last decision; its words do not repeat a withheld answer."""
        return shown_decision(self.outcome)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts, oldest first."""
        return self.outcome.attempts

    @property
    def withheld(self) -> bool:
        """True when the text is not a model's answer."""
        return self.outcome.withheld

    @property
    def review_id(self) -> ReviewId | None:
        """The review item, when the answer was handed to a person."""
        return self.outcome.review_id

    @override
    def __str__(self) -> str:
        return self.text


def text_or_none(value: object) -> str | None:
    """Return a text as it is, and `None` for anything else."""
    return value if isinstance(value, str) else None


ANSWER_KEYS = ("answer", "output", "result", "response")
"""Keys under which an answer is looked for in a mapping or a pydantic object, in this order."""
METADATA_KEY = "semgrad"
"""Where the guard's findings are put: in a message's `response_metadata`, or beside the answer in a mapping."""
HARMLESS_METADATA = frozenset(
    {"model_name", "model_provider", "model", "finish_reason", "created", "service_tier", METADATA_KEY}
)
"""What stays of a withheld message's `response_metadata`: anything else (log-probabilities, …) may hold its words."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One answer in a value."""

    path: tuple[str | int, ...]
    """Keys that lead to it; empty where the value itself is the answer."""
    text: str
    message: BaseMessage | None = None

    @property
    def is_field(self) -> bool:
        """Whether it is the text of a field, which programs read, rather than a message or the whole value."""
        return self.message is None and bool(self.path)

    @property
    def text_path(self) -> Place:
        """Keys that lead to the text alone: what else a message holds is not part of it."""
        return self.path if self.message is None else (*self.path, "content")

    @property
    def name(self) -> str:
        """Name of the answer among several."""
        return ".".join(map(str, self.path)) or "answer"


def find_answers(value: Any, wrote: Callable[[str], bool], key: str | None = None) -> tuple[Slot, ...]:
    """Return the answers in a value; nothing where it holds no text of its own, as a parsed object may.

    In a mapping that is the text under `key`, else under the first of `ANSWER_KEYS`, else the last message under
    `messages`, else every message, and every text that a model of this chain wrote.

    Args:
        value: what the chain gave.
        wrote: tells whether a model of this chain wrote a text.
        key: the answer's key in a mapping or attribute of a pydantic object.
    """
    if isinstance(value, Mapping):
        return _in_mapping(value, wrote, key)
    if isinstance(value, BaseModel) and not isinstance(value, BaseMessage):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return _under_keys(fields, (key,) if key else ANSWER_KEYS)
    if isinstance(value, list | tuple):
        return tuple(_slot((len(value) - 1,), value[-1])) if value and isinstance(value[-1], AIMessage) else ()
    return tuple(_slot((), value))


def _in_mapping(value: Mapping[Any, Any], wrote: Callable[[str], bool], key: str | None) -> tuple[Slot, ...]:
    if slots := _under_keys(value, (key,) if key else ANSWER_KEYS):
        return slots
    messages = value.get("messages")
    if isinstance(messages, list | tuple) and messages and isinstance(messages[-1], AIMessage):
        return tuple(_slot(("messages", len(messages) - 1), messages[-1]))
    parts = [slot for name, part in value.items() for slot in _slot((name,), part)]
    return tuple(slot for slot in parts if isinstance(slot.message, AIMessage) or wrote(slot.text))


def _under_keys(value: Mapping[Any, Any], keys: Sequence[str]) -> tuple[Slot, ...]:
    return next((tuple(slots) for k in keys if k in value and (slots := _slot((k,), value[k]))), ())


def _slot(path: tuple[str | int, ...], part: object) -> list[Slot]:
    text = None if asks_for_tools(part) else text_of(part)
    return [] if text is None else [Slot(path, text, part if isinstance(part, BaseMessage) else None)]


def waits_for_tools(value: Any, key: str | None = None) -> bool:
    """Tell whether a value is no answer yet, because its message, or its last one, asks for tools.

    Args:
        value: what the chain gave.
        key: the answer's key in a mapping.
    """
    if isinstance(value, Mapping):
        named = [value[k] for k in ((key,) if key else ANSWER_KEYS) if k in value]
        value = named[0] if named else value.get("messages")
    if isinstance(value, list | tuple) and value:
        value = value[-1]
    return asks_for_tools(value)


def texts_beside_tools(value: Any, question: str | None, key: str | None = None) -> tuple[Slot, ...]:
    """Return the texts that stand beside requests for tools, in a message or in those since the question.

    A message that a guard has treated already is left out.

    Args:
        value: what the chain gave.
        question: the question, which tells where its messages begin.
        key: the answer's key in a mapping.
    """
    if isinstance(value, Mapping):
        names = [name for name in ((key,) if key else ANSWER_KEYS) if name in value]
        parts: list[tuple[Place, Any]] = [((name,), value[name]) for name in (*names[:1], "messages") if name in value]
    else:
        parts = [((), value)]
    found = [slot for path, part in parts for slot in _beside_tools(path, part, question)]
    return tuple({slot.path: slot for slot in found}.values())


def _beside_tools(path: Place, part: Any, question: str | None) -> list[Slot]:
    if isinstance(part, list | tuple):
        first = messages_start(part, question) + 1
        return [slot for i, one in enumerate(part) if i >= first for slot in _beside_tools((*path, i), one, question)]
    if not asks_for_tools(part) or "beside_tool_calls" in part.response_metadata.get(METADATA_KEY, {}):
        return []
    text = text_of(part) or ""
    return [Slot(path, text, part)] if text.strip() else []


def messages_start(messages: Sequence[Any], question: str | None) -> int:
    """Return the index of the message that asks the question; -1 where there is none."""
    return turn_start([(isinstance(m, HumanMessage), text_of(m) or "") for m in messages], question)


def with_answer(value: Any, slot: Slot, text: str, findings: dict[str, Json], name: str | None = None) -> Any:
    """Return a value of the same type with a text in the answer's place and the guard's findings beside it.

    Args:
        value: what the chain gave; it is not changed.
        slot: the answer in it.
        text: what the caller gets in its place.
        findings: the guard's findings.
        name: the answer's name, when the value holds several.
    """
    if isinstance(value, Mapping):
        changed = with_message(value, slot, text, findings)
        changed[METADATA_KEY] = {**(value.get(METADATA_KEY) or {}), name: findings} if name else findings
        return changed
    return with_message(value, slot, text, findings)


def with_message(value: Any, slot: Slot, text: str, findings: dict[str, Json]) -> Any:
    """Same as `with_answer`, but a mapping itself gets no findings: only the message does, where the slot is one."""
    if not slot.path:
        return _part_with(value, slot.text, text, findings)
    first, rest = slot.path[0], Slot(slot.path[1:], slot.text, slot.message)
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value) if isinstance(value, dict) else dict(value)
        changed[first] = with_message(value[first], rest, text, findings)
        return changed
    if isinstance(value, BaseModel):
        return value.model_copy(update={str(first): with_message(getattr(value, str(first)), rest, text, findings)})
    parts = [with_message(part, rest, text, findings) if i == first else part for i, part in enumerate(value)]
    return parts if isinstance(value, list) else tuple(parts)


def _part_with(part: Any, before: str, text: str, findings: dict[str, Json]) -> Any:
    if not isinstance(part, BaseMessage):
        return part if text == before else text
    if text == before:
        return part.model_copy(update={"response_metadata": {**part.response_metadata, METADATA_KEY: findings}})
    # Requests for tools stay beside a text that is left out; what is no text and no request may repeat the answer.
    changed = blanked(part, text, findings)
    return changed if asks_for_tools(part) else changed.model_copy(update=_no_calls(part))


def blanked(message: BaseMessage, text: str, findings: dict[str, Json] | None = None) -> BaseMessage:
    """Return a message with another text and nothing that says what the old one was."""
    kept = {key: value for key, value in message.response_metadata.items() if key in HARMLESS_METADATA}
    metadata = kept if findings is None else {**kept, METADATA_KEY: findings}
    calls = _no_calls(message)
    if asks_for_tools(message):
        calls.pop("tool_calls", None)
    return message.model_copy(update={"content": text, "additional_kwargs": {}, "response_metadata": metadata, **calls})


def _no_calls(message: BaseMessage) -> dict[str, Any]:
    names = ("tool_calls", "invalid_tool_calls", "tool_call_chunks")
    return {name: [] for name in names if name in type(message).model_fields}
