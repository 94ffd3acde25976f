"""JSONL files of prompts and answers: one object per line, and errors that name line and field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from semgrad_guard.context import with_context
from semgrad_guard.errors import DataFileError
from semgrad_guard.flow import Exchange, Fingerprint, Message, Passage
from semgrad_guard.wire import FingerprintForm, MessageForm, PassageForm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from semgrad_guard.flow import Json, Prompt

WITH_PASSAGES = "Answer the question with a short phrase, using the passages."
CLOSED_BOOK = "Answer the question with a short phrase."
BASE_MODEL_STOP = ("\n",)
"""A base model does not end its turn, so its answer is the rest of the line."""


def question_prompt(question: str, passages: Sequence[Passage] = (), *, chat: bool) -> Prompt:
    """Return the prompt that asks a question.

    Args:
        question: the question alone.
        passages: texts to answer from; without any, the model answers from memory.
        chat: return one user message for the model's template; otherwise plain text that ends with `Answer:`.
    """
    numbered = [f"Passage {i}: {passage.text}" for i, passage in enumerate(passages, 1)]
    parts = [WITH_PASSAGES if passages else CLOSED_BOOK, *numbered, f"Question: {question}"]
    if chat:
        return (Message("user", "\n\n".join(parts)),)
    return "\n\n".join(parts) + "\nAnswer:"


def answer_stops(*, chat: bool) -> tuple[str, ...]:
    """Return the texts at which an answer to `question_prompt` ends."""
    return () if chat else BASE_MODEL_STOP


FORM = 'each line is one object such as {"prompt": "...", "answer": "..."}'


def _passage(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


class _RowPassage(PassageForm):
    model_config = ConfigDict(extra="ignore")
    title: str | None = None


class _RowMessage(MessageForm):
    model_config = ConfigDict(extra="ignore")


_Passages = Annotated[tuple[Annotated[_RowPassage, BeforeValidator(_passage)], ...], Field(strict=False)]
_Ids = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class _Form(BaseModel):
    """The fields that are used; all others are kept unchanged."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str | int | None = None
    prompt: str | None = None
    messages: tuple[_RowMessage, ...] | None = None
    prompt_ids: _Ids | None = None
    question: str | None = None
    passages: _Passages = ()
    contexts: _Passages = ()
    answer: str | None = None
    answer_ids: _Ids | None = None
    answers: tuple[str, ...] | None = None
    correct: bool | None = None
    group: str | int | None = None
    tags: tuple[str, ...] = ()
    position: Annotated[int, Field(lt=0)] | None = None
    on_policy: bool | None = None
    fingerprint: FingerprintForm | None = None


_TEXT, _TEXTS, _NUMBER = (str,), (str, list), (int, float)
WRITTEN_BY_USERS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("prompt", "question", "answer", "route"), _TEXT),
    **dict.fromkeys(("messages", "passages", "contexts", "answers", "tags"), _TEXTS),
    **dict.fromkeys(("prompt_ids", "answer_ids"), (list,)),
    **dict.fromkeys(("position", "attempt", "confidence"), _NUMBER),
    **dict.fromkeys(("correct", "on_policy"), (bool, int, str)),
    "group": (str, int),
}
"""Fields that users write, and the types of value by which a misspelt one is told from a field of the user's own."""
_SAME_MEANING = (
    frozenset({"passages", "contexts"}),
    frozenset({"prompt", "messages", "prompt_ids"}),
    frozenset({"answer", "answer_ids"}),
)
"""Fields of which a row has one, so that the others are not missing."""


def misspelt(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return a field that looks like a known one that the row lacks, and that one's name."""
    lacking = WRITTEN_BY_USERS.keys() - fields.keys()
    for alike in _SAME_MEANING:
        if alike & fields.keys():
            lacking -= alike
    for name, value in fields.items():
        meant = None if name in WRITTEN_BY_USERS else _meant(name, frozenset(lacking))
        if meant is not None and isinstance(value, WRITTEN_BY_USERS[meant]):
            return name, meant
    return None


@lru_cache(maxsize=4096)
def _meant(name: str, lacking: frozenset[str]) -> str | None:
    """Return the field that a name misspells; `None` for a name of the user's own, such as `question_id`."""
    plain = name.lower().replace("-", "_").strip(" _")
    if plain.endswith("_id") or any(letter.isdigit() for letter in plain):
        return None
    alike = [known for known in lacking if plain.count("_") == known.count("_")]
    nearest = min(alike, key=lambda known: (_slips(plain, known), known), default=None)
    if nearest is None or _slips(plain, nearest) > (1 if len(nearest) < 6 else 2):
        return None
    return nearest


def _slips(one: str, other: str) -> int:
    """Return how many letters are missing, too many, wrong or swapped with the next."""
    two_before, before, row = list[int](), list[int](), list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        two_before, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            slips = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted))
            if two_before and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                slips = min(slips, two_before[j - 2] + 1)
            row.append(slips)
    return row[-1]


