"""JSONL files of prompts and answers: one object per line, errors with line numbers, and runs that can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from filelock import FileLock, Timeout
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
        DataFileError: the object cannot be used.
    """
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


ROW_KEY = "row_digest"
"""Key in an output line for the digest of its input line."""
ADVICE = "name another --out, or use --overwrite"


def digest(row: Row) -> str:
    """Return the digest of an input line, by which a resumed run recognises it."""
    return hashlib.sha256(json.dumps(row.fields, sort_keys=True).encode()).hexdigest()[:16]


class ResumableFile:
    """A file with an output line for each input line; an interrupted run can be resumed.

    No other run can write to the file while the object exists.
    """

    def __init__(self, path: Path) -> None:
        """Remove an incomplete last line of an earlier run, and read which input lines are done.

        Args:
            path: the file; it need not exist yet.

        Raises:
            DataFileError: the file has other content, or another run is writing to it.
        """
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            advice = "wait until it has ended, or name another --out"
            raise DataFileError(path, None, "another run is writing to it", advice) from error
        self.done: set[str] = set()
        _drop_partial_line(path)
        for number, line in self.lines():
            self.take(line, number)
            self.done.add(line[ROW_KEY])

    def take(self, line: dict[str, Any], number: int) -> None:
        """Check a line of an earlier run; subclasses raise an error if the run cannot be resumed."""

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the lines with their numbers, from 1.

        Raises:
            DataFileError: a line was not written by such a run.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    fields = json.loads(line)
                    fields[ROW_KEY]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataFileError(self.path, number, "not a line that this command wrote", ADVICE) from error
                yield number, fields

    def append(self, found: dict[str, Any]) -> None:
        """Write one object as one line, on disk before the call returns."""
        line = json.dumps(found, ensure_ascii=True) + "\n"
        with self.path.open("a", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.done.add(found[ROW_KEY])


def _drop_partial_line(path: Path) -> None:
    """Truncate a file after its last line end, reading only its tail."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        at, tail = end, b""
        while at > 0 and b"\n" not in tail:
            at = max(0, at - 65_536)
            file.seek(at)
            tail = file.read(end - at)
    whole = at + tail.rfind(b"\n") + 1
    if whole < end:
        os.truncate(path, whole)
