"""Reading data files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.rows import parse_row, read_rows
from semgrad_guard.flow import Message

if TYPE_CHECKING:
    from pathlib import Path


def _row(**said: object) -> object:
    return parse_row(json.dumps(said), "data.jsonl", 1)


@pytest.mark.parametrize(
    ("said", "prompt", "ids"),
    [
        ({"prompt": "p"}, "p", None),
        ({"messages": [{"role": "user", "content": "p"}]}, (Message("user", "p"),), None),
        ({"prompt_ids": [1, 2]}, "", (1, 2)),
    ],
)
def test_a_prompt_may_be_text_messages_or_ids(said: dict, prompt: object, ids: object) -> None:
    """Whatever the user has."""
    exchange = _row(answer="a", **said).exchange_for(chat=True)
    assert (exchange.prompt, exchange.prompt_ids) == (prompt, ids)


def test_a_question_with_passages_becomes_a_prompt_of_the_model_s_kind() -> None:
    """A base model gets text that ends with `Answer:`, a chat model a message."""
    row = _row(question="Who?", passages=["One.", {"text": "Two.", "title": "t"}], answer="a")
    base, chat = row.exchange_for(chat=False), row.exchange_for(chat=True)
    assert str(base.prompt).endswith("Question: Who?\nAnswer:")
    assert isinstance(chat.prompt, tuple)
    assert [p.text for p in base.passages] == ["One.", "Two."]


def test_a_row_with_a_prompt_alone_has_the_passages_that_a_guard_would_see() -> None:
    """A profile that is fitted on other signals than those of the guard fits no answer of it."""
    exchange = _row(prompt="Passage: One.\nQuestion: Who?", answer="a").exchange_for(chat=True)
    assert (exchange.question, [p.text for p in exchange.passages]) == ("Who?", ["One."])
    from_memory = _row(question="Who?", answer="a").exchange_for(chat=True)
    assert (from_memory.question, from_memory.passages) == ("Who?", ())


@pytest.mark.parametrize(("said", "own"), [({}, False), ({"answer_ids": [1]}, True), ({"on_policy": True}, True)])
def test_rows_say_whether_the_model_wrote_the_answer(said: dict, own: bool) -> None:
    """Own answers and foreign ones are calibrated apart."""
    assert _row(prompt="p", **said).is_own is own


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not JSON"),
        ("[]", "a list, not an object"),
        ('{"prompt": 3}', "`prompt`"),
        ('{"passages": [{"txt": "x"}]}', "`passages.0.text`"),
        ('{"prompt": "p", "position": 2}', "`position`"),
        ('{"prompt": "p", "correct": "maybe"}', "`correct`"),
    ],
)
def test_a_mistake_is_named_by_line(tmp_path: Path, line: str, part: str) -> None:
    """In a file of a million lines, the number is what helps."""
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"prompt": "p"}}\n\n{line}\n')
    with pytest.raises(DataFileError) as caught:
        list(read_rows(path))
    assert caught.value.line == 3
    assert part in caught.value.why


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(DataFileError):
        list(read_rows(tmp_path / "none.jsonl"))


def test_bytes_that_are_no_text_are_a_clear_error(tmp_path: Path) -> None:
    """A spreadsheet given by mistake."""
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFileError):
        list(read_rows(tmp_path / "x.jsonl"))


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    """A million rows must not have to fit in memory: the first comes before a broken later one is seen."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "p"}\n{')
    assert next(read_rows(path)).line == 1


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("anwser", "a", "answer"),
        ("awnser", "a", "answer"),
        ("Answer", "a", "answer"),
        ("quesiton", "q", "question"),
        ("pasages", ["p"], "passages"),
        ("corect", True, "correct"),
        ("tag", ["t"], "tags"),
    ],
)
def test_a_misspelt_field_is_named_with_what_was_meant(field: str, value: object, meant: str) -> None:
    """Taken for a field of the user's own, it would be missing in silence."""
    row = {"question": "q", "passages": ["p"], "answer": "a", "correct": True}
    row.pop(meant, None)
    with pytest.raises(DataFileError) as caught:
        parse_row(json.dumps({**row, field: value}), "data.jsonl", 3)
    assert caught.value.line == 3
    assert f"`{field}` is not a field: did you mean `{meant}`?" in caught.value.why


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("question_id", "q"),
        ("answer_start", 3),
        ("answer2", "b"),
        ("prompts", 3),
        ("source", "s"),
        ("mode", "m"),
        ("anwser", "b"),
        ("context", "c"),
    ],
)
def test_fields_of_the_user_s_own_are_kept(field: str, value: object) -> None:
    """Ids, numbered fields, values of another kind, and whatever the row has under its right name."""
    row = {"question": "q", "passages": ["p"], "answer": "a", "answers": ["a"], "correct": True, field: value}
    assert parse_row(json.dumps(row), "data.jsonl", 1).fields[field] == value
