"""Answered questions -> labelled signals: grades, and the signals of sampled answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from semgrad_guard.calibration import LabelledScore
from semgrad_guard.errors import DataFileError, GradedAlikeError
from semgrad_guard.evaluation.compare.sampled_signals import Sample, sampled_signals
from semgrad_guard.evaluation.labelling import group_of, signals_of
from semgrad_guard.evaluation.rows import row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from semgrad_guard.evaluation.grading import Grader, Similarity
    from semgrad_guard.evaluation.resumable import ResumableFile
    from semgrad_guard.evaluation.rows import Row

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


def check_rows(rows: Iterable[Row], path: Path | str) -> int:
    """Return the number of rows, after checking that each can be asked and graded, before a model is loaded.

    Raises:
        DataFileError: a row has neither label nor accepted answers, or neither question nor prompt.
    """
    n = 0
    for n, row in enumerate(rows, 1):  # noqa: B007 - the last count is the number
        if row.correct is None and row.answers is None:
            advice = "list accepted answers (none for a question that has no answer), or say whether it is right"
            raise DataFileError(path, row.line, "has neither `answers` nor `correct`", advice)
        exchange = row.exchange
        if not (exchange.prompt or exchange.prompt_ids or exchange.question):
            raise DataFileError(path, row.line, "asks nothing", 'add "question", "prompt" or "messages"')
    if not n:
        raise DataFileError(path, None, "holds no rows", 'each line is {"question": "...", "answers": ["..."]}')
    return n
