"""Answers to all rows of a data set, written once and kept in a file that can be gone on with."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from semgrad_guard.errors import DataFileError, EmptyAnswerError, ScoringError
from semgrad_guard.evaluation.labelling import write_answer
from semgrad_guard.evaluation.rows import ADVICE, ROW_KEY, ResumableFile, answer_stops, digest, read_rows, scored_part
from semgrad_guard.scoring.forward_signals import context_gain, p_true
from semgrad_guard.scoring.reading import read_exchange
from semgrad_guard.signals import MEANING
from semgrad_guard.wire import score_fields

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Exchange, Fingerprint, Score
    from semgrad_guard.models import Generated
    from semgrad_guard.scoring import SemGradScorer


class AnswersFile(ResumableFile):
    """The file with the answers that `evaluate` has so far."""

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        """Read what an earlier run left.

        Args:
            path: the file.
            fingerprint: what the scores of this run depend on.

        Raises:
            DataFileError: the file holds something else, or answers of another model or setting.
        """
        self._fingerprint = asdict(fingerprint)
        super().__init__(path)

    @override
    def take(self, line: dict[str, Any], number: int) -> None:
        there = scored_part(line).get("fingerprint")
        if there is not None and {**there, "proxy": False} != self._fingerprint:
            raise DataFileError(self.path, number, "was answered by another model or setting", ADVICE)

    def pending(self, data: Path, limit: int | None = None) -> Iterator[Row]:
        """Yield the first `limit` rows of a data file that are not in this file yet."""
        return (row for row in islice(read_rows(data), limit) if digest(row) not in self.done)


MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to ask the model for beside an answer to each question."""

    max_new_tokens: int = MAX_NEW_TOKENS
    n_baseline_rows: int | None = None
    """For how many questions, from the first, to ask for the dear baselines: P(True) and samples; `None` for all."""
    n_samples: int = 5
    """Answers drawn at random to each of them; 0 for none."""
    temperature: float = 1.0
    seed: int = 0


def answer_rows(rows: Iterable[Row], scorer: SemGradScorer, asked: Asked) -> Iterator[dict[str, Any]]:
    """Yield one output object a row, in order: what it said, the answer, its score, and seconds by step.

    A row with an answer keeps it; any other is answered by the model, greedily. One that cannot be answered or scored
    gets `error` in place of a score; it does not end the run.

    Args:
        rows: questions, with passages where there are any.
        scorer: its model writes missing answers.
        asked: what else to ask for.
    """
    for row in rows:
        found = _Answerer(scorer, asked).answered(row)
        yield {**row.fields, **found, ROW_KEY: digest(row)}


class _Answerer:
    """Answers one row, and keeps the time of each step."""

    def __init__(self, scorer: SemGradScorer, asked: Asked) -> None:
        self._model, self._scorer, self._asked = scorer.model, scorer, asked
        self._seconds: dict[str, float] = {}

    def answered(self, row: Row) -> dict[str, Any]:
        """Return answer, signals and costs of one row."""
        exchange = row.exchange_for(chat=self._model.is_chat, on_policy=row.is_own)
        generated = None
        if not exchange.answer and exchange.answer_ids is None:
            with self._timed("answer"):
                exchange, generated = write_answer(
                    exchange,
                    self._model,
                    max_new_tokens=self._asked.max_new_tokens,
                    states_of=self._scorer.band_blocks,
                )
        found = _answer_fields(generated)
        started = time.perf_counter()
        try:
            score = self._score(exchange, generated)
        except ScoringError as error:
            return {**found, "error": f"{type(error).__name__}: {error}"}
        self._seconds["score"] = score.seconds
        if not score.signals.keys().isdisjoint(MEANING):
            self._seconds["embedding"] = time.perf_counter() - started - score.seconds
        dear = self._context_gain(exchange, score)
        if self._asked.n_baseline_rows is None or row.line <= self._asked.n_baseline_rows:
            dear |= self._p_true(exchange)
            if self._asked.n_samples:
                found["samples"] = self._samples(exchange, generated, row.line)
        found["score"] = score_fields(replace(score, signals={**score.signals, **dear}))
        return {**found, "seconds": {name: round(seconds, 6) for name, seconds in self._seconds.items()}}

    def _score(self, exchange: Exchange, generated: Generated | None) -> Score:
        if generated is None:
            return self._scorer.score(exchange)
        if not generated.text.strip():
            raise EmptyAnswerError
        return self._scorer.score_generated(generated, exchange)

    def _context_gain(self, exchange: Exchange, score: Score) -> dict[str, float]:
        if not exchange.passages:
            return {}
        with self._timed("context_gain"):
            tokens = read_exchange(self._model, exchange)
            gain = context_gain(self._model, exchange, tokens, score.signals["mean_nll"])
        return {} if gain is None else {"context_gain": gain}

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
