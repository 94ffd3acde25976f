"""Answers without content words."""

from __future__ import annotations

from semgrad_guard.flow import Exchange, Passage
from semgrad_guard.scoring.texts.text_signals import grounding_signals


def test_an_answer_of_small_words_only_is_still_looked_for() -> None:
    """Element symbols, grades and options are answers too, though their words carry no content elsewhere."""
    passages = (Passage("Phosphorus (symbol P) glows."),)
    question = "What is the symbol of Phosphorus?"
    found = [
        grounding_signals(
            Exchange(answer=f"The symbol of Phosphorus is {symbol}.", question=question, passages=passages)
        )
        for symbol in ("P", "K")
    ]
    assert [signals["grounding"] for signals in found] == [1.0, 0.0]


def test_an_answer_that_says_nothing_new_is_looked_for_as_a_whole() -> None:
    """Zero of zero words is no share."""
    signals = grounding_signals(Exchange(answer="Carbon", question="Carbon?", passages=(Passage("Coal is carbon."),)))
    assert signals["grounding"] == 1.0
