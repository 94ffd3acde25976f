"""Questions with their answers and labels: fetched from a file or a data set, checked, graded, and sampled again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from semgrad_guard.calibration import LabelledScore
from semgrad_guard.calibration.labels import MIN_LABELS, check_enough
from semgrad_guard.errors import DataFileError, GradedAlikeError, TooFewLabelsError
from semgrad_guard.evaluation.compare.sampled_signals import Sample, sampled_signals
from semgrad_guard.evaluation.labelling import CONTRADICTING, group_of, signals_of, vectors_of
from semgrad_guard.evaluation.rows import row_of
from semgrad_guard.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from semgrad_guard.evaluation.grading import Grader, Similarity
    from semgrad_guard.evaluation.row_files import ResumableFile
    from semgrad_guard.evaluation.rows import Row

HF = "hf:"
QUESTION = ("question", "query", "prompt")
ANSWERS = ("answers", "answer", "correct_answers", "correct_answer", "best_answer", "possible_answers")
PASSAGES = ("passages", "contexts", "context", "support", "documents")
"""Columns that mean question, accepted answers and passages, in the order they are looked for."""


def fetch(name: str, target: Path, fields: Mapping[str, str], limit: int | None) -> Path:
    """Write the questions of a data set as JSONL and return the file; one that is there is kept.

    Args:
        name: `hf:NAME`, `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT`; the split is `validation` when left out. NAME is an
            id of the hub or a folder of data files.
        target: file to write.
        fields: `question`, `answers`, `passages` -> column, where its name is none of the usual ones.
        limit: rows to take, from the first; `None` for all.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataFileError: the data set cannot be loaded, or has no column for questions or for answers.
    """
    if target.exists():
        return target
    library: Any = require("datasets", extra="datasets")
    path, config, split = _parts(name.removeprefix(HF))
    try:
        rows = library.load_dataset(path, config, split=split, streaming=True)
        part = target.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows):
                if number == limit:
                    break
                file.write(json.dumps(_question(row, fields, name, number + 1)) + "\n")
    except (OSError, ValueError, ConnectionError) as error:
        if isinstance(error, DataFileError):
            raise
        advice = "check name and split, or save it once where there is a network"
        raise DataFileError(name, None, f"cannot be loaded: {error}", advice) from error
    part.replace(target)
    return target


def _parts(name: str) -> tuple[str, str | None, str]:
    path, *rest = name.split(":")
    if len(rest) == 2:
        return path, rest[0], rest[1]
    return path, None, rest[0] if rest else "validation"


def _question(row: Mapping[str, Any], fields: Mapping[str, str], name: str, number: int) -> dict[str, Any]:
    """Return one question in the form of a data file."""
    question = _column(row, fields.get("question"), QUESTION, "question", name, number)
    found: dict[str, Any] = {
        "id": row.get("id", number),
        "question": str(row[question]),
        "answers": _texts(row[_column(row, fields.get("answers"), ANSWERS, "answers", name, number)]),
    }
    passages = fields.get("passages") or next((column for column in PASSAGES if column in row), None)
    if passages is not None and (texts := _texts(row[passages])):
        found["passages"] = texts
    return found


def _column(
    row: Mapping[str, Any], given: str | None, usual: Sequence[str], meaning: str, name: str, number: int
) -> str:
    found = given if given is not None else next((column for column in usual if column in row), None)
    if found is None or found not in row:
        there = ", ".join(row)
        raise DataFileError(
            name, number, f"no column for the {meaning} among {there}", f"name it: --field {meaning}=COLUMN"
        )
    return found


def _texts(value: object) -> list[str]:
    """Return texts however a column holds them: one, several, or under `text` as SQuAD does."""
    if isinstance(value, dict):
        return _texts(value.get("text", []))
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    return [] if value is None else [str(value)]


UNANSWERABLE = "unanswerable"
"""Tag of questions without an accepted answer: every answer to them is wrong."""
ANSWERABLE = "answerable"
N_EXAMPLES = 3


@dataclass(slots=True)
class Grading:
    """Labels answered questions one by one; those without an answer or a score are left out and counted."""

    grader: Grader
    alike: Similarity
    """Likeness of sampled answers."""
    same: float
    """Likeness from which two sampled answers say the same."""
    tick: Callable[[], None] = lambda: None
    """Called after each answer."""
    contradicting: frozenset[int] = frozenset()
    """Lines to leave out, because their answer is labelled both right and wrong."""
    n: int = 0
    n_right: int = 0
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Answers that could not be scored, by error."""
    seconds: Counter[str] = field(default_factory=Counter[str])
    """Total seconds of each step."""
    n_timed: Counter[str] = field(default_factory=Counter[str])
    """Answers that each step was timed on."""
    examples: list[str] = field(default_factory=list[str])
    """Some answers beside the accepted ones."""

    def labels(self, file: ResumableFile) -> Iterator[LabelledScore]:
        """Yield the labelled signals of each answer of a file.

        Raises:
            DataFileError: a row has neither label nor accepted answers.
        """
        for number, said in file.lines():
            self.tick()
            if failed := said.get("error"):
                self.left_out[str(failed).split(":", 1)[0]] += 1
                continue
            if number in self.contradicting:
                self.left_out[CONTRADICTING] += 1
                continue
            yield self._label(row_of(said, file.path, number), said)

    def check_both_kinds(self, grader: str) -> None:
        """Refuse to go on when all answers were graded alike.

        Raises:
            GradedAlikeError: only right or only wrong answers.
        """
        if self.n and self.n_right in {0, self.n}:
            raise GradedAlikeError(grader, self.n, right=bool(self.n_right), examples=self.examples)

    def mean_seconds(self) -> dict[str, float]:
        """Return the mean seconds an answer of each step."""
        return {step: total / self.n_timed[step] for step, total in self.seconds.items()}

    def _label(self, row: Row, said: Mapping[str, Any]) -> LabelledScore:
        for step, seconds in said.get("seconds", {}).items():
            self.seconds[step] += seconds
            self.n_timed[step] += 1
        samples = [Sample(**sample) for sample in said.get("samples", ())]
        answer = row.exchange.answer
        correct = self._grade(row, answer)
        sampled: dict[str, float] = {}
        if samples:
            alike = self.alike([answer, *(sample.text for sample in samples)])
            sampled = sampled_signals(answer, samples, alike, self.same)
        return LabelledScore(
            signals={**signals_of(said), **sampled},
            correct=correct,
            fingerprint=row.fingerprint,
            group=group_of(row.exchange, row.group),
            tags=row.exchange.tags | _kind(row),
            vectors=vectors_of(said),
        )

    def _grade(self, row: Row, answer: str) -> bool:
        right = row.correct
        if right is None:
            right = self.grader(row.exchange.question or "", answer, row.answers or ())
        self.n += 1
        self.n_right += right
        if len(self.examples) < N_EXAMPLES:
            self.examples.append(f"{answer[:80]!r} for {list(row.answers or ())[:2]!r}")
        return right


