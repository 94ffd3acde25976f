"""A local LLM that scores its answers while it writes them: the single pass."""

# LlamaIndex' callback decorators are untyped:
# pyright: reportUntypedFunctionDecorator=false

from __future__ import annotations

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

from llama_index_semgrad.convert import SCORE_KEY, flow_messages
from semgrad_guard.adapter_kit.single_pass import AnswerSettings, ScoredAnswer, SinglePass
from semgrad_guard.extras import Lazy
from semgrad_guard.flow import Message
from semgrad_guard.wire import score_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Json, Prompt
    from semgrad_guard.models import LocalModel

UNLIMITED_CONTEXT = 1_000_000
"""Context window reported for a model that names none."""


class SemGradLLM(LLM):
    """A local model whose answers carry their score.

    The score uses the KV cache that the writing left, so it costs one short forward and backward pass over the answer.
    A guarded engine with this LLM uses the score, instead of reading prompt and answer again.

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

    _single_pass: Lazy[SinglePass] = PrivateAttr()

    @override
    def model_post_init(self, context: Any, /) -> None:
        """Prepare the model and its scorer, which are loaded at the first answer."""
        super().model_post_init(context)
        self._single_pass = Lazy(self._make_single_pass)

    @classmethod
    @override
    def class_name(cls) -> str:
        return "SemGradLLM"

    @property
    def local_model(self) -> LocalModel:
        """The model itself, loaded."""
        return self._single_pass.get().local_model

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
        final_prompt = self._to_prompt(prompt, formatted)
        return _completion(self._single_pass.get().write(final_prompt, self._settings(kwargs)))

    @override
    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        final_prompt = self._to_prompt(prompt, formatted)
        return _completion(await self._single_pass.get().awrite(final_prompt, self._settings(kwargs)))

    @override
    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        def responses() -> CompletionResponseGen:
            final_prompt, text = self._to_prompt(prompt, formatted), ""
            for item in self._single_pass.get().stream(final_prompt, self._settings(kwargs)):
                if isinstance(item, str):
                    text += item
                    yield CompletionResponse(text=text, delta=item)
                else:
                    yield _completion(item, delta="")

        return responses()

    @override
    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        async def responses() -> CompletionResponseAsyncGen:
            final_prompt, text = self._to_prompt(prompt, formatted), ""
            async for item in self._single_pass.get().astream(final_prompt, self._settings(kwargs)):
                if isinstance(item, str):
                    text += item
                    yield CompletionResponse(text=text, delta=item)
                else:
                    yield _completion(item, delta="")

        return responses()

    @override
    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _chat(self._single_pass.get().write(flow_messages(messages), self._settings(kwargs)))

    @override
    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _chat(await self._single_pass.get().awrite(flow_messages(messages), self._settings(kwargs)))

    @override
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        def responses() -> ChatResponseGen:
            text = ""
            for item in self._single_pass.get().stream(flow_messages(messages), self._settings(kwargs)):
                if isinstance(item, str):
                    text += item
                    yield ChatResponse(message=_assistant(text), delta=item)
                else:
                    yield _chat(item, delta="")

        return responses()

    @override
    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        async def responses() -> ChatResponseAsyncGen:
            text = ""
            async for item in self._single_pass.get().astream(flow_messages(messages), self._settings(kwargs)):
                if isinstance(item, str):
                    text += item
                    yield ChatResponse(message=_assistant(text), delta=item)
                else:
                    yield _chat(item, delta="")

        return responses()

    def _to_prompt(self, prompt: str, formatted: bool) -> Prompt:  # noqa: FBT001 - LlamaIndex' own argument
        """Return a prompt for the model: text without a template becomes a user's message to a chat model."""
        return prompt if formatted or not self.local_model.is_chat else (Message("user", prompt),)

    def _settings(self, call: dict[str, Any]) -> AnswerSettings:
        return AnswerSettings.for_call(self, call)

    def _make_single_pass(self) -> SinglePass:
        return SinglePass(self.model, dtype=self.dtype, device=self.device, position=self.position)


def _completion(answer: ScoredAnswer, delta: str | None = None) -> CompletionResponse:
    return CompletionResponse(
        text=answer.generated.text, delta=delta, raw=_raw(answer), additional_kwargs=_score_and_usage(answer)
    )


def _chat(answer: ScoredAnswer, delta: str | None = None) -> ChatResponse:
    return ChatResponse(
        message=_assistant(answer.generated.text),
        delta=delta,
        raw=_raw(answer),
        additional_kwargs=_score_and_usage(answer),
    )


def _score_and_usage(answer: ScoredAnswer) -> dict[str, Json]:
    """Return the score, and the numbers of tokens under the keys that LlamaIndex' token counter reads."""
    n_prompt, n_answer = answer.n_prompt_tokens, answer.n_answer_tokens
    fields: dict[str, Json] = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
    }
    if answer.score is not None:
        fields[SCORE_KEY] = score_fields(answer.score)
    return fields


def _assistant(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def _raw(answer: ScoredAnswer) -> dict[str, Json]:
    written = answer.generated
    return {
        "prompt_ids": list(written.prompt_ids),
        "answer_ids": list(written.answer_ids),
        "finish_reason": written.finish_reason,
    }
