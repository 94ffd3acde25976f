"""Rows of a data file become labelled scores, whatever they lack."""

from __future__ import annotations

import json
import math

import pytest

from semgrad_guard.errors import ContradictoryLabelsError, DataFileError
from semgrad_guard.evaluation.labelling import Labeller, ReviewedAnswers, contradictions, group_of, signals_of
from semgrad_guard.evaluation.rows import Row, parse_row
from semgrad_guard.flow import Exchange, Fingerprint, Score
from semgrad_guard.wire import score_fields

FINGERPRINT = {
    "model": "m",
    "dtype": "float32",
    "template": "t",
    "settings": "position -3, blocks 1 to 2",
    "proxy": False,
}


def row(**fields: object) -> Row:
    """Return the row of one line."""
    return parse_row(json.dumps(fields), "data.jsonl", 7)


def test_a_scored_row_needs_no_model() -> None:
    """Signals, fingerprint, label and tags come from the row."""
    scored = row(question="Q", answer="A", correct=True, semgrad=0.5, mean_nll=1, fingerprint=FINGERPRINT, tags=["a"])
    (label,) = Labeller(path="d").label([scored])
    assert label.signals == {"semgrad": 0.5, "mean_nll": 1.0}
    assert label.fingerprint == Fingerprint(**FINGERPRINT)
    assert (label.correct, label.tags) == (True, {"a"})


def test_signals_are_found_by_their_names_or_in_their_own_object() -> None:
    """What else a row says is no signal; a null is NaN, which the fit drops and counts."""
    found = signals_of(
        {"semgrad@-2": 1, "mean_nll": None, "score": 9.0, "seconds": 2.0, "position": -3, "correct": True}
    )
    assert found["semgrad@-2"] == 1.0
    assert math.isnan(found["mean_nll"])
    assert set(found) == {"semgrad@-2", "mean_nll"}
    assert signals_of({"signals": {"own": 2, "note": "x"}, "mean_nll": 1.0}) == {"own": 2.0}


def test_the_score_object_of_a_row_counts_before_what_stands_beside_it() -> None:
    """A file that version 0.1 scored may be scored again: its old signals are still in the rows."""
    score = Score(
        method="semgrad", value=0.5, signals={"semgrad": 0.5}, fingerprint=Fingerprint(**FINGERPRINT), model="m"
    )
    old = {"semgrad": 9.0, "fingerprint": {**FINGERPRINT, "model": "old"}}
    (label,) = Labeller(path="d").label([row(question="Q", answer="A", correct=True, **old, score=score_fields(score))])
    assert label.signals == {"semgrad": 0.5}
    assert label.fingerprint == Fingerprint(**FINGERPRINT)


def test_an_object_of_the_user_s_own_under_score_is_no_score() -> None:
    """The signals and their fingerprint then stand in the row."""
    own = row(question="Q", answer="A", correct=True, score={"bleu": 0.1}, semgrad=2.0, fingerprint=FINGERPRINT)
    (label,) = Labeller(path="d").label([own])
    assert (label.signals, label.fingerprint) == ({"semgrad": 2.0}, Fingerprint(**FINGERPRINT))


def test_an_answer_without_label_is_graded() -> None:
    """Against the accepted answers, by the grader that was asked for."""
    scored = [
        row(question="Q1", answer="It is Paris.", answers=["Paris"], semgrad=1.0),
        row(question="Q2", answer="Rome", answers=["Paris"], semgrad=1.0),
    ]
    labeller = Labeller(path="d")
    assert [label.correct for label in labeller.label(scored)] == [True, False]
    assert (labeller.n_graded, labeller.n_graded_right) == (2, 1)
    assert [label.correct for label in Labeller(path="d", grader="exact").label(scored)] == [False, False]


def test_a_label_comes_before_the_grader() -> None:
    """A person's word counts."""
    (label,) = Labeller(path="d").label([row(question="Q", answer="x", answers=["y"], correct=True, semgrad=1.0)])
    assert label.correct


def test_unanswerable_questions_have_no_right_answer() -> None:
    """An empty list of accepted answers is a statement."""
    (label,) = Labeller(path="d").label([row(question="Q", answer="x", answers=[], semgrad=1.0)])
    assert not label.correct


def test_a_row_without_label_is_named_by_its_line() -> None:
    """And the message says what is missing."""
    with pytest.raises(DataFileError, match="neither `correct` nor `answers`") as caught:
        list(Labeller(path="data.jsonl").label([row(question="Q", answer="x", semgrad=1.0)]))
    assert (caught.value.path, caught.value.line) == ("data.jsonl", 7)


def test_a_row_without_answer_text_cannot_be_graded() -> None:
    """Token ids alone are not compared with words."""
    with pytest.raises(DataFileError, match="no `answer` text"):
        list(Labeller(path="d").label([row(question="Q", answer_ids=[1], answers=["x"], semgrad=1.0)]))


def test_a_row_without_signals_needs_a_model() -> None:
    """The message names the two ways on."""
    with pytest.raises(DataFileError, match=r"--model .*semgrad-guard score"):
        list(Labeller(path="d").label([row(question="Q", answer="x", correct=True)]))


def test_a_row_that_scoring_gave_up_on_is_left_out_and_counted() -> None:
    """`semgrad-guard score` writes its error into the row."""
    labeller = Labeller(path="d")
    assert list(labeller.label([row(prompt="p", answer="", correct=True, error="EmptyAnswerError: empty")])) == []
    assert labeller.left_out == {"EmptyAnswerError": 1}


