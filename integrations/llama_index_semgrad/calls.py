"""One call of a language model as the instrumentation events report it, and the exact token ids inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent

from llama_index_semgrad.convert import flow_messages
from semgrad_guard.wire import WireError, score_from_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Prompt, Score

CallEndEvent = LLMChatEndEvent | LLMCompletionEndEvent

SCORE_KEY = "semgrad_score"
"""Where `SemGradLLM` puts the score that it took while writing: a key of the response's `additional_kwargs`."""

_SPECIAL_TOKENS_AT_MOST = 16
"""Tokens that an answer may have beyond one a character: end-of-turn tokens and the like decode to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """What a language model read and wrote in one call."""

    prompt: Prompt
    """The messages or the text that the caller gave."""
    text: str
    llm: object | None = None
    """The LlamaIndex LLM, where its span was seen."""
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
            return score_from_fields(found) if isinstance(found, Mapping) else None
        except WireError:
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


def call_of(event: CallEndEvent, llm: object | None) -> ModelCall | None:
    """Return the call that an end event reports; `None` when the model gave no response."""
    if isinstance(event, LLMCompletionEndEvent):
        response = event.response
        rendered = event.prompt if is_local(llm) else None
        return ModelCall(
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
    return ModelCall(
        prompt=flow_messages(event.messages),
        text=chat.message.content or "",
        llm=llm,
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
