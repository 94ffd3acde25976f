"""Texts made fit for the database and for the eye."""

from __future__ import annotations

import pytest

from semgrad_guard.review.store.document import question_key, reveal, shorten, storable


def test_storable_replaces_one_character_by_one():
    """Offsets of the sentence scores must go on pointing to the same words."""
    assert storable("a\x00b\ud800c😀") == "a�b�c😀"


@pytest.mark.parametrize(
    ("text", "shown"), [("a\n\n  b", "a b"), ("abcdefghij", "abcdefghij"), ("abcdefghijk", "abcdefghi…"), ("", "")]
)
def test_shorten_gives_one_line_of_at_most_the_limit(text, shown):
    """A preview fits its line."""
    assert shorten(text, 10) == shown


def test_a_question_is_known_again_in_other_case_spacing_and_form():
    """Who asks the same again should get the same verdict."""
    assert question_key("What is  Caf\u00e9?") == question_key(" what IS cafe\u0301? ")
    assert question_key("What is tea?") != question_key("What is coffee?")


def test_reveal_writes_out_what_cannot_be_seen():
    """A direction override can make a rejected answer look right."""
    assert reveal("a\u202eb\u200bc\x1b[31m\n\td") == "a⟨U+202E⟩b⟨U+200B⟩c⟨U+001B⟩[31m\n\td"
    assert reveal("שלום, 你好, naïve 😀") == "שלום, 你好, naïve 😀"
