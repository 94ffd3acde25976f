"""JSONL rows -> questions with their first and later answers.

Every row is one answer, with a label, and with signals or a `confidence`, as `semgrad-guard score` writes them. Beside
the fields of `semgrad_guard.evaluation.rows` these count:

- `attempt`: 1 for the first answer to a question, which is also what rows without it are; above 1 a later answer.
- `route`: how the answer came about: `first`, `retry_retrieval` or `fallback_model:NAME`. A row with `attempt` above 1
  and no route is a `retry_retrieval`. Rows with the same `question` and `group` belong together, wherever they stand.
- `seconds`: time of scoring, as `semgrad-guard score` writes it; `answer_s`: time of retrieving and answering.
- `cost`: cost units of the answer; without it, those of the policy's step.
- `confidence`: counts where the policy names no profile, or one that does not fit the row's scores.
- `metadata`: compared with the policy's conditions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.grading import words
from semgrad_guard.evaluation.labelling import Labeller, group_of, signals_of
from semgrad_guard.evaluation.rows import parse_row, read_placed_rows, read_rows
from semgrad_guard.evaluation.simulate.recorded import FIRST, RETRY, UNKNOWN, RecordedAnswer, RecordedQuestion
from semgrad_guard.flow import Score, SpanScore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from semgrad_guard.evaluation.rows import Row

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _SpanForm(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    start: int
    end: int
    signals: dict[str, float] = Field(default_factory=dict)
    confidence: float | None = None


class _AnswerForm(BaseModel):
    """The fields of a row that matter here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    attempt: Annotated[int, Field(ge=1)] | None = None
    route: Annotated[str, Field(pattern="^(first|retry_retrieval|fallback_model:.+)$")] | None = None
    cost: _Seconds | None = None
    seconds: _Seconds | None = None
    answer_s: _Seconds | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    error: str | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    method: str = "recorded"
    score: float = 0.0
    model: str = ""
    spans: tuple[_SpanForm, ...] = ()

    @property
    def way(self) -> str:
        """The route, also where none is named."""
        return self.route or (FIRST if (self.attempt or 1) == 1 else RETRY)


class _Place(NamedTuple):
    """Where a later answer stands, in the order in which they were given."""

    attempt: int
    line: int
    offset: int


class RecordedRows:
    """The questions of a file of labelled rows, read one by one; of later answers only their places are kept."""

    def __init__(self, path: Path, *, grader: str = "contains", unscored: frozenset[str] = frozenset()) -> None:
        """Look through the file for later answers.

        Args:
            path: the file.
            grader: how an answer without a label is compared with the accepted ones.
            unscored: routes whose answers the policy passes without judging them: they need no signals.

        Raises:
            DataFileError: a line cannot be used.
        """
        self.path = path
        self.labeller = Labeller(path=path, grader=grader)
        self.n_questions = 0
        self._unscored = unscored
        self._later: dict[str, list[_Place]] = {}
        for offset, row in read_placed_rows(path):
            form = self._form(row)
            if form.way == FIRST:
                self.n_questions += 1
                continue
            self._later.setdefault(self._key_of_later(row), []).append(_Place(form.attempt or 2, row.line, offset))
        if not self.n_questions:
            raise DataFileError(path, None, "holds no first answer", "give it rows without `attempt` and `route`")
        for places in self._later.values():
            places.sort()

    def __iter__(self) -> Iterator[RecordedQuestion]:
        """Yield the questions, in the order of their first answers.

        Raises:
            DataFileError: a row has no label or nothing to judge it by, later answers have no first one, or two.
        """
        first_lines: dict[str, int] = {}
        with self.path.open("rb") as file:
            for row in read_rows(self.path):
                form = self._form(row)
                if form.way == FIRST:
                    key = _key(row)
                    places = self._places(key, row.line, first_lines)
                    yield RecordedQuestion(
                        first=self._answer(row, form),
                        later=tuple(self._later_answer(file, place) for place in places),
                        group=group_of(row.exchange, row.group),
                    )
        for key, places in self._later.items():
            if key not in first_lines:
                why = "is a later answer to a question without a first one"
                raise DataFileError(self.path, places[0].line, why, "add the row of its first answer (`attempt`: 1)")

    def _places(self, key: str | None, line: int, first_lines: dict[str, int]) -> list[_Place]:
        """Return where the later answers of a question stand."""
        if key is None or key not in self._later:
            return []
        if key in first_lines:
            why = f"is another first answer to the question of line {first_lines[key]}, which has later answers"
            raise DataFileError(
                self.path, line, why, "give each first answer and its later ones a `group` of their own"
            )
        first_lines[key] = line
        return self._later[key]

    def _later_answer(self, file: BinaryIO, place: _Place) -> RecordedAnswer:
        file.seek(place.offset)
        row = parse_row(file.readline(), self.path, place.line)
        return self._answer(row, self._form(row))

    def _form(self, row: Row) -> _AnswerForm:
        try:
            form = _AnswerForm.model_validate({k: v for k, v in row.said.items() if v is not None})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            advice = "`route` is first, retry_retrieval or fallback_model:NAME, and times and costs are at least 0"
            raise DataFileError(self.path, row.line, f"`{where}`: {first['msg']}", advice) from error
        if form.attempt is not None and (form.attempt == 1) != (form.way == FIRST):
            why = f"says attempt {form.attempt} and route {form.way}"
            raise DataFileError(self.path, row.line, why, "attempt 1, and no other, has the route `first`")
        return form

    def _key_of_later(self, row: Row) -> str:
        key = _key(row)
        if key is None:
            why = "is a later answer, but names neither `question` nor `group`"
            raise DataFileError(self.path, row.line, why, "name the question, as in the row of its first answer")
        return key

    def _answer(self, row: Row, form: _AnswerForm) -> RecordedAnswer:
        score = _score(row, form)
        if score is None and form.error is None and form.way not in self._unscored:
            advice = "run `semgrad-guard score` first, or give each row a `confidence`"
            raise DataFileError(self.path, row.line, "has neither signals nor a confidence", advice)
        return RecordedAnswer(
            exchange=replace(row.exchange, metadata=form.metadata, score=score),
            route=form.way,
            correct=self.labeller.correct(row, row.exchange),
            confidence=form.confidence,
            error=form.error,
            cost=form.cost,
            scoring_s=form.seconds,
            answer_s=form.answer_s,
        )


def _key(row: Row) -> str | None:
    """Return what the answers to one question share; `None` when the row says nothing of it."""
    question = " ".join(words(row.exchange.question or ""))
    return f"{row.group or ''}\n{question}" if question or row.group is not None else None


def _score(row: Row, form: _AnswerForm) -> Score | None:
    signals = signals_of(row.said)
    if not signals and form.confidence is None:
        return None
    return Score(
        method=form.method,
        value=form.score,
        signals=signals,
        fingerprint=row.fingerprint or UNKNOWN,
        model=form.model,
        seconds=form.seconds or 0.0,
        spans=tuple(SpanScore(s.start, s.end, s.signals, s.confidence) for s in form.spans),
    )
