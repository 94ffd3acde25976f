"""LlamaIndex values <-> values of the flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_index.core.prompts.default_prompts import DEFAULT_TEXT_QA_PROMPT
from llama_index.core.schema import MetadataMode
from llama_index_instrumentation.dispatcher import active_instrument_tags

from semgrad_guard.flow import Message, Passage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import ChatMessage
    from llama_index.core.schema import NodeWithScore

    from semgrad_guard.flow import Prompt


class IndexEmbedder:
    """An embedding model of LlamaIndex as the guard's `Embedder`; its name is its class and model."""

    def __init__(self, embed_model: BaseEmbedding) -> None:
        """Take the embedding model, such as that of an index."""
        self._embed_model = embed_model

    @property
    def name(self) -> str:
        """Class and model; a profile fits one."""
        return f"{type(self._embed_model).__name__} {self._embed_model.model_name}"

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector a text."""
        return self._embed_model.get_text_embedding_batch(list(texts))


METADATA_KEY = "semgrad"
"""Where a guarded response says how sure the guard is: `response.metadata["semgrad"]`."""

SOURCE_KEYS = ("source", "file_path", "file_name", "url", "title")
"""Keys of a node's metadata that say where its text came from, best first."""


def flow_messages(messages: Iterable[ChatMessage]) -> tuple[Message, ...]:
    """Return chat messages without anything but role and text."""
    return tuple(Message(str(message.role.value), message.content or "") for message in messages)


def passage_of(found: NodeWithScore) -> Passage:
    """Return a retrieved node as the text that the model reads of it."""
    node = found.node
    source = next((str(node.metadata[key]) for key in SOURCE_KEYS if node.metadata.get(key)), None)
    return Passage(
        text=node.get_content(metadata_mode=MetadataMode.LLM),
        source=source or node.ref_doc_id or node.node_id,
        score=found.score,
    )


def passages_of(nodes: Iterable[NodeWithScore]) -> tuple[Passage, ...]:
    """Return retrieved nodes as passages, in order."""
    return tuple(passage_of(node) for node in nodes)


def rebuilt_prompt(question: str, passages: Sequence[str]) -> str:
    """Return the prompt that LlamaIndex' default question-answering template makes; for a prompt nobody saw."""
    if not passages:
        return question
    return str(DEFAULT_TEXT_QA_PROMPT.format(context_str="\n\n".join(passages), query_str=question))


def prompt_holds(prompt: Prompt, texts: Iterable[str]) -> bool:
    """Return whether each of these texts is in a prompt."""
    whole = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
    return all(text in whole for text in texts)


def request_tags() -> frozenset[str]:
    """Return the tags of the present request: the list `tags` of LlamaIndex' own `instrument_tags`."""
    tags = active_instrument_tags.get().get("tags")
    return frozenset(str(tag) for tag in tags) if isinstance(tags, list | tuple | set | frozenset) else frozenset()