def scored_part(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object of a row with signals, method and fingerprint: its `score`, or else the row itself."""
    score = fields.get("score")
    return score if isinstance(score, Mapping) and "signals" in score else fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a data file."""

    line: int
    """1-based."""
    fields: Mapping[str, Any]
    """The whole object, for writing it out again."""
    exchange: Exchange
    """Its prompt is empty when only a question is given; `exchange_for` adds one for a model."""
    answers: tuple[str, ...] | None
    """Accepted answers; empty when the question cannot be answered, `None` when they are not known."""
    correct: bool | None
    group: str | None
    position: int | None
    """Token position t* of this row, if it has its own."""
    is_own: bool
    """True when the row says that the scoring model wrote the answer, or gives the answer's token ids."""
    fingerprint: Fingerprint | None
    """What the signals in `fields` depend on, when the row was scored."""

    def exchange_for(self, *, chat: bool, on_policy: bool = False) -> Exchange:
        """Return the exchange with a prompt for one model, and with question and passages as a guard would see them.

        Args:
            chat: whether the model has a chat template; it matters when the prompt is made from question and passages.
            on_policy: whether the model wrote the answer.
        """
        prompt: Prompt = self.exchange.prompt
        if not prompt and self.exchange.prompt_ids is None and self.exchange.question:
            prompt = question_prompt(self.exchange.question, self.exchange.passages, chat=chat)
        return with_context(replace(self.exchange, prompt=prompt, on_policy=on_policy))


def read_rows(path: Path | str) -> Iterator[Row]:
    """Yield the rows of a JSONL file; blank lines are skipped.

    Raises:
        DataFileError: the file cannot be read, or a line cannot be used; the error names the line.
    """
    for _, row in read_placed_rows(path):
        yield row


def read_placed_rows(path: Path | str) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a JSONL file, each with the byte offset of its line.

    Raises:
        DataFileError: as `read_rows`.
    """
    try:
        with Path(path).open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield offset, parse_row(line, path, number)
                offset += len(line)
    except OSError as error:
        raise DataFileError(path, None, f"cannot be read: {error.strerror}", "check the path") from error


def parse_row(line: str | bytes, path: Path | str, number: int) -> Row:
    """Return the row of one line.

    Raises:
        DataFileError: the line cannot be used.
    """
    try:
        fields = json.loads(line if isinstance(line, str) else line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataFileError(path, number, f"not UTF-8 text ({error.reason})", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataFileError(path, number, f"not JSON: {error}", FORM) from error
    if not isinstance(fields, dict):
        raise DataFileError(path, number, f"holds a {type(fields).__name__}, not an object", FORM)
    return row_of(fields, path, number)


def row_of(fields: dict[str, Any], path: Path | str, number: int) -> Row:
    """Return the row of an object.

    Raises:
        DataFileError: the object cannot be used, or has a misspelt field.
    """
    if found := misspelt(fields):
        why = f"`{found[0]}` is not a field: did you mean `{found[1]}`?"
        raise DataFileError(path, number, why, "rename it; a field of your own needs a name that is less alike")
    try:
        form = _Form.model_validate({**fields, "fingerprint": scored_part(fields).get("fingerprint")})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataFileError(path, number, f"`{where}`: {first['msg']}", FORM) from error
    return _row(form, fields, number)


def _row(form: _Form, fields: dict[str, Json], number: int) -> Row:
    passages = form.passages or form.contexts
    exchange = Exchange(
        prompt=tuple(Message(m.role, m.content) for m in form.messages) if form.messages else form.prompt or "",
        answer=form.answer or "",
        question=form.question,
        passages=tuple(Passage(p.text, p.source or p.title, p.score) for p in passages),
        tags=frozenset(form.tags),
        prompt_ids=form.prompt_ids,
        answer_ids=form.answer_ids,
    )
    return Row(
        line=number,
        fields=fields,
        exchange=exchange,
        answers=form.answers,
        correct=form.correct,
        group=None if form.group is None else str(form.group),
        position=form.position,
        is_own=form.answer_ids is not None if form.on_policy is None else form.on_policy,
        fingerprint=Fingerprint(**form.fingerprint.model_dump()) if form.fingerprint else None,
    )
