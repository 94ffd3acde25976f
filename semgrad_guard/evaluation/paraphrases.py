"""Questions asked in several ways: the built-in set, or a user's own JSONL file, mistakes named by line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semgrad_guard.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

FORM = 'each line is one object such as {"question": "...", "paraphrases": ["...", "..."]}'
MIN_QUESTIONS = 8
"""Fewer questions cannot be halved for the held-out check."""
_BUILT_IN = "paraphrases.jsonl"
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, str_strip_whitespace=True)
    question: Annotated[str, Field(min_length=1)]
    paraphrases: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True, slots=True)
class Paraphrased:
    """One question in several wordings that mean the same."""

    texts: tuple[str, ...]
    """The question and its paraphrases, two texts or more, all different."""


def read_paraphrases(path: Path | str | None = None) -> tuple[Paraphrased, ...]:
    """Return questions with their paraphrases.

    Args:
        path: JSONL file with `question` and `paraphrases` on each line; `None` is the built-in set.

    Raises:
        DataFileError: the file cannot be read, a line cannot be used, or there are fewer than `MIN_QUESTIONS`.
    """
    named = path or _BUILT_IN
    try:
        source = Path(path) if path else resources.files("semgrad_guard.evaluation.position").joinpath(_BUILT_IN)
        lines = source.read_bytes().splitlines()
    except OSError as error:
        raise DataFileError(named, None, f"cannot be read: {error.strerror}", "check the path") from error
    found = tuple(_groups(lines, named))
    if len(found) < MIN_QUESTIONS:
        advice = (
            f"give at least {MIN_QUESTIONS} different questions, each with paraphrases; 60 make the result reliable"
        )
        raise DataFileError(named, None, f"holds {len(found)} questions", advice)
    return found


def last_word(text: str) -> str:
    """Return the last word of a text in lower case, without punctuation; empty when it has no word."""
    words = _WORD.findall(text.lower())
    return words[-1] if words else ""


def _groups(lines: list[bytes], path: Path | str) -> Iterator[Paraphrased]:
    line_of = dict[str, int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        form = _form(line, path, number)
        texts = (form.question, *form.paraphrases)
        for text in texts:
            if text in line_of:
                why = f"{text!r} is already in line {line_of[text]}"
                raise DataFileError(path, number, why, "keep each wording once")
            line_of[text] = number
        yield Paraphrased(texts)


def _form(line: bytes, path: Path | str, number: int) -> _Form:
    try:
        return _Form.model_validate(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise DataFileError(path, number, f"not UTF-8 text ({error.reason})", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataFileError(path, number, f"not JSON: {error}", FORM) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "line"
        raise DataFileError(path, number, f"`{where}`: {first['msg']}", FORM) from error
