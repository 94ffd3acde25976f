"""A local chat model that scores its answers while it writes them: the single pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, PrivateAttr
from typing_extensions import override

from langchain_semgrad.convert import SCORE_KEY, to_prompt
from semgrad_guard.adapter_kit.single_pass import AnswerSettings, ScoredAnswer, SinglePass
from semgrad_guard.extras import Lazy
from semgrad_guard.wire import score_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.callbacks import CallbackManagerForLLMRun
    from langchain_core.messages import BaseMessage

    from semgrad_guard.flow import Json
    from semgrad_guard.models import LocalModel

_FINISH = {"stop_sequence": "stop"}


class SemGradChatModel(BaseChatModel):
    """A local model whose answers carry their score.

    The score is taken from the KV cache of the writing, so it costs one short forward and backward of the answer. A
    `SemGradGuard` after it uses the score instead of reading prompt and answer again. It asks for no tools.

    Example:
        >>> llm = SemGradChatModel(model="smollm2-135m", max_tokens=64)  # doctest: +SKIP
        >>> llm.invoke("Capital of France?").response_metadata["semgrad_score"]["value"]  # doctest: +SKIP
        2.1e-05
    """

    model: Any = "smollm2-135m"
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
        """Prepare what is loaded at the first answer."""
        self._single_pass = Lazy(self._make_single_pass)

    @property
    def local_model(self) -> LocalModel:
        """The model itself, loaded."""
        return self._single_pass.get().local_model

    @property
    @override
    def _llm_type(self) -> str:
        return "semgrad-local"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        named = self.model if isinstance(self.model, str) else type(self.model).__name__
        return {
            "model": named,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self._single_pass.get().write(to_prompt(messages), self._settings(stop, kwargs))
        message = AIMessage(
            content=answer.generated.text, response_metadata=self._metadata(answer), usage_metadata=_usage(answer)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for item in self._single_pass.get().stream(to_prompt(messages), self._settings(stop, kwargs)):
            chunk = ChatGenerationChunk(
                message=AIMessageChunk(content=item) if isinstance(item, str) else self._last(item)
            )
            if isinstance(item, str) and run_manager is not None:
                run_manager.on_llm_new_token(item, chunk=chunk)
            yield chunk

    def _last(self, answer: ScoredAnswer) -> AIMessageChunk:
        """Return the chunk that ends a stream: no text, but what is known now that all is written."""
        return AIMessageChunk(
            content="",
            response_metadata=self._metadata(answer),
            usage_metadata=_usage(answer),
            chunk_position="last",
        )

    def _settings(self, stop: list[str] | None, call: dict[str, Any]) -> AnswerSettings:
        return AnswerSettings.for_call(self, {**call, "stop": stop})

    def _metadata(self, answer: ScoredAnswer) -> dict[str, Json]:
        reason = answer.generated.finish_reason
        metadata: dict[str, Json] = {
            "model_name": self.local_model.name,
            "model_provider": "semgrad",
            "finish_reason": _FINISH.get(reason, reason),
        }
        if answer.score is not None:
            metadata[SCORE_KEY] = score_fields(answer.score)
        return metadata

    def _make_single_pass(self) -> SinglePass:
        return SinglePass(self.model, dtype=self.dtype, device=self.device, position=self.position)


def _usage(answer: ScoredAnswer) -> UsageMetadata:
    read, wrote = answer.n_prompt_tokens, answer.n_answer_tokens
    return UsageMetadata(input_tokens=read, output_tokens=wrote, total_tokens=read + wrote)
