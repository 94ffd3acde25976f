"""Answers and scores the rows of a data set one by one, so that they can be kept as they come."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import EmptyAnswerError, ScoringError
from semgrad_guard.evaluation.row_files import ROW_KEY, digest, is_scored
from semgrad_guard.evaluation.rows import answer_stops
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.scoring.forward_signals import nll_without_passages, p_true
from semgrad_guard.scoring.reading import read_exchange
from semgrad_guard.signals import FREE, MEANING, PROBES
from semgrad_guard.wire import score_fields

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Exchange, Fingerprint, Score
    from semgrad_guard.models import Generated, LocalModel
    from semgrad_guard.models.embedding import SentenceModel


def write_answer(
    exchange: Exchange, model: LocalModel, *, max_new_tokens: int, states_of: Sequence[nn.Module]
) -> tuple[Exchange, Generated]:
    """Return the exchange with the model's greedy answer, and the generation for scoring it.

    Args:
        exchange: an exchange with a prompt and without an answer.
        model: the model.
        max_new_tokens: largest length of the answer.
        states_of: blocks of the scorer's band; see `LocalModel.generate`.
    """
    written = model.generate(
        exchange.prompt,
        prompt_ids=exchange.prompt_ids,
        max_new_tokens=max_new_tokens,
        stop=answer_stops(chat=model.is_chat),
        states_of=states_of,
    )
    own = replace(
        exchange, answer=written.text, prompt_ids=written.prompt_ids, answer_ids=written.answer_ids, on_policy=True
    )
    return own, written


MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to ask the model for beside an answer to each question."""

    max_new_tokens: int = MAX_NEW_TOKENS
    context_gain: bool = True
    """Whether to ask how much likelier the passages make the answer, which takes another forward pass."""
    n_baseline_rows: int | None = None
    """For how many questions, from the first, to ask for the dear baselines: P(True) and samples; `None` for all."""
    n_samples: int = 5
    """Answers drawn at random to each of them; 0 for none."""
    temperature: float = 1.0
    seed: int = 0
    proxy: bool = False
    """Whether another model wrote all answers, whatever the rows say: its token ids are not this model's."""


ONLY_SCORES = Asked(max_new_tokens=64, context_gain=False, n_baseline_rows=0, n_samples=0)
"""Ask for nothing beside answer and score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringModel:
    """The model that answers and scores, by the options of `semgrad-guard evaluate`."""

    model: str
    dtype: str = "float32"
    device: str | None = None
    position: int | None = None
    embedding: SentenceModel | str | None = None
    """A model of sentences, or its name."""

    def scorer(self) -> SemGradScorer:
        """Return its scorer, loaded."""
        from semgrad_guard.models import load_model
        from semgrad_guard.models.embedding import SentenceModel

        embedder = SentenceModel(self.embedding) if isinstance(self.embedding, str) else self.embedding
        local = load_model(self.model, dtype=self.dtype, device=self.device)
        return SemGradScorer(local, position=self.position, signals=(*FREE, *PROBES), embedder=embedder)


class RowAnswering:
    """Answers and scores rows with a model that is loaded when this is made."""

    def __init__(self, model: AnsweringModel | SemGradScorer, asked: Asked) -> None:
        """Load the model, unless it is given with its scorer."""
        self.scorer = model.scorer() if isinstance(model, AnsweringModel) else model
        self._asked = asked

    @property
    def name(self) -> str:
        """Readable name of the model."""
        return self.scorer.name

    @property
    def fingerprint(self) -> Fingerprint:
        """What the scores depend on apart from the rows."""
        return self.scorer.fingerprint()

    def lines(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the output lines of rows; see `answer_rows`."""
        return list(answer_rows(rows, self.scorer, self._asked))


def answer_rows(rows: Iterable[Row], scorer: SemGradScorer, asked: Asked) -> Iterator[dict[str, Any]]:
    """Yield one output object a row, in order: the row's fields, the answer, its score, and seconds by step.

    A row with an answer keeps it, and one with a score keeps that; any other is answered by the model, greedily. One
    that cannot be answered or scored gets `error` in place of a score; it does not end the run.

    Args:
        rows: questions, with passages where there are any.
        scorer: its model writes missing answers.
        asked: what else to ask for.
    """
    for row in rows:
        found = _Answerer(scorer, asked).answered(row)
        given = {name: value for name, value in row.fields.items() if name != "error"}
        yield {**given, **found, ROW_KEY: digest(row)}


