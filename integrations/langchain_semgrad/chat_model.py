"""A local chat model that scores its answers while it writes them: the single pass."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, PrivateAttr
from typing_extensions import override

from langchain_semgrad.convert import SCORE_KEY, to_prompt
from semgrad_guard.guard.assembly import Lazy, band_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.callbacks import CallbackManagerForLLMRun
    from langchain_core.messages import BaseMessage

    from semgrad_guard.flow import Json
    from semgrad_guard.models import Generated, LocalModel
    from semgrad_guard.scoring import SemGradScorer

_log = logging.getLogger("semgrad_guard")

_FINISH = {"stop_sequence": "stop"}


class SemGradChatModel(BaseChatModel):
    """A local model whose answers carry their score.

    The score is taken from the KV cache of the writing, so it costs one short forward and backward of the answer. A
    `SemGradGuard` behind it uses the score instead of reading prompt and answer again. It asks for no tools.

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

    _local: Lazy[LocalModel] = PrivateAttr()
    _scorer: Lazy[SemGradScorer] = PrivateAttr()

    @override
    def model_post_init(self, context: Any, /) -> None:
        """Prepare what is made at the first answer."""
        self._local = Lazy(self._load)
        self._scorer = Lazy(self._make_scorer)

    @property
    def local_model(self) -> LocalModel:
        """The model itself, loaded."""
        return self._local.get()

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
        written = self._write(messages, stop, kwargs)
        message = AIMessage(
            content=written.text, response_metadata=self._metadata(written), usage_metadata=_usage(written)
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
        from semgrad_guard.models.streaming import stream  # noqa: PLC0415 - loads torch

        for item in stream(partial(self._write, messages, stop, kwargs)):
            chunk = ChatGenerationChunk(
                message=AIMessageChunk(content=item) if isinstance(item, str) else self._last(item)
            )
            if isinstance(item, str) and run_manager is not None:
                run_manager.on_llm_new_token(item, chunk=chunk)
            yield chunk

    def _last(self, written: Generated) -> AIMessageChunk:
        """Return the chunk that ends a stream: no text, but what is known now that all is written."""
        return AIMessageChunk(
            content="",
            response_metadata=self._metadata(written),
            usage_metadata=_usage(written),
            chunk_position="last",
        )

    def _write(
        self, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any], **watching: Any
    ) -> Generated:
        return self.local_model.generate(
            to_prompt(messages),
            max_new_tokens=settings.get("max_tokens", self.max_tokens),
            temperature=settings.get("temperature", self.temperature),
            top_p=settings.get("top_p", self.top_p),
            seed=settings.get("seed", self.seed),
            stop=stop or self.stop or (),
            keep=self.scoring,
            states_of=band_blocks(self._scorer) if self.scoring else (),
            **watching,
        )

    def _metadata(self, written: Generated) -> dict[str, Json]:
        said: dict[str, Json] = {
            "model_name": self.local_model.name,
            "model_provider": "semgrad",
            "finish_reason": _FINISH.get(written.finish_reason, written.finish_reason),
        }
        if self.scoring and written.answer_ids:
            try:
                said[SCORE_KEY] = self._scorer.get().score_generated(written).to_json()
            except Exception as error:  # noqa: BLE001 - the answer is worth more than its score: a guard takes it again
                _log.warning("an answer could not be scored as it was written: %s: %s", type(error).__name__, error)
        return said

    def _load(self) -> LocalModel:
        from semgrad_guard.models import load_model  # noqa: PLC0415 - loads torch

        return load_model(self.model, dtype=self.dtype, device=self.device)

    def _make_scorer(self) -> SemGradScorer:
        from semgrad_guard.scoring import SemGradScorer  # noqa: PLC0415 - loads torch

        return SemGradScorer(self.local_model, position=self.position)


def _usage(written: Generated) -> UsageMetadata:
    read, wrote = len(written.prompt_ids), len(written.answer_ids)
    return UsageMetadata(input_tokens=read, output_tokens=wrote, total_tokens=read + wrote)
