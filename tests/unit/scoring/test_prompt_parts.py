"""Which tokens of a prompt are passages and question."""

from __future__ import annotations

import pytest

from semgrad_guard.flow import Exchange, Message, Passage
from semgrad_guard.scoring.prompt_parts import FIRST_PASSAGE, QUESTION, REST, prompt_parts
from semgrad_guard.scoring.reading import as_read, read_exchange

ROME, PARIS = Passage("Rome is old."), Passage("Paris is big, and Rome is old.")


def _shown(local, exchange: Exchange, role: int) -> str:
    """Return the text of the tokens with a role; the tests' tokenizer has one token a byte."""
    read = as_read(exchange)
    ids = read_exchange(local, read).prompt
    parts = prompt_parts(local, read, ids)
    return local.decode([token for token, one in zip(ids, parts.roles, strict=True) if one == role])


def _exchange(**changes) -> Exchange:
    prompt = (Message("user", f"Passages:\n{PARIS.text}\n{ROME.text}\nQuestion: Is Rome old?"),)
    given = {"prompt": prompt, "answer": "Yes.", "question": "Is Rome old?", "passages": (ROME, PARIS)}
    return Exchange(**{**given, "on_policy": True, **changes})


def test_passages_and_question_are_found_in_a_chat(local):
    """The longer passage has what both contain, so the shorter one is where it stands alone."""
    exchange = _exchange()
    assert _shown(local, exchange, FIRST_PASSAGE) == ROME.text
    assert _shown(local, exchange, FIRST_PASSAGE + 1) == PARIS.text
    assert _shown(local, exchange, QUESTION) == "Is Rome old?"
    assert "Passages:\n" in _shown(local, exchange, REST)


def test_they_are_found_where_only_ids_are_known(local):
    """A framework hands over the ids that its model read."""
    ids = read_exchange(local, _exchange()).prompt
    exchange = _exchange(prompt="", prompt_ids=ids)
    assert _shown(local, exchange, FIRST_PASSAGE + 1) == PARIS.text
    assert _shown(local, exchange, QUESTION) == "Is Rome old?"


def test_a_proxy_reads_all_of_them(local):
    """Its prompt is made of them, whatever the other model read."""
    exchange = _exchange(on_policy=False, prompt="something else")
    assert _shown(local, exchange, FIRST_PASSAGE) == ROME.text
    assert _shown(local, exchange, QUESTION) == "Is Rome old?"


def test_a_passage_that_the_prompt_does_not_show_is_not_found(local):
    """It may have been cut off or rewritten; its share is not known."""
    exchange = _exchange(passages=(ROME, Passage("Oslo is cold.")))
    parts = prompt_parts(local, exchange, read_exchange(local, exchange).prompt)
    assert parts.shown == (True, False)


def test_a_question_inside_a_passage_is_not_the_question(local):
    """A page of questions and answers may contain it; the last one outside of the passages is meant."""
    page = Passage("Q: Is Rome old? A: Yes.")
    exchange = _exchange(prompt=f"Is Rome old?\n{page.text}", passages=(page,))
    assert _shown(local, exchange, FIRST_PASSAGE) == page.text
    assert _shown(local, exchange, QUESTION) == "Is Rome old?"


def test_of_equal_passages_the_first_has_the_tokens(local):
    """A retriever may return one page twice."""
    exchange = _exchange(prompt=f"{ROME.text}\n{ROME.text}", passages=(ROME, ROME))
    assert prompt_parts(local, exchange, read_exchange(local, exchange).prompt).shown == (True, False)


@pytest.mark.parametrize("text", ["Zürich: 3 €", "日本語 🙂 text", "  spaces\n\n"])
def test_characters_of_several_tokens_are_counted_once(local, text):
    """Offsets count characters, tokens may be bytes."""
    passage = Passage(text)
    exchange = _exchange(prompt=f"é {text} é", passages=(passage,))
    assert _shown(local, exchange, FIRST_PASSAGE).strip() == text.strip()


def test_without_passages_and_question_there_is_nothing_to_find(local):
    """Then nothing is decoded."""
    assert prompt_parts(local, Exchange(prompt="Hello", answer="Hi"), (5, 6)) is None
