"""Converts LangChain's messages, documents and model results into ours and back, and finds questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    convert_to_messages,
)
from langchain_core.outputs import ChatGeneration
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel

from semgrad_guard.flow import Message, Passage
from semgrad_guard.wire import WireError, score_from_fields

if TYPE_CHECKING:
    from langchain_core.outputs import Generation, LLMResult

    from semgrad_guard.flow import Prompt, Score

QUESTION_KEYS = ("question", "input", "query")
"""Keys of a chain's input under which its question is looked for, in this order."""
SOURCE_KEYS = ("source", "title", "url", "id")
"""Keys of a document's metadata that say where it came from."""
SCORE_KEY = "semgrad_score"
"""Key of a message's `response_metadata` under which a single-pass model puts its score."""
SCORE_KEYS = ("relevance_score", "score")
MAX_DEPTH = 2
"""Levels of a value's fields in which documents are looked for."""

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_RUN_PREFIXES = ("lc_run--", "run--", "run-")


# --- messages ---------------------------------------------------------------------------------------------------------


def to_prompt(prompt: str | Sequence[BaseMessage]) -> Prompt:
    """Return a prompt as the guard's; what is not text in a message is left out."""
    return prompt if isinstance(prompt, str) else tuple(to_message(message) for message in prompt)


def to_message(message: BaseMessage) -> Message:
    """Return one message as the guard's; calls of tools are part of the text, as a model's template shows them."""
    role = message.role if isinstance(message, ChatMessage) else _role(message)
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    text = text_of(message) or ""
    if calls:
        shown = [json.dumps({"name": c["name"], "arguments": c["args"]}, default=str) for c in calls]
        text = "\n".join([text, *shown]).strip()
    return Message(role, text)


def _role(message: BaseMessage) -> str:
    kind = message.type.removesuffix("MessageChunk").lower()
    return _ROLES.get(kind, kind)


def from_prompt(prompt: Prompt) -> str | list[BaseMessage]:
    """Return a prompt as LangChain's models read it; a role that LangChain does not know becomes a chat message."""
    if isinstance(prompt, str):
        return prompt
    known: dict[str, type[BaseMessage]] = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}
    return [
        known[m.role](content=m.content) if m.role in known else ChatMessage(role=m.role, content=m.content)
        for m in prompt
    ]


def run_id_of(message: BaseMessage | None) -> UUID | None:
    """Return the model call that LangChain names in a message's id; `None` for ids given by a provider."""
    name = (message.id or "") if message is not None else ""
    for prefix in _RUN_PREFIXES:
        if name.startswith(prefix):
            try:
                return UUID(name.removeprefix(prefix)[:36])
            except ValueError:
                return None
    return None


# --- documents --------------------------------------------------------------------------------------------------------


def to_passage(document: Document) -> Passage:
    """Return a retrieved document as the guard's passage."""
    metadata = document.metadata
    source = next((str(metadata[key]) for key in SOURCE_KEYS if metadata.get(key) is not None), None)
    scores = [metadata[key] for key in SCORE_KEYS if isinstance(metadata.get(key), int | float)]
    return Passage(document.page_content, source or document.id, float(scores[0]) if scores else None)


def to_document(passage: Passage) -> Document:
    """Return a passage as LangChain's document."""
    metadata = {"source": passage.source} if passage.source else {}
    return Document(page_content=passage.text, metadata=metadata)


def documents_in(value: object, depth: int = MAX_DEPTH) -> list[Document]:
    """Return the documents in a value, in order: in a list, under a key of a mapping, in a field of a graph's state.

    A list counts only if its first entry is a document, or a pair of one and its score, and messages are left out: this
    is called for everything that the steps of a chain give to each other.
    """
    if isinstance(value, Document):
        return [value]
    if isinstance(value, list | tuple):
        entries = [_without_score(part) for part in value] if value and _is_document(value[0]) else []
        return [part for part in entries if isinstance(part, Document)]
    parts = fields_of(value).values() if depth else ()
    return [document for part in parts for document in documents_in(part, depth - 1)]


def _is_document(entry: object) -> bool:
    return isinstance(_without_score(entry), Document)


def _without_score(entry: object) -> object:
    """Return the document of a pair of one and its score, as `similarity_search_with_score` gives them."""
    return entry[0] if isinstance(entry, tuple) and entry else entry


def fields_of(value: object) -> Mapping[str, object]:
    """Return the fields of a graph's state, however it is typed; nothing for a message or another object."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseMessage | Document):
        return {}
    if isinstance(value, BaseModel):
        return {name: getattr(value, name, None) for name in type(value).model_fields}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    return {}


# --- results and questions --------------------------------------------------------------------------------------------


def result_text(result: LLMResult) -> tuple[str, bool]:
    """Return what a model call wrote, and whether it asked for tools; the calls are then part of the text."""
    message = result_message(result)
    if message is not None:
        wants_tools = asks_for_tools(message)
        return to_message(message).content if wants_tools else text_of(message) or "", wants_tools
    first = _first_of(result)
    return first.text if first is not None else "", False


def result_message(result: LLMResult) -> BaseMessage | None:
    """Return the message of a model call; `None` from a model that writes plain text."""
    first = _first_of(result)
    return first.message if isinstance(first, ChatGeneration) else None


def _first_of(result: LLMResult) -> Generation | None:
    return next((g for candidates in result.generations for g in candidates), None)


def result_score(result: LLMResult) -> Score | None:
    """Return the score that a single-pass model took while it wrote; `None` from any other model."""
    message = result_message(result)
    score = message.response_metadata.get(SCORE_KEY) if message is not None else None
    try:
        return score_from_fields(score) if score else None
    except WireError:  # another model's metadata under our key: it is scored from outside
        return None


def asks_for_tools(message: object) -> bool:
    """Tell whether a message is a request to run tools rather than an answer.

    A request that cannot be read (`invalid_tool_calls`) runs no tool, so the message that holds it is an answer.
    """
    return isinstance(message, AIMessage) and bool(message.tool_calls)


def text_of(value: object) -> str | None:
    """Return the text of a string or a message; `None` for anything else.

    A message without text whose request for a tool cannot be read says what that request says.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, BaseMessage):
        return None
    text = str(value.text)
    if text.strip() or not isinstance(value, AIMessage):
        return text
    return "\n".join(str(call["args"]) for call in value.invalid_tool_calls if call["args"]) or text


def question_in(inputs: object, key: str | None = None) -> str | None:
    """Return the question in a chain's input, where there is one.

    Args:
        inputs: a text, a mapping or a graph's state with one of `QUESTION_KEYS` or `messages`, or messages.
        key: key of the mapping, when it is another one.
    """
    if isinstance(inputs, str):
        return inputs.strip() or None
    given = {} if isinstance(inputs, PromptValue) else fields_of(inputs)
    if given:
        keys = (key,) if key else (*QUESTION_KEYS, "messages")
        questions = (question_in(given[k]) for k in keys if k in given and not isinstance(given[k], Mapping))
        return next(filter(None, questions), None)
    return _last_human(inputs)


def _last_human(inputs: object) -> str | None:
    if isinstance(inputs, PromptValue):
        inputs = inputs.to_messages()
    if isinstance(inputs, BaseMessage):
        inputs = [inputs]
    if not isinstance(inputs, list | tuple) or not inputs or not isinstance(inputs[-1], BaseMessage | tuple | dict):
        return None
    try:
        messages = convert_to_messages(inputs)
    except Exception:  # noqa: BLE001 - a list of something else; this runs inside every chain and must never raise
        return None
    return next((str(m.text) for m in reversed(messages) if isinstance(m, HumanMessage)), None)
