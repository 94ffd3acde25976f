"""Rows of a file become questions with their first and later answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.simulate import RecordedQuestion, RecordedRows
from semgrad_guard.flow import Fingerprint, SpanScore
from semgrad_guard.wire import score_fields
from tests.records import make_score

if TYPE_CHECKING:
    from pathlib import Path

FINGERPRINT = {"model": "m", "dtype": "float32", "template": "t", "settings": "s", "proxy": False}


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Any:
    """Return a way to read rows from a file."""

    def read(*rows: dict[str, Any] | str, **options: Any) -> list[RecordedQuestion]:
        path = tmp_path / "data.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = RecordedRows(path, **options)
        questions = list(found)
        assert found.n_questions == len(questions)
        return questions

    return read


def row(**fields: Any) -> dict[str, Any]:
    """Return a labelled row with a confidence."""
    return {"question": "Who discovered radium?", "answer": "Marie Curie", "confidence": 0.5, "correct": True, **fields}


def test_rows_without_attempt_and_route_are_questions_of_their_own(read: Any) -> None:
    """Also when they ask the same: an ordinary labelled file is simulated as it is."""
    found = read(row(), row(correct=False))
    assert [(q.first.correct, q.later) for q in found] == [(True, ()), (False, ())]
    assert found[0].group == found[1].group


def test_later_answers_join_their_question_wherever_they_stand(read: Any) -> None:
    """Before it, after others, and in the order of their attempts; case and marks of the question do not matter."""
    fallback = row(attempt=3, route="fallback_model:big", confidence=0.3, question="who discovered radium")
    retry = row(attempt=2, confidence=0.2)
    found = read(fallback, row(question="Another?"), "", row(confidence=0.1), retry)
    assert [len(q.later) for q in found] == [0, 2]
    assert [(a.confidence, a.route) for a in (found[1].first, *found[1].later)] == [
        (0.1, "first"),
        (0.2, "retry_retrieval"),
        (0.3, "fallback_model:big"),
    ]


def test_groups_tell_equal_questions_apart(read: Any) -> None:
    """Two users asked the same, and each got a retry."""
    found = read(*(row(group=g, attempt=a, confidence=round(g / 10 + a / 100, 2)) for a in (1, 2) for g in (1, 2)))
    assert [(q.first.confidence, [a.confidence for a in q.later]) for q in found] == [(0.11, [0.12]), (0.21, [0.22])]


def test_a_scored_row_keeps_all_that_a_guard_would_see(read: Any) -> None:
    """Signals with their fingerprint, sentences, tags, metadata, times and costs."""
    spans = [{"start": 0, "end": 5, "signals": {"semgrad": 2.0}, "confidence": 0.25}]
    said = {"semgrad": 1.5, "method": "semgrad", "score": 1.5, "fingerprint": FINGERPRINT, "spans": spans}
    known = {"tags": ["medical"], "metadata": {"audience": "public"}, "seconds": 0.5, "answer_s": 2, "cost": 3}
    (question,) = read({"question": "q", "answer": "a", "correct": True, **said, **known})
    first, exchange = question.first, question.first.exchange
    assert (exchange.score.method, exchange.score.value, exchange.score.signals) == ("semgrad", 1.5, {"semgrad": 1.5})
    assert exchange.score.fingerprint == Fingerprint(**FINGERPRINT)
    assert exchange.score.spans == (SpanScore(0, 5, {"semgrad": 2.0}, 0.25),)
    assert (exchange.tags, exchange.metadata) == ({"medical"}, {"audience": "public"})
    assert (first.scoring_s, first.answer_s, first.cost, first.confidence) == (0.5, 2.0, 3.0, None)


def test_a_row_with_a_score_object_keeps_all_that_a_guard_would_see(read: Any) -> None:
    """As `score` writes it; `evaluate` puts its seconds by step beside it."""
    score = make_score()
    known = {"question": "q", "answer": "a", "correct": True, "confidence": 0.75, "seconds": {"answer": 2.0}}
    (question,) = read({**known, "score": score_fields(score)})
    assert question.first.exchange.score == score
    assert (question.first.scoring_s, question.first.confidence) == (score.seconds, 0.75)


def test_answers_are_graded_where_there_is_no_label(read: Any) -> None:
    """By the grader that is asked for."""
    graded = {"question": "q", "answer": "It was Marie Curie.", "answers": ["Marie Curie"], "confidence": 0.5}
    assert read(graded)[0].first.correct is True
    assert read(graded, grader="exact")[0].first.correct is False


def test_a_row_whose_scoring_failed_is_kept(read: Any) -> None:
    """A guard meets such answers too: `on_error` decides."""
    (question,) = read({"question": "q", "answer": "a", "correct": True, "error": "NonFiniteScoreError: semgrad"})
    assert question.first.error == "NonFiniteScoreError: semgrad"
    assert question.first.exchange.score is None


def test_an_unscored_fallback_needs_no_signals(read: Any) -> None:
    """The policy passes its answers as they are."""
    passed = {
        "question": row()["question"],
        "answer": "a",
        "correct": True,
        "attempt": 2,
        "route": "fallback_model:big",
    }
    assert read(row(), passed, unscored=frozenset({"fallback_model:big"}))[0].later[0].exchange.score is None
    with pytest.raises(DataFileError, match="neither signals nor a confidence"):
        read(row(), passed)


@pytest.mark.parametrize(
    ("rows", "line", "why"),
    [
        ([{"question": "q", "answer": "a", "confidence": 0.5}], 1, "neither `correct` nor `answers`"),
        ([row(), {"question": "q", "answer": "a", "correct": True}], 2, "neither signals nor a confidence"),
        ([row(), row(question="Another?", attempt=2)], 2, "without a first one"),
        ([row(), row(), row(attempt=2)], 2, "another first answer to the question of line 1"),
        ([row(), row(attempt=2, question=None)], 2, "names neither `question` nor `group`"),
        ([row(attempt=2)], None, "holds no first answer"),
        ([row(attempt=1, route="retry_retrieval")], 1, "says attempt 1 and route retry_retrieval"),
        ([row(attempt=2, route="first")], 1, "says attempt 2 and route first"),
        ([row(route="retry")], 1, "`route`"),
        ([row(cost=-1)], 1, "`cost`"),
        ([row(seconds=float("inf"))], 1, "`seconds`"),
        ([row(confidence=1.5)], 1, "`confidence`"),
        ([row(attempt=0)], 1, "`attempt`"),
        ([row(score={**score_fields(make_score()), "path": "sideways"})], 1, "`score`: `path`"),
        (['{"question": '], 1, "not JSON"),
    ],
)
def test_what_cannot_be_used_is_named_by_line(read: Any, rows: list[Any], line: int | None, why: str) -> None:
    """What was seen, and where."""
    with pytest.raises(DataFileError) as caught:
        read(*rows)
    assert caught.value.line == line
    assert why in caught.value.why
