"""Text comparisons with accepted answers."""

from __future__ import annotations

import pytest

from semgrad_guard.evaluation.grading import contains_answer, exact_match, once, token_f1


@pytest.mark.parametrize(
    ("answer", "references", "right"),
    [
        ("It was discovered in 1898.", ["1898"], True),
        ("It was discovered in 18980.", ["1898"], False),
        ("The Beatles!", ["beatles"], True),
        ("a cobalt mine", ["Co"], False),
        ("Sir William Ramsay", ["William  Ramsay"], True),
        ("Ramsay, William", ["William Ramsay"], False),
        ("über alles", ["ÜBER"], True),
        ("3.14 is pi", ["3.14"], True),
        ("no", [], False),
        ("", ["x"], False),
        ("anything", ["!!"], False),
        ("vitamin A", ["A"], True),
    ],
)
def test_containment_compares_whole_words(answer: str, references: list[str], right: bool) -> None:
    """Marks, case and articles do not count; parts of words do not match."""
    assert contains_answer(answer, references) is right


def test_exact_match_wants_nothing_else() -> None:
    """The strict grader."""
    assert exact_match("The year 1898.", ["year 1898"])
    assert not exact_match("In 1898", ["1898"])


def test_f1_is_the_harmonic_mean_of_shared_words() -> None:
    """Said 4 words, wanted 2, shared 2: precision 1/2, recall 1, F1 2/3."""
    assert token_f1("William Ramsay found it", ["William Ramsay"]) == pytest.approx(2 / 3)
    assert token_f1("x", []) == 0.0


def test_each_answer_is_graded_once() -> None:
    """A judge takes seconds or costs money; another question or reference is another grade."""
    asked: list[tuple[str, str, tuple[str, ...]]] = []

    def judge(question: str, answer: str, references: object, /) -> bool:
        asked.append((question, answer, tuple(references)))  # type: ignore[arg-type]
        return answer == "Paris"

    grade = once(judge)
    assert [grade("q", "Paris", ["Paris"]), grade("q", "Paris", ("Paris",)), grade("r", "Lyon", ["Paris"])] == [
        True,
        True,
        False,
    ]
    assert asked == [("q", "Paris", ("Paris",)), ("r", "Lyon", ("Paris",))]
