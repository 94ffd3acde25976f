"""What an answer says that its passages do not."""

from __future__ import annotations

import pytest

from semgrad_guard.flow import Exchange, Passage
from semgrad_guard.scoring.texts.novelty import PassageForms, novelty_signals, stem_of
from semgrad_guard.scoring.texts.text_signals import grounding_signals
from semgrad_guard.scoring.texts.words import words

PASSAGES = ("In 1998 the small company acquired two factories near Lyon.", "Its owners later moved to Geneva.")


def _found(answer: str, question: str = "", *, language: str = "en", passages: tuple[str, ...] = PASSAGES):
    forms = PassageForms([words(text) for text in passages], passages, language)
    return novelty_signals(answer, question, answer.split(" / "), forms)


def test_other_forms_of_a_word_are_the_same_word() -> None:
    """`acquiring a factory` is what the passage says; only `Paris` is new."""
    found = _found("The company was acquiring a factory near Paris.")
    assert found["unsupported_words"] == pytest.approx(1 / 5)
    assert _found("The company acquires factories.")["unsupported_words"] == 0.0


def test_words_of_the_question_are_nothing_new() -> None:
    """An answer may repeat what it was asked, and speak of its sources."""
    assert _found("According to the passages, Tibor moved.", "Where did Tibor go?")["unsupported_words"] == 0.0


def test_words_joined_otherwise_are_found() -> None:
    """Every word is in a passage, but no passage has `owners` and `factories` side by side."""
    assert _found("small company acquired")["unsupported_pairs"] == 0.0
    assert _found("acquired, by the company")["unsupported_pairs"] == 0.0, "order does not count"
    found = _found("Lyon owners moved")
    assert found["unsupported_pairs"] == pytest.approx(1 / 2)
    assert found["n_unsupported_pairs"] == 1.0


@pytest.mark.parametrize(("n_between", "apart"), [(7, 0.0), (8, 1.0)])
def test_how_near_neighbours_must_stand(n_between: int, apart: float) -> None:
    """Fewer than eight places of content words apart."""
    filler = " ".join(["filler"] * (n_between - 1))
    assert _found("gold silver", passages=(f"gold {filler} silver",))["n_unsupported_pairs"] == apart


def test_numbers_that_no_passage_has_are_counted() -> None:
    """Once each; `two` is 2."""
    assert _found("In 1998 it had 2 factories, in 1999 it had 30, in 1999!")["unsupported_numbers"] == 2.0


def test_claims_without_support_are_counted() -> None:
    """Of the second, two of three new words are in no passage; a claim of one new word is not judged."""
    found = _found("The company acquired factories. / Its rivals sued owners. / Sharks.")
    assert found["unsupported_claims"] == 1.0


def test_a_claim_about_neither_question_nor_passages_is_foreign() -> None:
    """A sentence of another subject beside the passages' words; a word of the question makes it an answer."""
    foreign = "Sharks hunt seals at night"
    assert _found(f"The company acquired factories. / {foreign}.")["foreign_claim"] == 1.0
    assert _found(f"The company acquired factories. / {foreign}.", "What do sharks eat?")["foreign_claim"] == 0.0
    assert _found("The company acquired factories. / The owners hunt factories by day.")["foreign_claim"] == 0.0
    assert _found("Sharks.")["foreign_claim"] == 0.0
    forms = PassageForms([words(text) for text in PASSAGES], PASSAGES, "en")
    assert novelty_signals(foreign, "", [foreign], forms, [True])["foreign_claim"] == 0.0


def test_languages_have_their_own_forms() -> None:
    """German words by German stems; those of an unknown language as they are."""
    assert stem_of("häuser", "de") == stem_of("häusern", "de")
    assert stem_of("acquired", "xx") == "acquired"
    german = ("Die Häuser standen am Fluss.",)
    assert _found("Häusern", language="de", passages=german)["unsupported_words"] == 0.0
    assert _found("Häusern", language="xx", passages=german)["unsupported_words"] == 1.0


def test_scripts_without_spaces_have_neighbours() -> None:
    """Every character counts as a word there."""
    assert _found("東京都", passages=("東京都は大きい",))["unsupported_pairs"] == 0.0
    assert _found("東山", passages=("東京都は大きい、富士の山",))["n_unsupported_pairs"] == 1.0


@pytest.mark.parametrize("answer", ["", "!", "yes", "🙂", "42", "the of and"])
def test_odd_answers_have_finite_numbers(answer: str) -> None:
    """Nothing said is nothing unsupported."""
    found = _found(answer)
    assert all(value >= 0 for value in found.values())
    assert found["n_unsupported_pairs"] == 0.0


def test_they_are_among_the_signals_of_texts() -> None:
    """Where there are passages, and only there."""
    with_passages = Exchange(answer="Paris", question="q", passages=(Passage("London"),))
    assert grounding_signals(with_passages)["unsupported_words"] == 1.0
    assert "unsupported_words" not in grounding_signals(Exchange(answer="Paris", question="q"))
