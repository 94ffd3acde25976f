"""Sentences and their tokens."""

from __future__ import annotations

import pytest

from semgrad_guard.scoring.texts.spans import sentence_spans, token_span


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.5 million. He left!", ["Dr. Smith paid $3.5 million.", "He left!"]),
        ("これは文です。次の文です！", ["これは文です。", "次の文です！"]),
        ("Это так. А это 😀 нет?", ["Это так.", "А это 😀 нет?"]),
        ("Steps:\n1. Heat it.\n2. Stir.", ["Steps:", "1. Heat it.", "2. Stir."]),
        ("One.\n\n - \n\nTwo.", ["One.\n\n -", "Two."]),
        ("  no end", ["no end"]),
        ("!!!", ["!!!"]),
        ("42", ["42"]),
        ("a \ud83d b.", ["a \ud83d b."]),
        ("", []),
        (" \n", []),
    ],
)
def test_sentences_by_their_offsets(text, expected):
    """Offsets point back into the very text, in any language."""
    assert [text[start:end] for start, end in sentence_spans(text)] == expected


def test_a_token_belongs_where_its_first_letter_lies():
    """Tokens ` the` begin with the space before their word."""
    pieces = ["A", " b", ".", " C", " d"]
    decode = lambda ids: "".join(pieces[i] for i in ids)  # noqa: E731
    ids = range(5)
    assert token_span(decode, ids, 0, 4) == slice(0, 3)
    assert token_span(decode, ids, 5, 8) == slice(3, 5)
    assert token_span(decode, ids, 7, 8) == slice(4, 5)


def test_characters_of_several_tokens_are_held_by_all_of_them():
    """Emoji are written byte by byte; until the last byte the text shows a replacement mark."""
    texts = ["a", "a\ufffd", "a\ufffd", "a😀", "a😀!"]
    decode = lambda ids: texts[len(ids) - 1] if ids else ""  # noqa: E731
    assert token_span(decode, range(5), 1, 2) == slice(3, 4)
    assert token_span(decode, range(5), 2, 3) == slice(4, 5)
