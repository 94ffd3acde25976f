"""LlamaIndex objects as plain values: prompts, passages, model calls, the weights of local models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index.core.prompts.default_prompts import DEFAULT_TEXT_QA_PROMPT
from llama_index.core.schema import MetadataMode
from llama_index_instrumentation.dispatcher import active_instrument_tags

from semgrad_guard.adapter_kit import NOTHING_STATED, Stated
from semgrad_guard.flow import Message, Passage
from semgrad_guard.wire import WireError, score_from_fields, served_score

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import ChatMessage
    from llama_index.core.schema import NodeWithScore

    from semgrad_guard.flow import Prompt, Score


METADATA_KEY = "semgrad"
"""Key of the guard's findings in a response: `response.metadata["semgrad"]`."""
SCORE_KEY = "semgrad_score"
"""Key of the score that a `SemGradLLM` took while writing, in the response's `additional_kwargs`."""

SOURCE_KEYS = ("source", "file_path", "file_name", "url", "title")
"""Keys of a node's metadata that may tell where its text comes from, best first."""
_SPECIAL_TOKENS_AT_MOST = 16
"""The most tokens of an answer beyond one a character: end-of-turn tokens and the like decode to nothing."""


# --- prompts and passages ---------------------------------------------------------------------------------------------


def flow_messages(messages: Iterable[ChatMessage]) -> tuple[Message, ...]:
    """Return chat messages as role and text."""
    return tuple(Message(str(message.role.value), message.content or "") for message in messages)


def passage_of(retrieved: NodeWithScore) -> Passage:
    """Return a retrieved node as a passage, with the text that a model reads of it."""
    node = retrieved.node
    source = next((str(node.metadata[key]) for key in SOURCE_KEYS if node.metadata.get(key)), None)
    return Passage(
        text=node.get_content(metadata_mode=MetadataMode.LLM),
        source=source or node.ref_doc_id or node.node_id,
        score=retrieved.score,
    )


def passages_of(nodes: Iterable[NodeWithScore]) -> tuple[Passage, ...]:
    """Return retrieved nodes as passages, in order."""
    return tuple(passage_of(node) for node in nodes)


def rebuilt_prompt(question: str, passages: Sequence[str]) -> str:
    """Return the prompt that LlamaIndex' default template makes of a question and passages, for an unknown prompt."""
    if not passages:
        return question
    return str(DEFAULT_TEXT_QA_PROMPT.format(context_str="\n\n".join(passages), query_str=question))


def prompt_holds(prompt: Prompt, texts: Iterable[str]) -> bool:
    """Return whether each of these texts is in a prompt."""
    whole = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
    return all(text in whole for text in texts)


def request_tags() -> frozenset[str]:
    """Return the tags of the current request: the list `tags` in LlamaIndex' `instrument_tags`."""
    tags = active_instrument_tags.get().get("tags")
    return frozenset(str(tag) for tag in tags) if isinstance(tags, list | tuple | set | frozenset) else frozenset()


