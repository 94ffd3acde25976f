"""Graders that look at meaning, and models as judges."""

from __future__ import annotations

import json

import numpy as np
import pytest

from semgrad_guard.errors import DataFileError, TooFewLabelsError
from semgrad_guard.evaluation import grading
from semgrad_guard.evaluation.compare.labelled import check_rows
from semgrad_guard.evaluation.rows import Row, parse_row
from tests.models_for_tests import local_model


def letters(texts) -> np.ndarray:
    """Return likeness by first letters: a stand-in for an embedding whose likeness is known."""
    return np.array([[1.0 if a[:1] == b[:1] else 0.3 for b in texts] for a in texts])


def test_an_answer_like_any_accepted_one_is_right() -> None:
    """The best of the accepted answers counts."""
    grade = grading.by_meaning(letters, 0.8)
    assert grade("q", "apple", ["banana", "avocado"])
    assert not grade("q", "cherry", ["banana", "avocado"])


def test_without_accepted_answers_every_answer_is_wrong() -> None:
    """The question has none; and there is nothing to ask about."""

    def never(_: str) -> str:
        raise AssertionError

    assert not grading.by_meaning(letters)("q", "a", [])
    assert not grading.by_judge(never)("q", "a", [])
    assert not grading.by_words("contains")("q", "a", [])


@pytest.mark.parametrize(("reply", "right"), [("Yes", True), (" yes, it does", True), ("No", False), ("", False)])
def test_a_judges_reply_is_read_from_its_first_word(*, reply: str, right: bool) -> None:
    """Anything but a yes is a no."""
    asked: list[str] = []
    grade = grading.by_judge(lambda text: asked.append(text) or reply)
    assert grade("Who?", "Gustave", ["Eiffel", "Gustave Eiffel"]) is right
    assert "Accepted answers: Eiffel | Gustave Eiffel\nProposed answer: Gustave" in asked[0]


def test_a_local_model_can_judge() -> None:
    """It replies in a few tokens, whatever they are."""
    assert isinstance(grading.local_judge(local_model())("Question: q"), str)


def rows_of(*fields: dict) -> list[Row]:
    """Return the rows of a file."""
    return [parse_row(json.dumps(one), "f", number) for number, one in enumerate(fields, 1)]


GOOD = [{"question": f"q {i}", "answers": []} for i in range(20)]


@pytest.mark.parametrize(
    ("line", "why"),
    [({"question": "q"}, "has neither `answers` nor `correct`"), ({"answers": ["a"]}, "asks nothing")],
)
def test_rows_are_checked_before_a_model_is_loaded(line: dict, why: str) -> None:
    """An hour of answers must not end in line 900."""
    check_rows(rows_of(*GOOD), "f")
    with pytest.raises(DataFileError, match=why) as caught:
        check_rows(rows_of(*GOOD, line), "f")
    assert caught.value.line == 21


def test_too_few_rows_are_refused_before_any_is_answered() -> None:
    """Whatever the answers will be, they could not be compared."""
    with pytest.raises(TooFewLabelsError) as caught:
        check_rows(rows_of(*GOOD[:19]), "f")
    assert (caught.value.n, caught.value.needed) == (19, 20)


def test_labels_of_one_kind_are_refused_before_any_row_is_answered() -> None:
    """Where all labels are known, so is what they will be worth: here only two questions have a right answer."""
    few = rows_of(*({"question": f"q {i % 12}", "correct": i % 12 < 2} for i in range(36)))
    with pytest.raises(TooFewLabelsError, match="questions with a right answer") as caught:
        check_rows(few, "f")
    assert caught.value.n == 2


def test_an_empty_file_is_refused() -> None:
    """There is nothing to evaluate."""
    with pytest.raises(DataFileError, match="holds no rows"):
        check_rows([], "f")
