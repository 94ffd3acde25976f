"""A local LLM that scores its answers while it writes them: the single pass."""

# LlamaIndex' callback decorators are untyped:
# pyright: reportUntypedFunctionDecorator=false

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.llms import (
    LLM,
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import Field, PrivateAttr
from typing_extensions import override

from llama_index_semgrad.calls import SCORE_KEY
from llama_index_semgrad.convert import flow_messages
from semgrad_guard.errors import ScoringError
from semgrad_guard.flow import Message
from semgrad_guard.guard.assembly import Lazy, band_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Json, Prompt
    from semgrad_guard.models import Generated, LocalModel
    from semgrad_guard.scoring import SemGradScorer

_log = logging.getLogger("semgrad_guard")

UNLIMITED_CONTEXT = 1_000_000
"""Context window reported for a model that names none."""


class SemGradLLM(LLM):
    """A local model whose answers carry their score.

    The score is taken from the KV cache of the writing, so it costs one short forward and backward of the answer. An
    engine over this LLM that `SemGradGuard` wraps uses it instead of reading prompt and answer again.

    Example:
        >>> llm = SemGradLLM(model="smollm2-135m", max_tokens=64)  # doctest: +SKIP
        >>> llm.complete("Capital of France?").additional_kwargs["semgrad_score"]["value"]  # doctest: +SKIP
        2.1e-05
    """

    model: Any = Field(default="smollm2-135m", exclude=True)
    """Name, Hugging Face id, folder, `.gguf` file or live object: anything `semgrad_guard.models.load_model` takes."""
    dtype: str | None = None
    device: str | None = None
    max_tokens: int = Field(default=256, ge=1)
    """The most tokens of one answer."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: list[str] | None = None
    """Texts that end an answer; they are not part of it."""
    seed: int | None = None
    """Makes drawing repeatable."""
    scoring: bool = True
    """Score every answer."""
    position: int | None = None
    """Token position t*, counted from the prompt's end; `None` takes the one known for the model's template."""

    _local: Lazy[LocalModel] = PrivateAttr()
    _scorer: Lazy[SemGradScorer] = PrivateAttr()

    @override
    def model_post_init(self, context: Any, /) -> None:
        """Prepare what is made at the first answer."""
        super().model_post_init(context)
        self._local = Lazy(self._load)
        self._scorer = Lazy(self._make_scorer)

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradLLM"

    @property
    def local_model(self) -> LocalModel:
        """The model itself, loaded."""
        return self._local.get()

    @property
    @override
    def metadata(self) -> LLMMetadata:
        local = self.local_model
        return LLMMetadata(
            context_window=local.context_limit or UNLIMITED_CONTEXT,
            num_output=self.max_tokens,
            is_chat_model=local.is_chat,
            model_name=local.name,
        )

    @override
    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self._completion(self._write(self._asked(prompt, formatted), kwargs))

    @override
    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        written = await asyncio.to_thread(self._write, self._asked(prompt, formatted), kwargs)
        return await asyncio.to_thread(self._completion, written)

    @override
    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        from semgrad_guard.models.streaming import stream  # noqa: PLC0415 - loads torch

        def responses() -> CompletionResponseGen:
            text = ""
            for item in stream(partial(self._write, self._asked(prompt, formatted), kwargs)):
                if isinstance(item, str):
                    text += item
                    yield CompletionResponse(text=text, delta=item)
                else:
                    yield self._completion(item, delta="")

        return responses()

    @override
    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        from semgrad_guard.models.streaming import astream  # noqa: PLC0415 - loads torch

        async def responses() -> CompletionResponseAsyncGen:
            text = ""
            async for item in astream(partial(self._write, self._asked(prompt, formatted), kwargs)):
                if isinstance(item, str):
                    text += item
                    yield CompletionResponse(text=text, delta=item)
                else:
                    yield await asyncio.to_thread(self._completion, item, delta="")

        return responses()

    @override
    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._chat(self._write(flow_messages(messages), kwargs))

    @override
    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        written = await asyncio.to_thread(self._write, flow_messages(messages), kwargs)
        return await asyncio.to_thread(self._chat, written)

    @override
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        from semgrad_guard.models.streaming import stream  # noqa: PLC0415 - loads torch

        def responses() -> ChatResponseGen:
            text = ""
            for item in stream(partial(self._write, flow_messages(messages), kwargs)):
                if isinstance(item, str):
                    text += item
                    yield ChatResponse(message=_assistant(text), delta=item)
                else:
                    yield self._chat(item, delta="")

        return responses()

    @override
    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        from semgrad_guard.models.streaming import astream  # noqa: PLC0415 - loads torch

        async def responses() -> ChatResponseAsyncGen:
            text = ""
            async for item in astream(partial(self._write, flow_messages(messages), kwargs)):
                if isinstance(item, str):
                    text += item
                    yield ChatResponse(message=_assistant(text), delta=item)
                else:
                    yield await asyncio.to_thread(self._chat, item, delta="")

        return responses()

    def _asked(self, prompt: str, formatted: bool) -> Prompt:  # noqa: FBT001 - LlamaIndex' own argument
        """Return a text as the model should read it: one that nobody formatted is a user's message to a chat model."""
        return prompt if formatted or not self.local_model.is_chat else (Message("user", prompt),)

    def _write(self, prompt: Prompt, settings: dict[str, Any], **watching: Any) -> Generated:
        return self.local_model.generate(
            prompt,
            max_new_tokens=settings.get("max_tokens", self.max_tokens),
            temperature=settings.get("temperature", self.temperature),
            top_p=settings.get("top_p", self.top_p),
            seed=settings.get("seed", self.seed),
            stop=settings.get("stop") or self.stop or (),
            keep=self.scoring,
            states_of=band_blocks(self._scorer) if self.scoring else (),
            **watching,
        )

    def _completion(self, written: Generated, delta: str | None = None) -> CompletionResponse:
        found = self._found(written)
        return CompletionResponse(text=written.text, delta=delta, raw=_raw(written), additional_kwargs=found)

    def _chat(self, written: Generated, delta: str | None = None) -> ChatResponse:
        found = self._found(written)
        return ChatResponse(message=_assistant(written.text), delta=delta, raw=_raw(written), additional_kwargs=found)

    def _found(self, written: Generated) -> dict[str, Json]:
        """Return the score of what was just written, and what LlamaIndex counts tokens by."""
        read, wrote = len(written.prompt_ids), len(written.answer_ids)
        found: dict[str, Json] = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
        if self.scoring and written.answer_ids:
            try:
                found[SCORE_KEY] = self._scorer.get().score_generated(written).to_json()
            except ScoringError as error:  # the answer is worth more than its score; a guard scores it from outside
                _log.warning("an answer could not be scored while it was written: %s", error)
        return found

    def _load(self) -> LocalModel:
        from semgrad_guard.models import load_model  # noqa: PLC0415 - loads torch

        return load_model(self.model, dtype=self.dtype, device=self.device)

    def _make_scorer(self) -> SemGradScorer:
        from semgrad_guard.scoring import SemGradScorer  # noqa: PLC0415 - loads torch

        return SemGradScorer(self.local_model, position=self.position)


def _assistant(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def _raw(written: Generated) -> dict[str, Json]:
    return {
        "prompt_ids": list(written.prompt_ids),
        "answer_ids": list(written.answer_ids),
        "finish_reason": written.finish_reason,
    }
