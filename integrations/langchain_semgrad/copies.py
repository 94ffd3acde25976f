"""Takes copies of a withheld answer out of LangChain's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, ToolMessage
from pydantic import BaseModel

from langchain_semgrad.convert import asks_for_tools
from langchain_semgrad.values import METADATA_KEY, blanked, messages_start
from semgrad_guard.adapter_kit import LEFT_OUT, UNKNOWN, Cleaner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from semgrad_guard.adapter_kit import Place, Withheld

HISTORY_KEYS = frozenset({"chat_history", "history"})
"""Keys under which chains carry the conversation before the question; it stays as it is."""
_CALLS = ("tool_calls", "invalid_tool_calls", "tool_call_chunks")
_BESIDE_CONTENT = ("additional_kwargs", "response_metadata", *_CALLS, "artifact")
"""Fields of messages that may repeat an answer."""


def without_copies(value: Any, withheld: Withheld | None, kept: Iterable[Place] = ()) -> tuple[Any, list[str]]:
    """Return a value without the texts that repeat a withheld answer, and the names of the places left out.

    Documents keep their text, and messages up to the one that asks the question stay as they are.

    Args:
        value: what the chain gave; it is not changed.
        withheld: what the caller must not get; with `None` the value itself is returned.
        kept: where the judged answers are: these are replaced, not searched.
    """
    if withheld is None:
        return value, []
    cleaner = Cleaner(withheld, _own_types, [*kept, (METADATA_KEY,)])
    return cleaner.clean(value), cleaner.left_out


def cleaned_messages(messages: Sequence[Any], cleaner: Cleaner, place: Place = ()) -> list[Any]:
    """Return messages without copies of a withheld answer: those after the question, or all where it is not there."""
    first = messages_start(messages, cleaner.withheld.question) + 1
    return [m if i < first else cleaner.clean(m, (*place, i)) for i, m in enumerate(messages)]


def cleaner_for(withheld: Withheld) -> Cleaner:
    """Return what cleans LangChain's values."""
    return Cleaner(withheld, _own_types)


def _own_types(cleaner: Cleaner, value: Any, place: Place) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(part, BaseMessage) for part in value):
        history = bool(place) and place[-1] in HISTORY_KEYS
        parts = list(value) if history else cleaned_messages(value, cleaner, place)
        changed = any(part is not before for part, before in zip(parts, value, strict=True))
        return (parts if isinstance(value, list) else tuple(parts)) if changed else value
    if isinstance(value, BaseMessage):
        return _message(cleaner, value, place)
    if isinstance(value, Document):
        metadata = cleaner.mapping(value.metadata, (*place, "metadata"), of_passage=True)
        return value if metadata is value.metadata else value.model_copy(update={"metadata": metadata or {}})
    if isinstance(value, BaseModel) and type(value).__module__.partition(".")[0].startswith("lang"):
        changes = cleaner.fields({name: getattr(value, name) for name in type(value).model_fields}, place)
        return value.model_copy(update=changes) if changes else value
    return UNKNOWN


def _message(cleaner: Cleaner, message: BaseMessage, place: Place) -> BaseMessage:
    """Return a message without copies; where its text goes, so does all that may say what it was."""
    by_tool = isinstance(message, ToolMessage)
    texts = [str(message.text), *_texts_in(message.content)]
    is_kept = cleaner.keeps((*place, "content"))
    if not is_kept and any(cleaner.withheld.holds(text, passage=by_tool) for text in texts):
        text = cleaner.text(texts[0], (*place, "content"), passage=by_tool)
        cleaner.note((*place, "content"))
        message = blanked(message, "" if asks_for_tools(message) else LEFT_OUT if text == texts[0] else text)
    changes: dict[str, Any] = {}
    for name in (name for name in _BESIDE_CONTENT if name in type(message).model_fields):
        before = getattr(message, name)
        after = cleaner.clean(before, (*place, name), passage=by_tool and name == "artifact")
        if name in _CALLS:
            empty: Any = {} if name == "tool_calls" else ""
            changed = [new for new, old in zip(after, before, strict=True) if new is not old]
            after = [{**call, "args": empty} if call["args"] is None else call for call in after] if changed else before
        if after is not before:
            changes[name] = {} if after is None and name != "artifact" else after
    return message.model_copy(update=changes) if changes else message


def _texts_in(content: Any) -> list[str]:
    """Return the texts of a message's blocks, with those of its reasoning."""
    if isinstance(content, str):
        return [content]
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return [text for part in parts for text in _texts_in(part)]
