"""The scorer: scores exchanges with a model in this process."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from semgrad_guard.errors import (
    EmbeddingFailedError,
    PositionOutsidePromptError,
    ScoringError,
    ScoringSettingError,
)
from semgrad_guard.flow import Exchange, Fingerprint, Score, SpanScore
from semgrad_guard.models.embedding import UnitVectors
from semgrad_guard.models.generate import ending
from semgrad_guard.scoring.attention_signals import attention_signals, only_of, passage_shares, read_for
from semgrad_guard.scoring.budget import budget_for
from semgrad_guard.scoring.forward_signals import nll_without_passages, p_true, passage_signals
from semgrad_guard.scoring.layout import Tokens, default_position
from semgrad_guard.scoring.measure import (
    MAX_BATCH_TOKENS,
    GradientSpec,
    gradient_signals,
    likelihood_signals,
    measure_many,
    norms_from_cache,
)
from semgrad_guard.scoring.model_lease import ModelLease
from semgrad_guard.scoring.model_parts import Band, model_parts_of, upper_half
from semgrad_guard.scoring.prompt_parts import prompt_parts
from semgrad_guard.scoring.reading import as_read, read_exchange
from semgrad_guard.scoring.recording import band_bytes
from semgrad_guard.scoring.starts import start_signals, starts_of
from semgrad_guard.scoring.texts.claims import PassageTexts
from semgrad_guard.scoring.texts.spans import place_spans
from semgrad_guard.scoring.texts.text_signals import closeness_signals, grounding_signals, retrieval_signals
from semgrad_guard.signals import (
    ATTENTION,
    ATTENTION_PROBE,
    FREE,
    MEANING,
    METHODS,
    PASSAGE_HELP,
    POSITIONS,
    PROBES,
    SIGNALS,
    STATE_PROBE,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from semgrad_guard.models import Generated, KeptCache, LocalModel
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.scoring.measure import Measure, PartMeasure
    from semgrad_guard.scoring.starts import Starts
    from semgrad_guard.scoring.texts.spans import PlacedSpan

_log = logging.getLogger("semgrad_guard")


class Readout:
    """Computes the requested signals from a measure and the texts."""

    def __init__(
        self,
        model: LocalModel,
        position: int,
        wanted: frozenset[str],
        *,
        embedder: Embedder | None = None,
        language: str = "en",
    ) -> None:
        """Store the scoring model (for signals that run it again), t*, the names of the signals and their tools."""
        self._model, self._position, self._wanted = model, position, wanted
        self._embedder, self._language = embedder, language

    def signals(self, measured: Measure, exchange: Exchange, tokens: Tokens, lease: ModelLease) -> dict[str, float]:
        """Return the signals of a whole answer."""
        starts = self._starts(exchange, tokens, lease.check)
        found = {**self._of_part(measured, measured.parts[0], starts), **self.text_signals(exchange, lease.check)}
        if self._wanted & PASSAGE_HELP:
            without = nll_without_passages(self._model, exchange, tokens, lease)
            found |= {} if without is None else self._only(passage_signals(measured.nll, without))
        if "p_true" in self._wanted:
            chance = p_true(self._model, exchange, lease)
            found |= {} if chance is None else {"p_true": chance}
        return found

    @property
    def wanted_probes(self) -> frozenset[str]:
        """The probes whose vectors are wanted."""
        return self._wanted.intersection(PROBES)

    def vectors(self, measured: Measure) -> dict[str, tuple[float, ...]]:
        """Return what the wanted probes read of an answer, as far as it is known."""
        use, found = measured.attention, {STATE_PROBE: measured.state}
        if use is not None and (use.has_question or any(use.shown)):
            found[ATTENTION_PROBE] = use.by_head
        return {
            name: tuple(vector.tolist())
            for name, vector in found.items()
            if name in self._wanted and vector is not None
        }

    @property
    def texts(self) -> str:
        """How signals of texts are computed, for the fingerprint."""
        return "by claim" if self._language == "en" else f"by claim in {self._language}"

    def text_signals(self, exchange: Exchange, check: Callable[[], None]) -> dict[str, float]:
        """Return the signals that need no pass of the language model."""
        read = PassageTexts.of(exchange, self._language, check)
        return self._only({**self._of_text(exchange, read), **retrieval_signals(exchange.passages)})

    def spans(
        self,
        measured: Measure,
        exchange: Exchange,
        tokens: Tokens,
        spans: Sequence[PlacedSpan],
        check: Callable[[], None],
    ) -> tuple[SpanScore, ...]:
        """Return the scores of the parts of an answer, whose measures follow that of the whole."""
        if not spans:
            return ()
        starts = self._starts(exchange, tokens, check)
        read = PassageTexts.of(exchange, self._language, check)
        return tuple(
            SpanScore(
                span.start,
                span.end,
                self._of_part(measured, part, starts) | self._only(self._of_text(exchange, read, span.text)),
            )
            for span, part in zip(spans, measured.parts[1:], strict=True)
        )

    def _of_text(self, exchange: Exchange, read: PassageTexts, answer: str | None = None) -> dict[str, float]:
        found = grounding_signals(exchange, answer, language=self._language, passages=read)
        if self._embedder is None:
            return found
        try:
            return found | closeness_signals(exchange, self._embedder, self._language, answer, passages=read)
        except EmbeddingFailedError as error:
            _log.warning("an answer is scored without its signals of meaning: %s", error)
            return found

    def _starts(self, exchange: Exchange, tokens: Tokens, check: Callable[[], None]) -> Starts:
        return starts_of(self._model, tokens.answer, exchange.question or "", self._language, check=check)

    def _of_part(self, measured: Measure, part: PartMeasure, starts: Starts) -> dict[str, float]:
        return self._only(
            {
                **gradient_signals(measured, part, self._position),
                **likelihood_signals(measured, part),
                **start_signals(measured.nll, measured.entropy, part.tokens, starts),
                **attention_signals(measured.attention, measured.nll, part.tokens, starts.claims),
            }
        )

    def _only(self, signals: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in signals.items() if name in self._wanted}


COMPLETING_S = 1.0
"""Seconds that completing an earlier score may take even where no time is left: it rarely takes a hundredth of that."""
Granularity = Literal["answer", "sentence"]
_GRANULARITIES = ("answer", "sentence")


@dataclass(frozen=True, slots=True)
class _Task:
    """An exchange prepared for the model."""

    exchange: Exchange
    tokens: Tokens
    spans: tuple[PlacedSpan, ...]
    proxy: bool


class SemGradScorer:
    """Scores answers by the gradients and likelihoods of a local model; implements `ports.Scorer`.

    Threads may share one scorer, and scorers may share one model: the thread that runs the model holds its lock.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of the caller with a usual value
        self,
        model: LocalModel,
        *,
        method: str = "hybridgrad",
        position: int | None = None,
        band: tuple[int, int] | None = None,
        granularity: Granularity = "answer",
        signals: Sequence[str] | None = None,
        language: str = "en",
        embedder: Embedder | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_extra_mb: float | None = None,
        passage_gradients: bool = False,
    ) -> None:
        """Create a scorer for a model.

        Args:
            model: the scoring model.
            method: signal used as the score's value; one of `signals.METHODS`.
            position: t*, counted from the prompt's end (-1 is its last token); `None` takes the one known for the
                model's template, else the last token (see `layout.KNOWN_POSITIONS`).
            band: decoder blocks `(first, end)`, `end` not included, that SemGrad averages over; `None` is the
                upper half.
            granularity: `sentence` also scores every sentence, which takes one more backward pass for each.
            signals: signals to report in addition to the method; `None` is all that need no further forward pass.
                Without ParaGrad, HybridGrad and ExGrad the gradients by the head's weight are not computed.
            language: two-letter code of the answers, for finding sentences.
            embedder: sentence embeddings, such as the retriever's, for signals that compare meanings
                (`signals.MEANING`); `None` leaves those out.
            max_batch_tokens: most padded tokens in a batch.
            max_extra_mb: about how many MiB a score may take, beside the model and what was kept of the writing, in
                order to save time: with enough, the vocabulary is one block and the band is recorded as a whole; with
                0, all goes by the smallest pieces. `None` is 512 on an accelerator; on a processor it is pieces that
                fit its caches, which are faster there than larger ones. The recording of a band may take as much (with
                `None` 256 MiB on a processor and 4 GiB on an accelerator), four times that in a batch; a longer answer
                is recorded block by block. No number of a score depends on it.
            passage_gradients: also report how much the answer hangs on each passage by the gradients by its cached keys
                and values, `Score.passage_gradients`; where attention is read.

        Raises:
            ScoringSettingError: a setting is out of range.
            GradientsUnavailableError: no gradients can be taken through this model.
        """
        self._model = model
        self._method = _one_of("method", method, METHODS)
        self._granularity = _one_of("granularity", granularity, _GRANULARITIES)
        self._position = default_position(model.tokenizer) if position is None else position
        if self._position >= 0:
            raise ScoringSettingError("position", position, "-1 (the last prompt token) or less")
        if max_batch_tokens < 1:
            raise ScoringSettingError("max_batch_tokens", max_batch_tokens, "1 or more")
        if max_extra_mb is not None and not max_extra_mb >= 0:
            raise ScoringSettingError("max_extra_mb", max_extra_mb, "0 or more, or nothing for the device's usual one")
        names = FREE if signals is None else tuple(_one_of("signals", name, tuple(SIGNALS)) for name in signals)
        self._embedder = None if embedder is None else UnitVectors(embedder)
        wanted = frozenset({*names, method, *(MEANING if embedder else ())})
        self._readout = Readout(
            model,
            self._position,
            wanted,
            embedder=self._embedder,
            language=language,
        )
        budget = budget_for(model.device, max_extra_mb)
        with model.lock:
            parts = model_parts_of(model.model)
            self._blocks, placed = parts.blocks, _band(len(parts.blocks), band)
            most_recorded = budget.batch_bytes // band_bytes(model.model, parts, placed, 1)
        self._reading = GradientSpec(
            placed,
            max(-self._position, -min(POSITIONS)),
            norms_from_cache(wanted),
            budget,
            attention=not wanted.isdisjoint(ATTENTION),
            passages=passage_gradients,
            state=STATE_PROBE in wanted,
            most_recorded=most_recorded,
        )
        self._language, self._max_batch_tokens = language, max_batch_tokens

    @property
    def name(self) -> str:
        """Readable name of the scoring model."""
        return self._model.name

    @property
    def model(self) -> LocalModel:
        """The scoring model."""
        return self._model

    @property
    def position(self) -> int:
        """t*, counted from the prompt's end."""
        return self._position

    @property
    def band_blocks(self) -> tuple[nn.Module, ...]:
        """The blocks of the band: `generate(states_of=scorer.band_blocks)` makes `score_generated` cheapest."""
        return self._reading.band.of(self._blocks)

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return what the scores depend on apart from the exchange."""
        band = self._reading.band
        return Fingerprint(
            model=self._model.weights_digest,
            dtype=self._model.dtype,
            template=self._model.template_digest,
            settings=f"position {self._position}, blocks {band.first} to {band.last}, by {self._granularity}"
            f", texts {self._readout.texts}" + (f", embedder {self._embedder.fingerprint}" if self._embedder else ""),
            proxy=proxy,
        )

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the score of one exchange; a score taken during generation is completed, not computed again.

        Args:
            exchange: the exchange to score.
            timeout_s: stop after this many seconds, including the wait for the model.
            cancel: stop when this event is set.

        Raises:
            ScoringEndedError: scoring was stopped; its memory is freed.
            ScoringError: the exchange cannot be scored.
        """
        lease = self._lease(cancel, timeout_s)
        earlier = self._earlier(exchange, cancel, timeout_s)
        if earlier is not None:
            return earlier
        return self._score(self._prepared(exchange, lease.check), lease)

    async def ascore(self, exchange: Exchange, *, timeout_s: float | None = None) -> Score:
        """Same as `score`, in a thread; cancelling the task ends the work at the next decoder block."""
        cancel = threading.Event()
        try:
            return await asyncio.to_thread(self.score, exchange, timeout_s=timeout_s, cancel=cancel)
        finally:
            cancel.set()

    def score_spans(self, exchange: Exchange, spans: Sequence[tuple[int, int]]) -> Score:
        """Return the score of an exchange and of spans of its answer; each span takes one more backward pass.

        Args:
            exchange: as for `score`.
            spans: offsets in the answer's text: start and end, which is not included.

        Raises:
            ScoringError: the exchange or a span cannot be scored.
        """
        lease = self._lease(None, None)
        task = self._prepared(exchange, lease.check)
        return self._score(replace(task, spans=place_spans(self._model, exchange, task.tokens, spans)), lease)

    def score_generated(
        self,
        generated: Generated,
        exchange: Exchange | None = None,
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Score:
        """Return the score of an answer that this model has just generated, using the KV cache of the generation.

        Args:
            generated: the model's output.
            exchange: the exchange with question and passages, for the signals that need them.
            timeout_s: as for `score`.
            cancel: as for `score`.

        Raises:
            ScoringEndedError: scoring was stopped.
            ScoringError: the answer cannot be scored.
        """
        lease = self._lease(cancel, timeout_s)
        written_exchange = exchange or Exchange()
        written_exchange = replace(
            written_exchange,
            answer=written_exchange.answer or generated.text,
            prompt_ids=generated.prompt_ids,
            answer_ids=generated.answer_ids,
            on_policy=True,
        )
        return self._score(self._prepared(written_exchange, lease.check), lease, generated.kept)

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        """Return one score or error for each exchange, in order; one bad exchange does not spoil the others.

        Args:
            exchanges: the exchanges to score.
            timeout_s: stop after this many seconds; exchanges without a score get an error.
            cancel: stop when this event is set.
        """
        lease = self._lease(cancel, timeout_s)
        found: dict[int, Score | ScoringError] = {}
        tasks: dict[int, _Task] = {}
        for number, exchange in enumerate(exchanges):
            try:
                earlier = self._earlier(exchange, cancel, timeout_s)
                if earlier is not None:
                    found[number] = earlier
                else:
                    tasks[number] = self._prepared(exchange, lease.check)
            except ScoringError as error:
                found[number] = error
        started = time.perf_counter()
        measured = measure_many(
            lease,
            [task.tokens for task in tasks.values()],
            self._reading,
            parts=[[span.tokens for span in task.spans] for task in tasks.values()],
            max_batch_tokens=self._max_batch_tokens,
        )
        seconds = (time.perf_counter() - started) / max(1, len(tasks))
        if lease.should_end is not None and lease.should_end():  # what was measured before is completed
            lease = self._lease(None, COMPLETING_S)
        for (number, task), one in zip(tasks.items(), measured, strict=True):
            try:
                found[number] = one if isinstance(one, ScoringError) else self._finished(task, one, seconds, lease)
            except ScoringError as error:
                found[number] = error
        return [found[number] for number in range(len(exchanges))]

    def _prepared(self, exchange: Exchange, check: Callable[[], None]) -> _Task:
        check()
        exchange = as_read(exchange)
        tokens = read_exchange(self._model, exchange)
        if self._reading.attention:
            tokens = replace(tokens, parts=prompt_parts(self._model, exchange, tokens.prompt))
        if -self._position > len(tokens.prompt):
            raise PositionOutsidePromptError(self._position, len(tokens.prompt))
        by_sentence = self._granularity == "sentence"
        spans = place_spans(self._model, exchange, tokens, language=self._language, check=check) if by_sentence else ()
        return _Task(exchange, tokens, spans, proxy=not exchange.on_policy)

    def _score(self, task: _Task, lease: ModelLease, kept: KeptCache | None = None) -> Score:
        started = time.perf_counter()
        (one,) = measure_many(
            lease,
            [task.tokens],
            self._reading,
            parts=[[span.tokens for span in task.spans]],
            max_batch_tokens=self._max_batch_tokens,
            kept=kept,
        )
        if isinstance(one, ScoringError):
            raise one
        return self._finished(task, one, time.perf_counter() - started, lease)

    def _lease(self, cancel: threading.Event | None, timeout_s: float | None) -> ModelLease:
        never = cancel is None and timeout_s is None
        return ModelLease(
            self._model.model, self._model.lock, self._blocks, None if never else ending(cancel, timeout_s)
        )

    def _finished(self, task: _Task, measured: Measure, seconds: float, lease: ModelLease) -> Score:
        signals = self._readout.signals(measured, task.exchange, task.tokens, lease)
        return Score(
            method=self._method,
            value=signals[self._method],
            signals=signals,
            fingerprint=self.fingerprint(proxy=task.proxy),
            model=self.name,
            path=measured.path,
            n_prompt_tokens=len(task.tokens.prompt),
            n_answer_tokens=len(task.tokens.answer),
            seconds=seconds,
            spans=self._readout.spans(measured, task.exchange, task.tokens, task.spans, lease.check),
            passage_attention=passage_shares(measured.attention),
            passage_gradients=measured.passage_gradients,
            read_for=read_for(task.exchange) if self._reading.attention else "",
            vectors=self._readout.vectors(measured),
        )

    def _earlier(self, exchange: Exchange, cancel: threading.Event | None, timeout_s: float | None) -> Score | None:
        """Return the exchange's own score, completed by the text signals, if it has all that this scorer gives."""
        score = None if exchange.score is None else only_of(exchange, exchange.score)
        if score is None or score.fingerprint != self.fingerprint() or self._method not in score.signals:
            return None
        if not self._readout.wanted_probes.issubset(score.vectors):
            return None
        check = self._lease(cancel, None if timeout_s is None else max(timeout_s, COMPLETING_S)).check
        signals = {**score.signals, **self._readout.text_signals(exchange, check)}
        return replace(score, method=self._method, value=signals[self._method], signals=signals)


def _one_of(setting: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ScoringSettingError(setting, value, ", ".join(allowed))
    return value


def _band(n_blocks: int, band: tuple[int, int] | None) -> Band:
    if band is None:
        return upper_half(n_blocks)
    first, end = band
    if not 0 <= first < end <= n_blocks:
        raise ScoringSettingError("band", band, f"(first, end) with 0 <= first < end <= {n_blocks}")
    return Band(first, end - 1)
