"""Measures and texts -> the signals of a score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.flow import SpanScore
from semgrad_guard.scoring.forward_signals import context_gain, p_true
from semgrad_guard.scoring.measure import gradient_signals, likelihood_signals
from semgrad_guard.scoring.text_signals import closeness_signals, grounding_signals, retrieval_signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Exchange
    from semgrad_guard.models import LocalModel
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.scoring.layout import Tokens
    from semgrad_guard.scoring.measure import Measure, PartMeasure
    from semgrad_guard.scoring.spans import PlacedSpan


class Readout:
    """Reads the wanted signals."""

    def __init__(
        self,
        model: LocalModel,
        position: int,
        wanted: frozenset[str],
        *,
        embedder: Embedder | None = None,
        language: str = "en",
    ) -> None:
        """Take the scoring model (for signals that run it again), t*, the names wanted and what they need."""
        self._model, self._position, self._wanted = model, position, wanted
        self._embedder, self._language = embedder, language

    def signals(self, measured: Measure, exchange: Exchange, tokens: Tokens) -> dict[str, float]:
        """Return the signals of a whole answer."""
        found = {**self._of_part(measured, measured.parts[0]), **self.text_signals(exchange)}
        if "context_gain" in self._wanted:
            gain = context_gain(self._model, exchange, tokens, float(measured.nll.mean()))
            found |= {} if gain is None else {"context_gain": gain}
        if "p_true" in self._wanted:
            chance = p_true(self._model, exchange)
            found |= {} if chance is None else {"p_true": chance}
        return found

    def text_signals(self, exchange: Exchange) -> dict[str, float]:
        """Return the signals that need no pass of the language model."""
        return self._only({**self._of_text(exchange), **retrieval_signals(exchange.passages)})

    def spans(self, measured: Measure, exchange: Exchange, spans: Sequence[PlacedSpan]) -> tuple[SpanScore, ...]:
        """Return the scores of the parts of an answer, whose measures follow that of the whole."""
        return tuple(
            SpanScore(
                span.start,
                span.end,
                self._of_part(measured, part) | self._only(self._of_text(exchange, span.text)),
            )
            for span, part in zip(spans, measured.parts[1:], strict=True)
        )

    def _of_text(self, exchange: Exchange, answer: str | None = None) -> dict[str, float]:
        found = grounding_signals(exchange, answer)
        if self._embedder is not None:
            found |= closeness_signals(exchange, self._embedder, self._language, answer)
        return found

    def _of_part(self, measured: Measure, part: PartMeasure) -> dict[str, float]:
        return self._only({**gradient_signals(measured, part, self._position), **likelihood_signals(measured, part)})

    def _only(self, signals: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in signals.items() if name in self._wanted}
