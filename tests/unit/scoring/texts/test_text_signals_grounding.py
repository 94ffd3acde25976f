"""How much of an answer stands in the passages."""

from __future__ import annotations

import math

import pytest

from semgrad_guard.flow import Exchange, Passage
from semgrad_guard.scoring.texts.text_signals import grounding_signals

PASSAGES = (Passage("The tower was built in 1889 by Gustave Eiffel."), Passage("Paris lies on the Seine."))


def _signals(answer: str, question: str | None = "Who built the tower?", passages=PASSAGES):
    return grounding_signals(Exchange(answer=answer, question=question, passages=passages))


def test_new_words_count_and_the_questions_words_do_not():
    """An answer that repeats the question has said nothing yet.

    New are gustave, eiffel, london; the first two are in the passages.
    """
    signals = _signals("Gustave Eiffel built the tower in London.")
    assert signals["grounding"] == pytest.approx(2 / 3)
    assert signals["answer_echo"] == pytest.approx(2 / 5)
    assert signals["passage_support"] == 0.0


def test_one_passage_may_hold_all_of_it():
    """Support by a single passage is worth more than words gathered from several."""
    assert _signals("Gustave Eiffel, 1889")["passage_support"] == 0.5
    assert _signals("Eiffel on the Seine")["passage_support"] == 0.0


def test_the_longest_copied_run_is_a_share_of_the_answer():
    """Copied word for word: built in 1889 by gustave eiffel, 6 of 9 words."""
    signals = _signals("It was, I think, built in 1889 by Gustave Eiffel"[8:])
    assert signals["copied_span"] == pytest.approx(6 / 8)


def test_numbers_are_compared_as_numbers():
    """A wrong year is the commonest way to be wrong."""
    passages = (Passage("It has 1,665 steps."),)
    assert _signals("1665 steps", passages=passages)["grounding"] == 1.0
    assert _signals("1664 steps", passages=passages)["grounding"] == 0.5


def test_other_scripts_are_grounded_too():
    """Users do not all write English."""
    passages = (Passage("エッフェル塔は一八八九年に完成した。"),)
    assert _signals("一八八九年", question="いつ?", passages=passages)["grounding"] == 1.0
    assert _signals("二〇〇〇年", question="いつ?", passages=passages)["grounding"] < 0.5


def test_without_passages_nothing_is_claimed_about_them():
    """An absent signal is honest; a made-up 0 would look like a hallucination."""
    assert set(_signals("Eiffel", passages=())) == {"answer_echo", "n_claims", "n_own_words", "n_words"}
    assert _signals("Eiffel", question=None, passages=()) == {"n_claims": 1.0, "n_own_words": 1.0, "n_words": 1.0}


def test_the_question_near_the_answer_counts_by_rarity():
    """Both passages hold `tower` (weight ln 2), one holds `built` (weight ln 3): near Eiffel stand both."""
    passages = (Passage("Eiffel built the tower."), Passage("The tower of Babel is older."))
    both, one = math.log(3) + math.log(2), math.log(2)
    assert _signals("Eiffel", passages=passages)["question_nearby"] == pytest.approx(1.0)
    assert _signals("Babel", passages=passages)["question_nearby"] == pytest.approx(one / both)


def test_far_from_the_answer_the_question_does_not_count():
    """Forty words on, a passage speaks of something else."""
    far = (Passage("Eiffel " + "x1 " * 40 + "built the tower"),)
    near = (Passage("Eiffel " + "x1 " * 37 + "built the tower"),)
    assert _signals("Eiffel", passages=far)["question_nearby"] == 0.0
    assert _signals("Eiffel", passages=near)["question_nearby"] == pytest.approx(1.0)
