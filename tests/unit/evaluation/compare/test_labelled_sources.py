"""Data sets of the `datasets` library become question files, whatever their columns are called."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.compare.labelled import fetch
from semgrad_guard.evaluation.rows import read_rows

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("datasets", reason="needs the datasets extra")


def folder_of(path: Path, *rows: dict, split: str = "validation") -> str:
    """Return the name of a data set that is a folder of files."""
    path.mkdir()
    (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"hf:{path}"


@pytest.fixture(name="target")
def _target(tmp_path: Path) -> Path:
    return tmp_path / "questions.jsonl"


def fetched(name: str, target: Path, *, limit: int | None = None, **fields: str) -> list[dict]:
    """Return the rows of a data set."""
    fetch(name, target, fields, limit)
    assert list(read_rows(target))
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_squad_like_columns(tmp_path: Path, target: Path) -> None:
    """Answers under `text`, one passage under `context`; no answer is an empty list."""
    name = folder_of(
        tmp_path / "squad",
        {"id": "a", "question": "Who?", "context": "Eiffel did.", "answers": {"text": ["Eiffel"], "answer_start": [0]}},
        {"id": "b", "question": "When?", "context": "Eiffel did.", "answers": {"text": [], "answer_start": []}},
    )
    assert fetched(name, target) == [
        {"id": "a", "question": "Who?", "answers": ["Eiffel"], "passages": ["Eiffel did."]},
        {"id": "b", "question": "When?", "answers": [], "passages": ["Eiffel did."]},
    ]


def test_a_single_reference_and_no_passage(tmp_path: Path, target: Path) -> None:
    """Trivia sets look like this."""
    name = folder_of(tmp_path / "trivia", {"question": "Who?", "answer": "Eiffel"}, split="train")
    assert fetched(f"{name}:train", target) == [{"id": 1, "question": "Who?", "answers": ["Eiffel"]}]


def test_columns_can_be_named(tmp_path: Path, target: Path) -> None:
    """And the usual names are then not looked for."""
    name = folder_of(tmp_path / "own", {"q": "Who?", "answer": "wrong", "gold": "Eiffel"})
    (row,) = fetched(name, target, question="q", answers="gold")
    assert (row["question"], row["answers"]) == ("Who?", ["Eiffel"])


def test_only_as_many_rows_as_wanted_are_taken(tmp_path: Path, target: Path) -> None:
    """Data sets are streamed."""
    name = folder_of(tmp_path / "many", *({"question": f"q{i}", "answer": "a"} for i in range(9)))
    assert len(fetched(name, target, limit=4)) == 4


def test_what_was_fetched_is_kept(tmp_path: Path, target: Path) -> None:
    """Going on must not ask the network again."""
    target.write_text('{"question": "q", "answers": []}\n')
    assert fetch("hf:no-such-set", target, {}, None) == target


def test_a_missing_column_is_named(tmp_path: Path, target: Path) -> None:
    """With those that are there, and how to name one."""
    name = folder_of(tmp_path / "bad", {"ask": "Who?", "answer": "Eiffel"})
    with pytest.raises(DataFileError, match=r"question among ask, answer; name it: --field question=COLUMN"):
        fetched(name, target)
    assert not target.exists()


def test_a_set_that_is_not_there_is_a_clear_error(target: Path) -> None:
    """Offline, say."""
    with pytest.raises(DataFileError, match="cannot be loaded"):
        fetched("hf:/no/such/folder", target)
