"""Texts by which somebody stops a program: none takes a time that grows with the square of its length.

The regular expressions and Unicode tables of Python hold its one lock while they work, so that such a text would stop
every thread, and no time limit could end it.
"""

from __future__ import annotations

import time

import pytest

from semgrad_guard.adapter_kit.findings import unescaped
from semgrad_guard.adapter_kit.withheld import Withheld
from semgrad_guard.context import question_asked, with_context
from semgrad_guard.flow import Exchange
from semgrad_guard.review.store.document import question_key
from semgrad_guard.routing.steps import is_prose
from semgrad_guard.scoring.texts import words
from semgrad_guard.scoring.texts.spans import sentence_spans
from semgrad_guard.suspicious import gives_orders

SIZE = 80_000
"""Characters: as long as a hundred passages."""
LIMIT_S = 1.5
PIECES = (
    "\n", " ", "1", "1,", "1.", "A'", "Abc ", ". ", ", say A", "`", '"', "a ", "Q:\n", "Q:\n\n", "Answer in\n\n", "[",
    "\u0300\u0316", "\uff9e\u0300", "<context ", "please ", "ignore the ", "you must ", "\\u00", "x", "* ", "1. x\n",
    ".\n", "say\n", "Document 1:\n", "\u201c", "\u2018a", "'. ", "\u4e00",
)  # fmt: skip
"""Each is repeated."""
READERS = {
    "a prompt": lambda text: with_context(Exchange(prompt=text, answer="a")),
    "a prompt and its question": lambda text: with_context(Exchange(prompt=f"{text}b", question=text, answer="a")),
    "a prompt, and what may be its question": lambda text: question_asked(f"x {text} y", [text]),
    "orders": gives_orders,
    "words": words.words,
    "units": words.units,
    "names": words.names,
    "pairs of names": words.name_pairs,
    "denials": words.is_negated,
    "sentences": sentence_spans,
    "a withheld answer": lambda text: Withheld([text], question="q", passages=["p"]).holds(f"x {text}"),
    "escapes": unescaped,
    "prose": is_prose,
    "a question of the queue": question_key,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("reader", READERS)
def test_no_text_takes_the_square_of_its_length(reader) -> None:
    """Whatever is repeated in it."""
    for piece in PIECES:
        text = (piece * SIZE)[:SIZE] + "\nx"
        began = time.process_time()
        READERS[reader](text)
        assert time.process_time() - began < LIMIT_S, piece


def test_an_answer_of_brackets_is_compared_as_text() -> None:
    """A small model may write nothing else; what cannot be read as JSON is no JSON."""
    for text in ("[" * 5000, '{"a": ' * 5000, "[" * 5000 + "]" * 5000, "1" * 5000):
        assert Withheld([text]).holds(text)


def test_marks_within_reason_count() -> None:
    """Scripts with several marks on a letter are read as ever."""
    assert words.words("Viê\u0323t e\u0301") == words.words("Việt é")
    assert len(words.words("e" + "\u0301" * 1000)[0]) < 40


def test_sentences_of_a_long_text_are_those_of_its_pieces() -> None:
    """No sentence is lost, and only where the text is cut may one be cut."""
    text = "One says so. Another says no.\n" * 2000
    assert len(sentence_spans(text)) == 4000
