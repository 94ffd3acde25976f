"""Turns scored rows of a data file into labelled scores, and finds labels that contradict each other.

A row without a label is graded against its accepted answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from semgrad_guard.calibration import LabelledScore
from semgrad_guard.errors import ContradictoryLabelsError, DataFileError
from semgrad_guard.evaluation.grading import GRADERS, words
from semgrad_guard.evaluation.rows import scored_part
from semgrad_guard.signals import is_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Exchange, Fingerprint

HOW_TO_SCORE = (
    "name the model to score it with (--model or --policy; --proxy if an API model answered), "
    "or run `semgrad-guard score` first"
)


@dataclass(slots=True)
class Labeller:
    """Turns rows into labelled scores one by one; rows that cannot be scored are left out and counted."""

    path: Path | str
    """The data file, for messages."""
    grader: str = "contains"
    """How an answer without a label is compared with the accepted ones; a name of `grading.GRADERS`."""
    contradicting: frozenset[int] = frozenset()
    """Lines of rows to leave out, because their answer is labelled both right and wrong."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Rows that were left out, by error or reason."""
    n_graded: int = 0
    """Rows that were labelled by the grader."""
    n_graded_right: int = 0

    def label(self, rows: Iterable[Row]) -> Iterator[LabelledScore]:
        """Yield the labelled score of each row.

        Raises:
            DataFileError: a row has neither label nor accepted answers, or no signals.
        """
        for row in rows:
            if row.line in self.contradicting:
                self.left_out[CONTRADICTING] += 1
                continue
            signals = signals_of(row.fields)
            failed = str(row.fields.get("error", ""))
            if failed and not signals:
                self.left_out[failed.split(":", 1)[0]] += 1
                continue
            if not signals:
                raise DataFileError(self.path, row.line, "has no signals", HOW_TO_SCORE)
            yield LabelledScore(
                signals=signals,
                correct=self.correct(row),
                fingerprint=row.fingerprint,
                group=group_of(row.exchange, row.group),
                tags=row.exchange.tags,
                source=_name(row.fields.get("set")),
                author=_name(row.fields.get("generator")),
                adversarial=_name(row.fields.get("adversarial")),
                vectors=vectors_of(row.fields),
            )

    def label_of(self, row: Row) -> bool | None:
        """Return the row's label without counting it; `None` where it has neither label nor accepted answers."""
        if row.correct is None and row.answers is not None:
            return GRADERS[self.grader](row.exchange.answer, row.answers)
        return row.correct

    def correct(self, row: Row) -> bool:
        """Return the row's label, graded where it has none.

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
        if not row.exchange.answer:
            raise DataFileError(
                self.path,
                row.line,
                "has `answers` but no `answer` text to compare",
                "add the answer's text, or `correct`",
            )
        right = bool(self.label_of(row))
        self.n_graded += 1
        self.n_graded_right += right
        return right


CONTRADICTING = "labelled both right and wrong"
MAX_CONTRADICTING = 0.2
"""Largest share of rows with contradicting labels; with more, the other labels can't be trusted either."""
N_SHOWN = 5
"""Contradictions named in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradictions:
    """Answers of a data file that are labelled both right and wrong."""

    path: str
    lines: tuple[tuple[int, ...], ...]
    """The lines of each such answer."""
    n_rows: int
    """Rows of the file that have a label."""

    @property
    def n_contradicting(self) -> int:
        """The number of rows that contradict another."""
        return sum(map(len, self.lines))

    def all_lines(self) -> frozenset[int]:
        """Return the lines of all rows that contradict another."""
        return frozenset(line for lines in self.lines for line in lines)

    def in_words(self) -> str:
        """Return how many there are, and where the first ones are."""
        shown = "; ".join(" and ".join(map(str, lines)) for lines in self.lines[:N_SHOWN])
        more = "; ..." if len(self.lines) > N_SHOWN else ""
        return (
            f"{self.path}: {self.n_contradicting:,} of {self.n_rows:,} rows label the same answer to the same question "
            f"and passages both right and wrong (lines {shown}{more})"
        )


def contradictions(
    rows: Iterable[Row], path: Path | str, label: Callable[[Row], bool | None] = lambda row: row.correct
) -> Contradictions:
    """Return which answers are labelled both right and wrong: the same question, passages and answer.

    Args:
        rows: the rows of a data file; those without an answer are passed over.
        path: the file, for messages.
        label: returns whether a row's answer is right; `None` where that is not known.

    Raises:
        ContradictoryLabelsError: more than a fifth of the rows contradict each other.
    """
    seen, n_rows = dict[str, dict[bool, list[int]]](), 0
    for row in rows:
        right = label(row) if row.exchange.answer else None
        if right is not None:
            n_rows += 1
            seen.setdefault(_content(row.exchange), {}).setdefault(right, []).append(row.line)
    clashes = [tuple(sorted([*lines[True], *lines[False]])) for lines in seen.values() if len(lines) > 1]
    found = Contradictions(path=str(path), lines=tuple(sorted(clashes)), n_rows=n_rows)
    if found.n_contradicting > MAX_CONTRADICTING * n_rows:
        raise ContradictoryLabelsError(found.in_words(), found.lines, MAX_CONTRADICTING)
    return found


def _content(exchange: Exchange) -> str:
    """Return a digest of what is asked, the passages and the answer; white space does not count.

    Where no passages are known, the prompt counts as well, because it may hold them.
    """
    passages = tuple(passage.text for passage in exchange.passages)
    asked = (exchange.question, *(passages or (exchange.prompt, exchange.prompt_ids)))
    return hashlib.sha256(
        " ".join(repr((*asked, exchange.answer)).split()).encode("utf-8", "surrogatepass")
    ).hexdigest()


def signals_of(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the signals of a scored row: those of its `score`, in `signals`, or each under its own name."""
    inside = scored_part(fields).get("signals")
    pairs = inside.items() if isinstance(inside, dict) else ((k, v) for k, v in fields.items() if is_known(k))
    return {name: float("nan") if value is None else float(value) for name, value in pairs if _is_number(value)}


def vectors_of(fields: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return what probes read, from a scored row; what is no list of numbers is left out."""
    inside = scored_part(fields).get("vectors")
    if not isinstance(inside, dict):
        return {}
    return {
        name: [float("nan") if value is None else float(value) for value in vector]
        for name, vector in inside.items()
        if isinstance(vector, list) and vector and all(_is_number(value) for value in vector)
    }


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


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