def _kind(row: Row) -> frozenset[str]:
    """Return whether a question has an accepted answer, as a tag, where that is known."""
    if row.answers is None:
        return frozenset()
    return frozenset({ANSWERABLE if row.answers else UNANSWERABLE})


def check_rows(rows: Iterable[Row], path: Path | str) -> None:
    """Check that each row can be asked and graded and that there are enough, before a model is loaded.

    Raises:
        DataFileError: a row has neither label nor accepted answers, or neither question nor prompt.
        TooFewLabelsError: fewer rows or questions than can be compared, or too few that are labelled right or wrong.
    """
    groups, known = list[str](), list[tuple[bool, str]]()
    for row in rows:
        if row.correct is None and row.answers is None:
            advice = "list accepted answers (none for a question that has no answer), or say whether it is right"
            raise DataFileError(path, row.line, "has neither `answers` nor `correct`", advice)
        exchange = row.exchange
        if not (exchange.prompt or exchange.prompt_ids or exchange.question):
            raise DataFileError(path, row.line, "asks nothing", 'add "question", "prompt" or "messages"')
        groups.append(group_of(exchange, row.group) or f"line {row.line}")
        if row.correct is not None:
            known.append((row.correct, groups[-1]))
    if not groups:
        raise DataFileError(path, None, "holds no rows", 'each line is {"question": "...", "answers": ["..."]}')
    if len(groups) < MIN_LABELS:
        raise TooFewLabelsError(len(groups), MIN_LABELS, f"rows of {path} to evaluate")
    if len(known) == len(groups):
        _, number = np.unique([group for _, group in known], return_inverse=True)
        check_enough(np.array([float(right) for right, _ in known]), number)