# --- model calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmCall:
    """What a language model read and wrote in one call."""

    prompt: Prompt
    """The messages or the text that the caller gave."""
    text: str
    llm: object | None = None
    """The LLM of LlamaIndex that was called, where it is known."""
    asked_for_tools: bool = False
    """Whether the model asked for tools instead of answering."""
    rendered: str | None = None
    """The text that a local model really read, where it is known."""
    stated: Stated = NOTHING_STATED
    """What `answering` blocks around the call state."""
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
        """The score that came along with the answer, from a `SemGradLLM` or a scoring server; `None` without one."""
        data = self.extra.get(SCORE_KEY)
        try:
            return score_from_fields(data) if isinstance(data, Mapping) else served_score(self.raw)
        except WireError:
            return None

    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return the token ids of prompt and answer; `None` when the response does not hold them."""
        if isinstance(self.raw, dict) and self.raw.get("prompt_ids") and self.raw.get("answer_ids"):
            return tuple(self.raw["prompt_ids"]), tuple(self.raw["answer_ids"])
        tokenizer = getattr(self.llm, "_tokenizer", None)
        tokens = _model_output(self.raw)
        if tokenizer is None or tokens is None:
            return None
        prompt = self.rendered if self.rendered is not None else self.prompt
        at = _answer_start(tokenizer, tokens, prompt, self.text)
        return None if at is None else (tuple(tokens[:at]), tuple(tokens[at:]))


def call_of(event: LLMChatEndEvent | LLMCompletionEndEvent, llm: object | None) -> LlmCall | None:
    """Return the model call that an event reports the end of; `None` when the model gave no response."""
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
        text=said_text(chat.message),
        llm=llm,
        asked_for_tools=asks_for_tools(chat.message),
        rendered=_rendered(llm, event.messages),
        raw=chat.raw,
        extra={**chat.message.additional_kwargs, **chat.additional_kwargs},
    )


def is_local(llm: object) -> bool:
    """Return whether an LLM is a transformers model in this process, with its tokenizer."""
    return hasattr(type(llm), "local_model") or (
        getattr(llm, "_tokenizer", None) is not None and hasattr(getattr(llm, "_model", None), "generate")
    )


def weights_of(source: object) -> object | None:
    """Return the live model in an LLM, in a pair of model and tokenizer, or in a loaded model; `None` without one.

    Two sources with the same live model have the same weights.
    """
    if isinstance(source, tuple):
        return source[0] if source else None
    if is_local(source):
        is_own = hasattr(type(source), "local_model")  # a SemGradLLM
        return weights_of(getattr(source, "local_model", None)) if is_own else getattr(source, "_model", None)
    inner = getattr(source, "model", None)
    return inner if hasattr(inner, "generate") else (source if hasattr(source, "generate") else None)


def asks_for_tools(message: ChatMessage) -> bool:
    """Return whether a model's message asks for tools; older integrations say so in `additional_kwargs` alone.

    A request whose arguments cannot be read runs no tool, so a message that holds no other is an answer.
    """
    return any(_is_readable(arguments) for arguments in _arguments(message))


def said_text(message: ChatMessage) -> str:
    """Return the text of a message; one without text says what its unreadable requests for tools say."""
    text = message.content or ""
    if text.strip():
        return text
    return "\n".join(str(arguments) for arguments in _arguments(message) if not _is_readable(arguments)) or text


def _arguments(message: ChatMessage) -> list[Any]:
    """Return the arguments of each request for a tool."""
    in_blocks = [block.tool_kwargs for block in message.blocks if isinstance(block, ToolCallBlock)]
    return in_blocks or [_arguments_of(call) for call in message.additional_kwargs.get("tool_calls") or ()]


def _arguments_of(call: Any) -> Any:
    """Return the arguments of a request in a provider's own form: a mapping, or an object of its client."""
    for _ in range(2):  # the function of the call, and its arguments
        inner = call.get("function") if isinstance(call, Mapping) else getattr(call, "function", None)
        call = call if inner is None else inner
    return call.get("arguments") if isinstance(call, Mapping) else getattr(call, "arguments", None)


def _is_readable(arguments: Any) -> bool:
    if not isinstance(arguments, str) or not arguments.strip():
        return True
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


def _rendered(llm: object, messages: Sequence[Any]) -> str | None:
    """Return the text into which a local chat model turned the messages."""
    render = getattr(llm, "messages_to_prompt", None)
    if render is None or getattr(llm, "_tokenizer", None) is None:
        return None
    return str(render(messages))


def _model_output(raw: object) -> list[int] | None:
    """Return the token ids of prompt and answer together, which a `HuggingFaceLLM` of LlamaIndex puts in `raw`."""
    output = raw.get("model_output") if isinstance(raw, dict) else None
    if output is None or not hasattr(output, "tolist"):
        return None
    rows = output.tolist()
    row = rows[0] if rows and isinstance(rows[0], list) else rows
    return row if row and all(isinstance(token, int) for token in row) else None


def _answer_start(tokenizer: Any, tokens: list[int], prompt: Prompt, text: str) -> int | None:
    """Return where the answer's tokens begin: after the prompt's, or where all that follows decodes to the answer."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if ids and tokens[: len(ids)] == ids:
            return len(ids)
    # The model read more than the event reports: `complete(formatted=False)` puts a wrapper prompt around the text.
    for length in range(1, min(len(tokens), len(text) + _SPECIAL_TOKENS_AT_MOST)):
        if tokenizer.decode(tokens[-length:], skip_special_tokens=True) == text and text:
            return len(tokens) - length
    return None


# --- embeddings -------------------------------------------------------------------------------------------------------


class IndexEmbedder:
    """An embedding model of LlamaIndex as the guard's `Embedder`."""

    def __init__(self, embed_model: BaseEmbedding) -> None:
        """Keep the embedding model, such as that of an index."""
        self._embed_model = embed_model

    @property
    def name(self) -> str:
        """Class and model; a profile is fitted for one of them."""
        return f"{type(self._embed_model).__name__} {self._embed_model.model_name}"

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector for each text."""
        return self._embed_model.get_text_embedding_batch(list(texts))
