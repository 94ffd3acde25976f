"""Generate an answer and score it in one pass; the chat models of all frameworks use this."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

from semgrad_guard.context import with_context
from semgrad_guard.errors import in_log
from semgrad_guard.extras import Lazy
from semgrad_guard.flow import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

    from torch import nn

    from semgrad_guard.flow import Prompt, Score
    from semgrad_guard.models import Generated, LocalModel
    from semgrad_guard.scoring import SemGradScorer

_log = logging.getLogger("semgrad_guard")


class ChatModelFields(Protocol):
    """The fields of a chat model that hold its default settings."""

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of one answer."""
        ...

    @property
    def temperature(self) -> float:
        """Sampling temperature; 0 always takes the likeliest token."""
        ...

    @property
    def top_p(self) -> float:
        """Share of the probability mass that tokens are sampled from."""
        ...

    @property
    def stop(self) -> Sequence[str] | None:
        """Texts that end an answer and are not part of it."""
        ...

    @property
    def seed(self) -> int | None:
        """Makes sampling repeatable."""
        ...

    @property
    def scoring(self) -> bool:
        """Whether answers are scored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """How one answer is generated, and whether it is scored."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None
    scoring: bool = True

    @classmethod
    def for_call(cls, fields: ChatModelFields, changes: Mapping[str, Any]) -> Self:
        """Return a chat model's settings with one call's changes applied; other keys are ignored."""
        return cls(
            max_tokens=changes.get("max_tokens", fields.max_tokens),
            temperature=changes.get("temperature", fields.temperature),
            top_p=changes.get("top_p", fields.top_p),
            stop=changes.get("stop") or fields.stop or (),
            seed=changes.get("seed", fields.seed),
            scoring=fields.scoring,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswer:
    """An answer and its score."""

    generated: Generated
    """What the model wrote."""
    score: Score | None = None
    """`None` if scoring was switched off, the answer has no tokens, or scoring failed."""
    error: str | None = None
    """Why scoring failed; `None` if it did not."""

    @property
    def n_prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self.generated.prompt_ids)

    @property
    def n_answer_tokens(self) -> int:
        """Number of answer tokens."""
        return len(self.generated.answer_ids)


class SinglePass:
    """A local model that scores each answer from the KV cache left by generating it.

    The model is loaded at the first answer. An error while generating reaches the caller. An error while scoring is
    logged and the answer is returned without a score; a guard can still score it afterwards.

    Args:
        source: anything that `semgrad_guard.models.load_model` takes.
        dtype: number type of the weights.
        device: where the model runs.
        position: token position t*, counted from the prompt's end; `None` uses the known one of the model's template.
    """

    def __init__(
        self, source: Any, *, dtype: str | None = None, device: str | None = None, position: int | None = None
    ) -> None:
        self._source, self._dtype, self._device, self._position = source, dtype, device, position
        self._local = Lazy(self._load)
        self._scorer = Lazy(self._make_scorer)

    @classmethod
    def of(cls, scorer: SemGradScorer) -> Self:
        """Return the single pass of a scorer's own model; its answers are scored by that very scorer."""
        made = cls(scorer.model)
        made._local, made._scorer = Lazy(lambda: scorer.model), Lazy(lambda: scorer)
        return made

    @property
    def local_model(self) -> LocalModel:
        """The model; it is loaded at the first access."""
        return self._local.get()

    def write(self, prompt: Prompt, settings: AnswerSettings) -> ScoredAnswer:
        """Return the model's answer to a prompt, with its score.

        Raises:
            ModelError: the model cannot be loaded, or a setting is out of range.
            ScoringError: the prompt has no tokens, or leaves no room for an answer.
        """
        return self._scored(prompt, self._generate(prompt, settings), settings)

    async def awrite(self, prompt: Prompt, settings: AnswerSettings) -> ScoredAnswer:
        """Same as `write` for async callers; model and scorer work in other threads."""
        generated = await asyncio.to_thread(self._generate, prompt, settings)
        return await asyncio.to_thread(self._scored, prompt, generated, settings)

    def stream(self, prompt: Prompt, settings: AnswerSettings) -> Generator[str | ScoredAnswer, None, None]:
        """Yield the text piece by piece, then the scored answer; closing the generator stops the model.

        Raises:
            ModelError: as for `write`.
            ScoringError: as for `write`.
        """
        from semgrad_guard.models.streaming import stream  # loads torch

        with closing(stream(partial(self._generate, prompt, settings))) as items:
            for item in items:
                yield item if isinstance(item, str) else self._scored(prompt, item, settings)

    async def astream(self, prompt: Prompt, settings: AnswerSettings) -> AsyncGenerator[str | ScoredAnswer, None]:
        """Same as `stream` for async callers; cancelling the reader stops the model."""
        from semgrad_guard.models.streaming import astream  # loads torch

        async with aclosing(astream(partial(self._generate, prompt, settings))) as items:
            async for item in items:
                yield item if isinstance(item, str) else await asyncio.to_thread(self._scored, prompt, item, settings)

    def _generate(self, prompt: Prompt, settings: AnswerSettings, **watching: Any) -> Generated:
        return self.local_model.generate(
            prompt,
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop=settings.stop,
            seed=settings.seed,
            keep=settings.scoring,
            states_of=self._band_blocks() if settings.scoring else (),
            **watching,
        )

    def _band_blocks(self) -> tuple[nn.Module, ...]:
        """Return the blocks whose states the model keeps as it writes; none if the scorer cannot be loaded."""
        try:
            return self._scorer.get().band_blocks
        except Exception:  # noqa: BLE001 - reported when the answer is scored
            return ()

    def _scored(self, prompt: Prompt, generated: Generated, settings: AnswerSettings) -> ScoredAnswer:
        if not settings.scoring or not generated.answer_ids:
            return ScoredAnswer(generated=generated)
        try:
            # question and passages as the prompt shows them; who knows better drops what was read for others
            score = self._scorer.get().score_generated(generated, with_context(Exchange(prompt=prompt)))
        except Exception as error:  # noqa: BLE001 - see the class
            why = f"{type(error).__name__}: {error}"  # the error itself would hold the tensors of its frames
            _log.warning("an answer could not be scored while it was generated: %s", in_log(error))
            return ScoredAnswer(generated=generated, error=why)
        return ScoredAnswer(generated=generated, score=score)

    def _load(self) -> LocalModel:
        from semgrad_guard.models import load_model  # loads torch

        return load_model(self._source, dtype=self._dtype, device=self._device)

    def _make_scorer(self) -> SemGradScorer:
        from semgrad_guard.scoring import SemGradScorer  # loads torch

        return SemGradScorer(self.local_model, position=self._position)
