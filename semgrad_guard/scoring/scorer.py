"""The scorer: exchanges -> scores, with a model in this process."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from semgrad_guard.errors import PositionOutsidePromptError, ScoringError, ScoringSettingError
from semgrad_guard.flow import Fingerprint, Score
from semgrad_guard.scoring.anatomy import anatomy_of
from semgrad_guard.scoring.baselines import gradient_signals, likelihood_signals
from semgrad_guard.scoring.engine import Reading, measure
from semgrad_guard.scoring.gradients import Band, upper_half
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.positions import default_position
from semgrad_guard.scoring.reading import checked, read_exchange
from semgrad_guard.scoring.signals import METHODS, POSITIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Exchange
    from semgrad_guard.models import LocalModel
    from semgrad_guard.models.generation import Generated
    from semgrad_guard.models.kept import KeptCache
    from semgrad_guard.scoring.engine import Measure

Granularity = Literal["answer", "sentence"]


class SemGradScorer:
    """Scores answers by the gradients and likelihoods of a local model; implements `ports.Scorer`.

    Threads may share one scorer, and scorers may share one model: whoever runs the model holds its lock.
    """

    def __init__(
        self,
        model: LocalModel,
        *,
        method: str = "hybridgrad",
        position: int | None = None,
        band: tuple[int, int] | None = None,
        granularity: Granularity = "answer",
    ) -> None:
        """Take the model and what to read from it.

        Args:
            model: the scoring model.
            method: signal that is the score's value; one of `signals.METHODS`.
            position: t*, counted from the prompt's end (-1 is its last token); `None` takes the one known for the
                model's template, else the last token (see `positions`).
            band: decoder blocks `(first, end)`, `end` not included, that SemGrad averages over; `None` is the
                upper half.
            granularity: `sentence` scores every sentence too.

        Raises:
            ScoringSettingError: a setting is out of range.
        """
        self._model = model
        self._method = _one_of("method", method, METHODS)
        self._granularity = _one_of("granularity", granularity, ("answer", "sentence"))
        self._position = default_position(model.tokenizer) if position is None else position
        if self._position >= 0:
            raise ScoringSettingError("position", position, "-1 (the last prompt token) or less")
        self._reading = Reading(_band(model, band), max(-self._position, -min(POSITIONS)))

    @property
    def name(self) -> str:
        """Readable name of the scoring model."""
        return self._model.name

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return what its scores depend on beside the exchange."""
        band = self._reading.band
        return Fingerprint(
            model=self._model.weights_digest,
            dtype=self._model.dtype,
            template=self._model.template_digest,
            settings=f"position {self._position}, blocks {band.first} to {band.last}, by {self._granularity}",
            proxy=proxy,
        )

    def score(self, exchange: Exchange) -> Score:
        """Return the score of one exchange.

        Raises:
            ScoringError: the exchange cannot be scored.
        """
        if exchange.score is not None and exchange.score.fingerprint == self.fingerprint():
            return self._finished(exchange.score, exchange)
        fingerprint = self.fingerprint(proxy=not exchange.on_policy)
        return self._score(read_exchange(self._model, exchange), fingerprint)

    def score_generated(self, generated: Generated) -> Score:
        """Return the score of an answer that this model has just written, from the KV cache of the writing."""
        tokens = checked(self._model, Tokens(generated.prompt_ids, generated.answer_ids))
        return self._score(tokens, self.fingerprint(), generated.kept)

    def score_batch(self, exchanges: Sequence[Exchange]) -> list[Score | ScoringError]:
        """Return one score or error for each exchange, in order; one bad exchange does not spoil the others."""
        scores: list[Score | ScoringError] = []
        for exchange in exchanges:
            try:
                scores.append(self.score(exchange))
            except ScoringError as error:
                scores.append(error)
        return scores

    def _score(self, tokens: Tokens, fingerprint: Fingerprint, kept: KeptCache | None = None) -> Score:
        started = time.perf_counter()
        if -self._position > len(tokens.prompt):
            raise PositionOutsidePromptError(self._position, len(tokens.prompt))
        with self._model.lock:
            (measured,) = measure(self._model.model, [tokens], self._reading, kept=kept)
        signals = self._signals(measured)
        return Score(
            method=self._method,
            value=signals[self._method],
            signals=signals,
            fingerprint=fingerprint,
            model=self.name,
            path=measured.path,
            n_prompt_tokens=len(tokens.prompt),
            n_answer_tokens=len(tokens.answer),
            seconds=time.perf_counter() - started,
        )

    def _finished(self, score: Score, exchange: Exchange) -> Score:  # noqa: ARG002 - signals of the texts go here
        """Return a score that was taken while the answer was written, with this scorer's value."""
        return replace(score, method=self._method, value=score.signals[self._method])

    def _signals(self, measured: Measure) -> dict[str, float]:
        whole = measured.parts[0]
        return {**gradient_signals(measured, whole, self._position), **likelihood_signals(measured, whole)}


def _one_of(setting: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ScoringSettingError(setting, value, ", ".join(allowed))
    return value


def _band(model: LocalModel, band: tuple[int, int] | None) -> Band:
    with model.lock:
        n_blocks = len(anatomy_of(model.model).blocks)
    if band is None:
        return upper_half(n_blocks)
    first, end = band
    if not 0 <= first < end <= n_blocks:
        raise ScoringSettingError("band", band, f"(first, end) with 0 <= first < end <= {n_blocks}")
    return Band(first, end - 1)
