"""The built-in paraphrases and a user's own."""

from __future__ import annotations

import json

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.position.find import last_word, read_paraphrases

GOOD = [json.dumps({"question": f"What is {i}?", "paraphrases": [f"Explain {i} now"]}) for i in range(8)]


def test_the_built_in_set_is_large_and_its_endings_vary():
    """A last word that paraphrases share would win the scan without any meaning."""
    groups = read_paraphrases()
    assert len(groups) >= 60
    texts = [text.casefold() for group in groups for text in group.texts]
    assert len(set(texts)) == len(texts)
    for group in groups:
        assert len(group.texts) == 5
        assert len({last_word(text) for text in group.texts}) == 5, group.texts
        assert len({text[-1] in "?." for text in group.texts}) == 2, group.texts


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not JSON"),
        ("[]", "line"),
        ('{"question": "Why?"}', "paraphrases"),
        ('{"question": "Why?", "paraphrases": []}', "paraphrases"),
        ('{"question": " ", "paraphrases": ["a"]}', "question"),
        ('{"question": "What is 3?", "paraphrases": ["a"]}', "already in line 4"),
        ('{"question": "Why?", "paraphrases": ["Why?"]}', "already in line 9"),
    ],
)
def test_a_mistake_is_named_by_its_line(tmp_path, line, part):
    """Nobody looks through a file for a missing bracket."""
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join([*GOOD, line]))
    with pytest.raises(DataFileError) as error:
        read_paraphrases(path)
    assert error.value.line == 9
    assert part in str(error.value)


@pytest.mark.parametrize("content", [None, "\n".join(GOOD[:7]), b"\xff"])
def test_a_file_that_cannot_serve_is_refused(tmp_path, content):
    """Missing, too short to be halved, or not text."""
    path = tmp_path / "mine.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataFileError, match="mine"):
        read_paraphrases(path)


def test_a_good_file_is_read_with_blank_lines(tmp_path):
    """The question is a wording like the others."""
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n".join(GOOD))
    assert read_paraphrases(path)[2].texts == ("What is 2?", "Explain 2 now")


@pytest.mark.parametrize(("text", "word"), [("Who is it?", "it"), ("the dog's", "dog's"), ("End.", "end"), ("?!", "")])
def test_the_last_word_is_read_without_punctuation(text, word):
    """A question mark does not make two endings different."""
    assert last_word(text) == word
