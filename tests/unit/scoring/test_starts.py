"""Where words and claims begin, and the likelihoods there."""

from __future__ import annotations

import numpy as np
import pytest

from semgrad_guard.models.tokens import text_ends
from semgrad_guard.scoring.starts import Starts, start_signals, starts_of

TEXT = "The tower is old. Eiffel built it."


def _answer(local, text: str) -> tuple[int, ...]:
    return tuple(local.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_content_words_and_claims_begin_at_their_first_token(local):
    """One token a byte: tower at 4, old at 13, Eiffel at 18, built at 25; claims at 0 and 18."""
    found = starts_of(local, _answer(local, TEXT))
    assert found == Starts(words=(4, 13, 18, 25), claims=(0, 18))


def test_the_end_of_the_turn_is_no_word(local):
    """It has no text."""
    answer = (*_answer(local, TEXT), *sorted(local.end_ids)[:1])
    assert starts_of(local, answer) == starts_of(local, _answer(local, TEXT))


def test_letters_of_several_bytes_are_one_character(local):
    """'é ' is three bytes, so the word after it begins at token 3 where it stands at character 2."""
    assert starts_of(local, _answer(local, "é Rome")).words == (3,)


@pytest.mark.parametrize(("text", "words"), [("It is.", (0, 3)), ("?!", (0,)), (" \n", (0,))])
def test_an_answer_without_content_words_still_has_a_start(local, text, words):
    """All its words count, or else its first token."""
    assert starts_of(local, _answer(local, text)).words == words


def test_sentences_that_only_repeat_the_question_begin_no_claim(local):
    """They are not claims."""
    assert starts_of(local, _answer(local, "The tower is old. Rome."), "Is the tower old?").claims == (18,)


def test_the_signals_are_read_at_the_starts():
    """Words begin at tokens 1 and 3, claims at 0 and 3."""
    nll, entropy = np.array([0.5, 1.0, 9.0, 2.0]), np.array([3.0, 0.2, 9.0, 0.4])
    found = start_signals(nll, entropy, slice(0, 4), Starts((1, 3), (0, 3)))
    assert found["word_start_nll"] == 1.5
    assert found["max_word_start_nll"] == 2.0
    assert found["word_start_entropy"] == pytest.approx(0.3)
    assert found["max_word_start_entropy"] == 0.4
    assert found["max_claim_start_nll"] == 2.0
    assert found["max_claim_start_entropy"] == 3.0


def test_a_part_in_which_nothing_begins_is_told_by_its_first_token():
    """A span of the caller's may be the middle of a word."""
    nll = np.array([0.5, 1.0, 9.0, 2.0])
    found = start_signals(nll, nll, slice(2, 3), Starts((1, 3), (0,)))
    assert found["max_word_start_nll"] == found["max_claim_start_nll"] == 9.0


@pytest.mark.parametrize("text", [TEXT * 9, "Zürich " * 30, "日本語🙂" * 20, "a"])
def test_text_ends_are_those_of_decoding_from_the_start(local, text):
    """Pieces of a few tokens give what the whole text gives, also inside characters of several bytes."""
    ids = _answer(local, text)
    ends = text_ends(local.decode, ids)
    assert ends[-1] == len(text)
    assert ends == [len(local.decode(ids[:n]).rstrip("\ufffd")) for n in range(1, len(ids) + 1)]