def numbered(*fields: dict) -> list[Row]:
    """Return the rows of a file, with their line numbers."""
    return [parse_row(json.dumps(one), "data.jsonl", number) for number, one in enumerate(fields, 1)]


FAIR = [{"question": f"q {i}", "passages": ["p"], "answer": "a", "correct": True} for i in range(20)]
RIGHT = {"question": "Who?", "passages": ["It was Eiffel."], "answer": "Eiffel", "correct": True}
WRONG = {**RIGHT, "correct": False}


def test_the_same_answer_labelled_right_and_wrong_is_found_by_its_lines() -> None:
    """The first and the last of these rows cannot both be true."""
    found = contradictions(numbered(RIGHT, *FAIR, WRONG), "data.jsonl")
    assert (found.lines, found.n_contradicting, found.n_rows) == (((1, 22),), 2, 22)
    assert "data.jsonl: 2 of 22 rows" in found.in_words()
    assert "lines 1 and 22" in found.in_words()


@pytest.mark.parametrize(
    "other", [{"answer": "Gustave Eiffel"}, {"passages": ["It was Bartholdi."]}, {"question": "Who else?"}]
)
def test_another_question_passage_or_answer_is_no_contradiction(other: dict) -> None:
    """A label is about all three."""
    assert contradictions(numbered(RIGHT, *FAIR, {**WRONG, **other}), "f").lines == ()


def test_prompts_tell_rows_apart_where_no_passages_are_known() -> None:
    """They may hold other passages."""
    one, two = ({"question": "Who?", "prompt": p, "answer": "a", "correct": p == "x"} for p in "xy")
    assert contradictions(numbered(one, *FAIR, two), "f").lines == ()
    assert contradictions(numbered(one, *FAIR, {**two, "prompt": "x"}), "f").lines == ((1, 22),)


def test_graded_rows_contradict_each_other_too() -> None:
    """Two lists of accepted answers for one question."""
    asked = {"question": "Who?", "passages": ["p"], "answer": "Eiffel"}
    rows = numbered({**asked, "answers": ["Eiffel"]}, *FAIR, {**asked, "answers": ["Bartholdi"]})
    assert contradictions(rows, "f").lines == ()
    assert contradictions(rows, "f", Labeller(path="f").label_of).lines == ((1, 22),)


def test_many_contradictions_end_the_run() -> None:
    """With more than a fifth, the other labels can't be trusted either."""
    contradictions(numbered(RIGHT, WRONG, *FAIR[:8]), "f")
    with pytest.raises(ContradictoryLabelsError, match="2 of 9 rows") as caught:
        contradictions(numbered(RIGHT, WRONG, *FAIR[:7]), "f")
    assert (caught.value.lines, caught.value.allowed) == (((1, 2),), 0.2)


def test_contradicting_rows_are_left_out_and_counted() -> None:
    """The others keep their labels."""
    rows = numbered(*({**one, "semgrad": 1.0, "fingerprint": FINGERPRINT} for one in (RIGHT, FAIR[0], WRONG)))
    labeller = Labeller(path="f", contradicting=frozenset({1, 3}))
    assert [label.group for label in labeller.label(rows)] == ["question q 0"]
    assert labeller.left_out == {"labelled both right and wrong": 2}


def group(**fields: object) -> str | None:
    """Return the group of a row."""
    one = row(**fields)
    return group_of(one.exchange, one.group)


def test_identical_questions_share_a_group() -> None:
    """Whatever their punctuation and case; a group that is given comes first, a prompt is the last resort."""
    assert group(question="Who is it?") == group(question="who is it", answer="x")
    assert group(question="Who?", group=3) == group(question="Where?", group="3")
    assert group(prompt="a") == group(prompt="a", answer="z")
    assert group(prompt="a") != group(prompt="b")
    assert group(answer="x") is None


def test_a_prompt_of_lone_surrogates_has_a_group() -> None:
    """Text that no encoding can hold still has an identity."""
    assert group(prompt="\ud800") is not None


def judged(model: str, *, question: str = "Q") -> Exchange:
    """Return a scored exchange as a review queue gives it back."""
    score = Score(
        method="semgrad",
        value=2.0,
        signals={"mean_nll": 1.0},
        fingerprint=Fingerprint(**{**FINGERPRINT, "model": model}),
        model=model,
    )
    return Exchange(prompt="p", answer="a", question=question, tags=frozenset({"t"}), score=score)


def test_verdicts_become_labels() -> None:
    """With the signals, question and tags that the guard had when it asked a person."""
    (label,) = ReviewedAnswers().label([(judged("m"), True)])
    assert label.signals == {"semgrad": 2.0, "mean_nll": 1.0}
    assert (label.correct, label.group, label.tags) == (True, "question q", {"t"})


def test_verdicts_on_other_models_answers_are_left_out_and_counted() -> None:
    """A fallback model's answer says nothing about this model's scores."""
    reviewed = ReviewedAnswers()
    verdicts = [(judged("m"), True), (judged("fallback"), True), (Exchange(prompt="p", answer="a"), False)]
    assert len(list(reviewed.label(verdicts))) == 1
    assert reviewed.left_out == {"scored by another model or setting": 1, "the answer was not scored": 1}
