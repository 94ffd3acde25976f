"""Turns rows of a data file into labelled scores.

A row without a label is graded against its accepted answers, a row without signals is scored, and a row without an
answer is answered by the model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from semgrad_guard.calibration import LabelledScore
from semgrad_guard.errors import DataFileError, ScoringError
from semgrad_guard.evaluation.grading import GRADERS, words
from semgrad_guard.evaluation.rows import answer_stops, scored_part
from semgrad_guard.signals import is_known

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Exchange, Fingerprint, Score
    from semgrad_guard.models import Generated, LocalModel
    from semgrad_guard.scoring import SemGradScorer


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


MAX_NEW_TOKENS = 64
"""Largest length of an answer that the model writes for a row without one."""


@dataclass(slots=True)
class Labeller:
    """Turns rows into labelled scores one by one; rows that cannot be scored are left out and counted."""

    path: Path | str
    """The data file, for messages."""
    grader: str = "contains"
    """How an answer without a label is compared with the accepted ones; a name of `grading.GRADERS`."""
    model: LocalModel | None = None
    """Writes missing answers; needed, with `scorer`, where rows have no signals."""
    scorer: SemGradScorer | None = None
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Rows that could not be scored, by error."""
    n_graded: int = 0
    """Rows that were labelled by the grader."""
    n_graded_right: int = 0

    def label(self, rows: Iterable[Row]) -> Iterator[LabelledScore]:
        """Yield the labelled score of each row.

        Raises:
            DataFileError: a row has neither label nor accepted answers, or no signals and there is no model.
        """
        for row in rows:
            failed = str(row.fields.get("error", ""))
            if failed and self.model is None and not signals_of(row.fields):
                self.left_out[failed.split(":", 1)[0]] += 1
                continue
            try:
                yield self._label(row)
            except ScoringError as error:
                self.left_out[type(error).__name__] += 1

    def _label(self, row: Row) -> LabelledScore:
        signals, fingerprint, exchange = signals_of(row.fields), row.fingerprint, row.exchange
        if not signals:
            exchange = self._exchange(row)
            score = self._scored(row, exchange)
            signals, fingerprint = dict(score.signals), score.fingerprint
        return LabelledScore(
            signals=signals,
            correct=self.correct(row, exchange),
            fingerprint=fingerprint,
            group=group_of(row.exchange, row.group),
            tags=exchange.tags,
        )

    def _exchange(self, row: Row) -> Exchange:
        """Return the exchange to score; if the row has no answer, the model writes one."""
        if self.model is None:
            raise DataFileError(
                self.path,
                row.line,
                "has no signals",
                "name the model to score it with (--model or --policy), or run `semgrad-guard score` first",
            )
        exchange = row.exchange_for(chat=self.model.is_chat, on_policy=row.is_own)
        if exchange.answer or exchange.answer_ids is not None:
            return exchange
        return self._answered(exchange)

    def _answered(self, exchange: Exchange) -> Exchange:
        """Let the model answer, score the answer from the KV cache of the generation, and return the exchange."""
        model, scorer = self.model, self.scorer
        if model is None or scorer is None:  # pragma: no cover - `_exchange` has checked
            raise AssertionError
        own, written = write_answer(exchange, model, max_new_tokens=MAX_NEW_TOKENS, states_of=scorer.band_blocks)
        return replace(own, score=scorer.score_generated(written, own))

    def _scored(self, row: Row, exchange: Exchange) -> Score:
        """Return the score of an exchange; a row with another position than the scorer's is refused."""
        if self.scorer is None:  # pragma: no cover - a model always comes with its scorer
            raise AssertionError
        score = self.scorer.score(exchange)
        if row.position is not None and f"position {row.position}," not in score.fingerprint.settings:
            raise DataFileError(
                self.path,
                row.line,
                f"names position {row.position}, but the scorer reads {score.fingerprint.settings}",
                "set scorer.position in the policy, or run `semgrad-guard score` first",
            )
        return score

    def correct(self, row: Row, exchange: Exchange) -> bool:
        """Return the row's label, graded where it has none.

        Args:
            row: a row with a label or accepted answers.
            exchange: the row's exchange, with an answer.

        Raises:
            DataFileError: the row has neither, or no answer to compare.
        """
        if row.correct is not None:
            return row.correct
        if row.answers is None:
            raise DataFileError(
                self.path,
                row.line,
                "has neither `correct` nor `answers`",
                "say whether the answer is right, or list accepted answers",
            )
        if not exchange.answer:
            raise DataFileError(
                self.path,
                row.line,
                "has `answers` but no `answer` text to compare",
                "add the answer's text, or `correct`",
            )
        right = GRADERS[self.grader](exchange.answer, row.answers)
        self.n_graded += 1
        self.n_graded_right += right
        return right


def signals_of(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the signals of a scored row: those of its `score`, in `signals`, or each under its own name."""
    inside = scored_part(fields).get("signals")
    pairs = inside.items() if isinstance(inside, dict) else ((k, v) for k, v in fields.items() if is_known(k))
    return {name: float("nan") if value is None else float(value) for name, value in pairs if _is_number(value)}


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def group_of(exchange: Exchange, group: str | None = None) -> str | None:
    """Return the group that fitting and testing must not split: the given one, else by question, else by prompt."""
    if group is not None:
        return f"group {group}"
    if exchange.question:
        return f"question {' '.join(words(exchange.question))}"
    read = exchange.prompt_ids or exchange.prompt
    if not read:
        return None
    return f"prompt {hashlib.sha256(repr(read).encode('utf-8', 'surrogatepass')).hexdigest()}"


@dataclass(slots=True)
class ReviewedAnswers:
    """Turns people's verdicts into labelled scores of one model and setting; others are left out and counted."""

    fingerprint: Fingerprint | None = None
    """The fingerprint that all scores must have; `None` takes that of the first."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Number of verdicts left out, by reason."""

    def label(self, verdicts: Iterable[tuple[Exchange, bool]]) -> Iterator[LabelledScore]:
        """Yield the labelled score of each judged answer."""
        for exchange, correct in verdicts:
            score = exchange.score
            if score is None:
                self.left_out["the answer was not scored"] += 1
            elif self.fingerprint not in {None, score.fingerprint}:
                self.left_out["scored by another model or setting"] += 1
            else:
                self.fingerprint = score.fingerprint
                yield LabelledScore.of(score, correct=correct, group=group_of(exchange), tags=exchange.tags)