class _Answerer:
    """Answers one row, and keeps the time of each step."""

    def __init__(self, scorer: SemGradScorer, asked: Asked) -> None:
        self._model, self._scorer, self._asked = scorer.model, scorer, asked
        self._seconds: dict[str, float] = {}

    def answered(self, row: Row) -> dict[str, Any]:
        """Return answer, signals and costs of one row."""
        exchange = self._exchange(row)
        generated = None
        if not (exchange.answer or exchange.answer_ids or self._asked.proxy or is_scored(row)):
            with self._timed("answer"):
                exchange, generated = write_answer(
                    exchange,
                    self._model,
                    max_new_tokens=self._asked.max_new_tokens,
                    states_of=self._scorer.band_blocks,
                )
        found = _answer_fields(generated)
        try:
            score = self._recorded(row) or self._new_score(exchange, generated)
        except ScoringError as error:
            return {**found, "error": f"{type(error).__name__}: {error}"}
        dear = self._context_gain(exchange, score["signals"])
        if self._asked.n_baseline_rows is None or row.line <= self._asked.n_baseline_rows:
            if "p_true" not in score["signals"]:
                dear |= self._p_true(exchange)
            if self._asked.n_samples and "samples" not in row.fields:
                found["samples"] = self._samples(exchange, generated, row.line)
        found["score"] = {**score, "signals": {**score["signals"], **dear}}
        return {**found, "seconds": {name: round(seconds, 6) for name, seconds in self._seconds.items()}}

    def _exchange(self, row: Row) -> Exchange:
        if not self._asked.proxy:
            return row.exchange_for(chat=self._model.is_chat, on_policy=row.is_own)
        return replace(row.exchange_for(chat=self._model.is_chat), prompt_ids=None, answer_ids=None)

    def _recorded(self, row: Row) -> dict[str, Any] | None:
        """Return the score that a row has, with the seconds that were measured then; `None` where it has none."""
        if not is_scored(row):
            return None
        score: dict[str, Any] = row.fields["score"]
        measured = row.fields.get("seconds")
        self._seconds |= measured if isinstance(measured, dict) else {"score": score.get("seconds", 0.0)}
        return score

    def _new_score(self, exchange: Exchange, generated: Generated | None) -> dict[str, Any]:
        """Return the fields of the score of an exchange."""
        started = time.perf_counter()
        score = self._score(exchange, generated)
        self._seconds["score"] = score.seconds
        if not score.signals.keys().isdisjoint(MEANING):
            self._seconds["embedding"] = time.perf_counter() - started - score.seconds
        return score_fields(score)

    def _score(self, exchange: Exchange, generated: Generated | None) -> Score:
        if generated is None:
            return self._scorer.score(exchange)
        if not generated.text.strip():
            raise EmptyAnswerError
        return self._scorer.score_generated(generated, exchange)

    def _context_gain(self, exchange: Exchange, signals: Mapping[str, float]) -> dict[str, float]:
        if not (self._asked.context_gain and exchange.passages) or "context_gain" in signals:
            return {}
        with self._timed("context_gain"):
            tokens = read_exchange(self._model, exchange)
            without = nll_without_passages(self._model, exchange, tokens)
        return {} if without is None else {"context_gain": float(without.mean()) - signals["mean_nll"]}

    def _p_true(self, exchange: Exchange) -> dict[str, float]:
        with self._timed("p_true"):
            chance = p_true(self._model, exchange)
        return {} if chance is None else {"p_true": chance}

    def _samples(self, exchange: Exchange, generated: Generated | None, line: int) -> list[dict[str, Any]]:
        """Return answers drawn at random; the prompt that was just answered is not read again."""
        prompt = exchange.prompt_ids or self._model.encode_prompt(exchange.prompt, as_chat=not exchange.on_policy)
        with self._timed("samples"):
            drawn = self._model.generate_batch(
                prompt_ids=[prompt] * self._asked.n_samples,
                max_new_tokens=self._asked.max_new_tokens,
                temperature=self._asked.temperature,
                stop=answer_stops(chat=self._model.is_chat),
                seed=self._asked.seed + line,
                kept=generated.kept if generated else None,
            )
        return [{"text": one.text, "mean_nll": fmean(one.nlls)} for one in drawn if one.nlls]

    @contextmanager
    def _timed(self, step: str) -> Generator[None]:
        started = time.perf_counter()
        yield
        self._seconds[step] = time.perf_counter() - started


def _answer_fields(generated: Generated | None) -> dict[str, Any]:
    if generated is None:
        return {}
    return {
        "answer": generated.text,
        "answer_ids": list(generated.answer_ids),
        "finish_reason": generated.finish_reason,
    }
