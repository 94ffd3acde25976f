"""Where questions come from: a JSONL file, or a data set of the Hugging Face library `datasets`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import DataFileError
from semgrad_guard.extras import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HF = "hf:"
QUESTION = ("question", "query", "prompt")
ANSWERS = ("answers", "answer", "correct_answers", "correct_answer", "best_answer", "possible_answers")
PASSAGES = ("passages", "contexts", "context", "support", "documents")
"""Columns that mean question, accepted answers and passages, in the order they are looked for."""


def fetch(name: str, target: Path, fields: Mapping[str, str], limit: int | None) -> Path:
    """Write the questions of a data set as JSONL and return the file; one that is there is kept.

    Args:
        name: `hf:NAME`, `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT`; the split is `validation` when left out. NAME is an
            id of the hub or a folder of data files.
        target: file to write.
        fields: `question`, `answers`, `passages` -> column, where its name is none of the usual ones.
        limit: rows to take, from the first; `None` for all.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataFileError: the data set cannot be loaded, or has no column for questions or for answers.
    """
    if target.exists():
        return target
    library: Any = require("datasets", extra="datasets")
    path, config, split = _parts(name.removeprefix(HF))
    try:
        rows = library.load_dataset(path, config, split=split, streaming=True)
        part = target.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows):
                if number == limit:
                    break
                file.write(json.dumps(_question(row, fields, name, number + 1)) + "\n")
    except (OSError, ValueError, ConnectionError) as error:
        if isinstance(error, DataFileError):
            raise
        advice = "check name and split, or save it once where there is a network"
        raise DataFileError(name, None, f"cannot be loaded: {error}", advice) from error
    part.replace(target)
    return target


def _parts(name: str) -> tuple[str, str | None, str]:
    path, *rest = name.split(":")
    if len(rest) == 2:
        return path, rest[0], rest[1]
    return path, None, rest[0] if rest else "validation"


def _question(row: Mapping[str, Any], fields: Mapping[str, str], name: str, number: int) -> dict[str, Any]:
    """Return one question in the form of a data file."""
    question = _column(row, fields.get("question"), QUESTION, "question", name, number)
    found: dict[str, Any] = {
        "id": row.get("id", number),
        "question": str(row[question]),
        "answers": _texts(row[_column(row, fields.get("answers"), ANSWERS, "answers", name, number)]),
    }
    passages = fields.get("passages") or next((column for column in PASSAGES if column in row), None)
    if passages is not None and (texts := _texts(row[passages])):
        found["passages"] = texts
    return found


def _column(
    row: Mapping[str, Any], given: str | None, usual: Sequence[str], meaning: str, name: str, number: int
) -> str:
    found = given if given is not None else next((column for column in usual if column in row), None)
    if found is None or found not in row:
        there = ", ".join(row)
        raise DataFileError(
            name, number, f"no column for the {meaning} among {there}", f"name it: --field {meaning}=COLUMN"
        )
    return found


def _texts(value: object) -> list[str]:
    """Return texts however a column holds them: one, several, or under `text` as SQuAD does."""
    if isinstance(value, dict):
        return _texts(value.get("text", []))
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    return [] if value is None else [str(value)]
