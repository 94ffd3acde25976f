"""Words of any script, as grounding counts them."""

from __future__ import annotations

import pytest

from semgrad_guard.scoring.texts.words import content_words, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The KING's crown", ["the", "king", "s", "crown"]),
        ("1,000.5 km or 1.234.567", ["1000.5", "km", "or", "1234567"]),
        ("3.14 in 2019-2020", ["3.14", "in", "2019", "2020"]),
        ("ﬁne ２０２０", ["fine", "2020"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("東京は", ["東", "京", "は"]),
        ("Ärger, naïve: Straße", ["ärger", "naïve", "strasse"]),
        ("🗼 … —", []),
        ("", []),
    ],
)
def test_words_come_out_in_one_form(text, expected):
    """The same word must compare equal however it was typed."""
    assert words(text) == expected


def test_function_words_and_single_letters_carry_no_content():
    """They stand in every passage and would make every answer look grounded."""
    assert content_words("The answer is a 7, by X: 東") == {"answer", "7", "東"}
