"""A guard's JSONL records and labels for their attempts -> questions with their first and later answers.

Costs are not logged. The time of a first answer is not known either, only that of scoring it; a later answer took from
the decision before it to its own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.labelling import Labeller
from semgrad_guard.evaluation.rows import read_rows
from semgrad_guard.evaluation.simulate.recorded import FIRST, RETRY, RecordedAnswer, RecordedQuestion, route_of
from semgrad_guard.flow import NewAttempt
from semgrad_guard.telemetry.jsonl import read_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from semgrad_guard.flow import Attempt


def is_log(path: Path) -> bool:
    """Return whether a file holds a guard's records: whether its first line is one."""
    try:
        with path.open("rb") as lines:
            said = json.loads(next((line for line in lines if line.strip()), b""))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and "attempts" in said and "version" in said


def read_labels(path: Path, *, grader: str = "contains") -> dict[str, bool]:
    """Return which answers are right, by their ids.

    Args:
        path: JSONL file of rows with the `id` of an attempt and a label: `correct`, or `answer` and accepted `answers`.
            A row whose `correct` is null is left out: nobody decided.
        grader: how answers are compared with accepted ones.

    Raises:
        DataFileError: the file cannot be read, a row has no id or no label, or two rows of one id disagree.
    """
    labeller = Labeller(path=path, grader=grader)
    labels: dict[str, bool] = {}
    for row in read_rows(path):
        name = row.said.get("id")
        if name is None:
            advice = 'a label is such as {"id": "...", "correct": true}, with the id of an attempt in the log'
            raise DataFileError(path, row.line, "has no `id`", advice)
        if row.correct is None and row.answers is None and "correct" in row.said:
            continue
        right = labeller.correct(row, row.exchange)
        if labels.setdefault(str(name), right) != right:
            raise DataFileError(
                path,
                row.line,
                f"calls {name} {_word(right)}, an earlier row {_word(not right)}",
                "keep the one that is true",
            )
    return labels


class RecordedLog:
    """The questions of a guard's records, read one by one, with the rotated files before the newest."""

    def __init__(self, path: Path, labels: Mapping[str, bool]) -> None:
        """Keep where they are.

        Args:
            path: the file that the guard's `telemetry: {jsonl: ...}` names.
            labels: attempt's id -> whether its answer is right.
        """
        self.path = path
        self._labels = labels

    def __iter__(self) -> Iterator[RecordedQuestion]:
        """Yield the questions, oldest first.

        Raises:
            DataFileError: the file cannot be read, or none of its attempts has a label.
        """
        n_attempts = n_labelled = 0
        for record in read_records(self.path):
            answers = tuple(self._answer(record.attempts, i) for i in range(len(record.attempts)))
            n_attempts += len(answers)
            n_labelled += sum(answer.correct is not None for answer in answers)
            if answers:
                yield RecordedQuestion(first=answers[0], later=answers[1:])
        if not n_labelled:
            why = f"none of its {n_attempts:,} attempts has a label"
            raise DataFileError(self.path, None, why, "labels name attempts by the `id` inside `attempts`")

    def _answer(self, attempts: tuple[Attempt, ...], number: int) -> RecordedAnswer:
        attempt, before = attempts[number], attempts[number - 1] if number else None
        exchange, decision = attempt.exchange, attempt.decision
        scoring_s = decision.score.seconds if decision.score else None
        failed = decision.failure if decision.score is None else None
        return RecordedAnswer(
            exchange=replace(exchange, score=decision.score),
            route=_route(before),
            correct=self._labels.get(str(exchange.id)),
            confidence=decision.confidence.value,
            error=f"{failed.type}: {failed.message}" if failed else None,
            scoring_s=scoring_s,
            answer_s=_between(before, attempt, scoring_s or 0.0),
        )


def _route(before: Attempt | None) -> str:
    """Return by which route an attempt came, from the one before it."""
    if before is None:
        return FIRST
    step = before.decision.step
    return route_of(step) if isinstance(step, NewAttempt) else RETRY


def _between(before: Attempt | None, attempt: Attempt, scoring_s: float) -> float | None:
    """Return the seconds from the decision before an attempt to its own, without those of scoring."""
    if before is None or before.judged_at is None or attempt.judged_at is None:
        return None
    return max(0.0, (attempt.judged_at - before.judged_at).total_seconds() - scoring_s)


def _word(right: bool) -> str:  # noqa: FBT001 - the label is the datum itself
    return "right" if right else "wrong"
