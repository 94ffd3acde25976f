"""Takes copies of a withheld answer out of LlamaIndex' values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.schema import BaseNode, NodeWithScore, RelatedNodeInfo
from pydantic import BaseModel

from llama_index_semgrad.convert import asks_for_tools
from semgrad_guard.adapter_kit import LEFT_OUT, UNKNOWN, Cleaner, withheld_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.adapter_kit import Place
    from semgrad_guard.flow import Outcome

_OF_THE_MODEL = frozenset({MessageRole.ASSISTANT, MessageRole.MODEL, MessageRole.CHATBOT})


def cleaned_beside(
    outcome: Outcome, metadata: Mapping[str, Any] | None, nodes: Sequence[NodeWithScore]
) -> tuple[dict[str, Any], list[NodeWithScore], list[str]]:
    """Return a response's metadata and source nodes without copies of a withheld answer, and the places left out.

    Nodes keep their text: they were there before the answer.

    Args:
        outcome: how the question ended.
        metadata: the response's metadata: that of its nodes by their ids, and whatever the engine adds.
        nodes: the nodes that it was written from.
    """
    withheld, entries = withheld_by(outcome), dict(metadata or {})
    if withheld is None:
        return entries, list(nodes), []
    cleaner = Cleaner(withheld, _own_types)
    of_nodes = {node.node.node_id for node in nodes}
    for key, part in entries.items():
        at = ("metadata", key)
        is_node = key in of_nodes and isinstance(part, Mapping)
        entries[key] = cleaner.mapping(part, at, of_passage=True) if is_node else cleaner.clean(part, at)
    return entries, cleaner.clean(list(nodes), ("source_nodes",)), cleaner.left_out


def cleaned_turn(outcome: Outcome, written: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the messages that an engine wrote for a question, without copies of an answer that was not given."""
    withheld = withheld_by(outcome)
    return list(written) if withheld is None else Cleaner(withheld, _own_types).clean(list(written))


def without_text(message: ChatMessage) -> ChatMessage:
    """Return a message with its requests for tools alone."""
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    kept = {key: value for key, value in message.additional_kwargs.items() if key == "tool_calls"}
    return message.model_copy(update={"blocks": calls, "additional_kwargs": kept})


def _own_types(cleaner: Cleaner, value: Any, place: Place) -> Any:
    if isinstance(value, ChatMessage):
        return _message(cleaner, value, place)
    if isinstance(value, NodeWithScore):
        node = cleaner.clean(value.node, place)
        return value if node is value.node else value.model_copy(update={"node": node})
    if isinstance(value, BaseNode):
        changes = cleaner.fields({"relationships": value.relationships}, place)
        return _with_metadata(cleaner, value, place, changes)
    if isinstance(value, RelatedNodeInfo):
        return _with_metadata(cleaner, value, place, {})
    if isinstance(value, BaseModel) and type(value).__module__.partition(".")[0].startswith("llama_index"):
        changes = cleaner.fields({name: getattr(value, name) for name in type(value).model_fields}, place)
        return value.model_copy(update=changes) if changes else value
    return UNKNOWN


def _with_metadata(cleaner: Cleaner, value: Any, place: Place, changes: dict[str, Any]) -> Any:
    metadata = cleaner.mapping(value.metadata, (*place, "metadata"), of_passage=True)
    if metadata is not value.metadata:
        changes = {**changes, "metadata": metadata or {}}
    return value.model_copy(update=changes) if changes else value


def _message(cleaner: Cleaner, message: ChatMessage, place: Place) -> ChatMessage:
    """Return one of the model's messages without copies; those of others were there before."""
    if message.role not in _OF_THE_MODEL:
        return message
    text = message.content or ""
    others = [getattr(block, "content", None) for block in message.blocks]  # reasoning, for one
    if any(isinstance(one, str) and cleaner.withheld.holds(one) for one in (text, *others)):
        given = cleaner.text(text, (*place, "content"))
        cleaner.note((*place, "content"))
        if asks_for_tools(message):
            message = without_text(message)
        else:
            message = ChatMessage(role=message.role, content=LEFT_OUT if given == text else given)
    changes = cleaner.fields({"blocks": message.blocks, "additional_kwargs": message.additional_kwargs}, place)
    if "additional_kwargs" in changes:
        changes["additional_kwargs"] = changes["additional_kwargs"] or {}
    return message.model_copy(update=changes) if changes else message
