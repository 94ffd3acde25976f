"""A guard's records and labels for their attempts become questions."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.simulate import RecordedLog, is_log, read_labels
from semgrad_guard.flow import Failure, FallbackModel, RetryRetrieval
from semgrad_guard.telemetry.jsonl import JsonlSink
from tests.records import make_attempt, make_record

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    """Return a moment after noon."""
    return NOON + timedelta(seconds=seconds)


def chose(step: object, attempt: Any) -> Any:
    """Return the attempt with another step chosen after it."""
    return replace(attempt, decision=replace(attempt.decision, step=step, rule="escalate[0]"))


@pytest.fixture(name="log")
def _log(tmp_path: Path) -> Path:
    """Return a log of a question with a retry and a fallback, and of one that was accepted; texts left out.

    Every score took 0.125 s; decisions fell 0, 3 and 8 seconds after noon.
    """
    first = chose(RetryRetrieval(), make_attempt("a1", 0.2, judged_at=after(0)))
    second = chose(FallbackModel(name="big"), make_attempt("a2", 0.3, judged_at=after(3)))
    sink = JsonlSink(tmp_path / "guard.jsonl", log_text=False)
    sink.emit(make_record(first, second, make_attempt("a3", 0.8, judged_at=after(8))))
    sink.emit(make_record(make_attempt("b1", 0.9)))
    return tmp_path / "guard.jsonl"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_attempts_become_answers_with_their_routes_and_labels(log: Path) -> None:
    """The step chosen after one attempt is the route of the next."""
    long, short = RecordedLog(log, {"a1": False, "a3": True})
    answers = [long.first, *long.later]
    assert [a.route for a in answers] == ["first", "retry_retrieval", "fallback_model:big"]
    assert [a.correct for a in answers] == [False, None, True]
    assert [a.confidence for a in answers] == [0.2, 0.3, 0.8]
    assert answers[0].exchange.score.signals == {"hybridgrad": 0.25, "semgrad": 1.5e-7}
    assert (short.first.correct, short.later) == (None, ())


def test_a_later_answer_took_from_the_decision_before_it_to_its_own(log: Path) -> None:
    """Of 3 and 5 seconds, 0.125 were scoring; how long a first answer took is not logged."""
    question = next(iter(RecordedLog(log, {"a1": True})))
    assert [a.answer_s for a in (question.first, *question.later)] == [None, 2.875, 4.875]
    assert question.first.scoring_s == 0.125


def test_an_attempt_that_could_not_be_scored_stays_so(tmp_path: Path) -> None:
    """Its failure comes back."""
    attempt = make_attempt("a1", None)
    failure = Failure("scoring", "EmptyAnswerError", "the answer is empty")
    failed = replace(attempt, decision=replace(attempt.decision, score=None, failure=failure))
    JsonlSink(tmp_path / "guard.jsonl").emit(make_record(failed))
    (question,) = RecordedLog(tmp_path / "guard.jsonl", {"a1": True})
    assert question.first.error == "EmptyAnswerError: the answer is empty"


def test_a_log_of_which_nothing_is_labelled_is_refused(log: Path) -> None:
    """Most likely the labels name something else."""
    with pytest.raises(DataFileError, match="none of its 4 attempts has a label"):
        list(RecordedLog(log, {"zzz": True}))


def test_a_log_is_told_from_rows(log: Path, tmp_path: Path) -> None:
    """By its first line."""
    assert is_log(log)
    assert not is_log(write(tmp_path / "rows.jsonl", {"question": "q"}))
    assert not is_log(tmp_path / "none.jsonl")


def test_labels_are_read_by_id(tmp_path: Path) -> None:
    """Labels, graded answers, and verdicts that nobody gave."""
    rows = [
        {"id": "a", "correct": True},
        {"id": "b", "answer": "Lyon", "answers": ["Paris"]},
        {"id": "c", "correct": None},
        {"id": "a", "correct": True},
    ]
    assert read_labels(write(tmp_path / "labels.jsonl", *rows)) == {"a": True, "b": False}


@pytest.mark.parametrize(
    ("rows", "line", "why"),
    [
        ([{"correct": True}], 1, "no `id`"),
        ([{"id": "a"}], 1, "neither `correct` nor `answers`"),
        ([{"id": "a", "correct": True}, {"id": "a", "correct": False}], 2, "calls a wrong, an earlier row right"),
    ],
)
def test_labels_that_say_nothing_or_disagree_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], line: int, why: str
) -> None:
    """By line."""
    with pytest.raises(DataFileError) as caught:
        read_labels(write(tmp_path / "labels.jsonl", *rows))
    assert caught.value.line == line
    assert why in caught.value.why
