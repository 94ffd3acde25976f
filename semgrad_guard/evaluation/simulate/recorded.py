"""Recorded questions and their answers, from a guard's log or from labelled rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.grading import words
from semgrad_guard.evaluation.labelling import Labeller, group_of, signals_of
from semgrad_guard.evaluation.rows import parse_row, read_placed_rows, read_rows, scored_part
from semgrad_guard.flow import Action, Fingerprint, Score, SpanScore
from semgrad_guard.telemetry.jsonl import read_records
from semgrad_guard.wire import SpanForm, WireError, score_from_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Attempt, Exchange

FIRST = "first"
"""Route of the first answer."""
RETRY = Action.RETRY_RETRIEVAL.value
"""Route of an answer after another retrieval."""
UNKNOWN = Fingerprint(model="unknown", dtype="unknown", template="unknown", settings="unknown")
"""What a recorded confidence depends on, when nothing says so; it fits no profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswer:
    """One recorded answer and what is known about it."""

    exchange: Exchange
    """Its `score` is the recorded one; `None` when there is none."""
    route: str = FIRST
    """How the answer was made: `first`, `retry_retrieval`, or `fallback_model:` and the model's name."""
    correct: bool | None
    """`None` when it is not known."""
    confidence: float | None = None
    """Recorded confidence, in [0, 1]; used where the policy's profile gives none."""
    error: str | None = None
    """Why there is no score, when scoring failed."""
    cost: float | None = None
    """Cost units; `None` takes those of the policy's step."""
    scoring_s: float | None = None
    answer_s: float | None = None
    """Seconds of retrieving and answering."""

    @property
    def is_timed(self) -> bool:
        """True when some of its times are known."""
        return self.scoring_s is not None or self.answer_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedQuestion:
    """A question with its first answer and later ones, in order."""

    first: RecordedAnswer
    later: tuple[RecordedAnswer, ...] = ()
    group: str | None = None
    """Group of questions that are not independent of each other; `None` for a separate group."""


def is_log(path: Path) -> bool:
    """Return whether a file contains a guard's records, judged by its first line."""
    try:
        with path.open("rb") as lines:
            said = json.loads(next((line for line in lines if line.strip()), b""))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and "attempts" in said and "version" in said


def read_labels(path: Path, *, grader: str = "contains") -> dict[str, bool]:
    """Return which answers are right, by their ids.

    Args:
        path: JSONL file of rows with the `id` of an attempt and a label: `correct`, or `answer` and accepted `answers`.
            A row whose `correct` is null is left out: it was never decided.
        grader: how answers are compared with accepted ones.

    Raises:
        DataFileError: the file cannot be read, a row has no id or no label, or two rows of one id disagree.
    """
    labeller = Labeller(path=path, grader=grader)
    labels: dict[str, bool] = {}
    for row in read_rows(path):
        name = row.fields.get("id")
        if name is None:
            advice = 'a label is such as {"id": "...", "correct": true}, with the id of an attempt in the log'
            raise DataFileError(path, row.line, "has no `id`", advice)
        if row.correct is None and row.answers is None and "correct" in row.fields:
            continue
        right = labeller.correct(row)
        if labels.setdefault(str(name), right) != right:
            raise DataFileError(
                path,
                row.line,
                f"calls {name} {_word(right)}, an earlier row {_word(not right)}",
                "keep the one that is true",
            )
    return labels


class RecordedLog:
    """The questions of a guard's records, read one by one, with the rotated files before the newest."""

    def __init__(self, path: Path, labels: Mapping[str, bool]) -> None:
        """Keep where they are.

        Args:
            path: the file that the guard's `telemetry: {jsonl: ...}` names.
            labels: attempt's id -> whether its answer is right.
        """
        self.path = path
        self._labels = labels

    def __iter__(self) -> Iterator[RecordedQuestion]:
        """Yield the questions, oldest first.

        Raises:
            DataFileError: the file cannot be read, or none of its attempts has a label.
        """
        n_attempts = n_labelled = 0
        for record in read_records(self.path):
            if record.beside_tool_calls is not None:  # no answer to a question
                continue
            answers = tuple(self._answer(record.attempts, i) for i in range(len(record.attempts)))
            n_attempts += len(answers)
            n_labelled += sum(answer.correct is not None for answer in answers)
            if answers:
                yield RecordedQuestion(first=answers[0], later=answers[1:])
        if not n_labelled:
            why = f"none of its {n_attempts:,} attempts has a label"
            raise DataFileError(self.path, None, why, "labels name attempts by the `id` inside `attempts`")

    def _answer(self, attempts: tuple[Attempt, ...], number: int) -> RecordedAnswer:
        attempt, before = attempts[number], attempts[number - 1] if number else None
        exchange, decision = attempt.exchange, attempt.decision
        scoring_s = decision.score.seconds if decision.score else None
        failed = decision.failure if decision.score is None else None
        return RecordedAnswer(
            exchange=replace(exchange, score=decision.score),
            route=_route(before),
            correct=self._labels.get(str(exchange.id)),
            confidence=decision.confidence.value,
            error=f"{failed.type}: {failed.message}" if failed else None,
            scoring_s=scoring_s,
            answer_s=_between(before, attempt, scoring_s or 0.0),
        )


def _route(before: Attempt | None) -> str:
    """Return the route of an attempt, from the attempt before it."""
    if before is None:
        return FIRST
    step = before.decision.step
    return RETRY if step.ends_question is True else step.route


def _between(before: Attempt | None, attempt: Attempt, scoring_s: float) -> float | None:
    """Return the seconds between the decisions on two attempts in a row, without scoring."""
    if before is None or before.judged_at is None or attempt.judged_at is None:
        return None
    return max(0.0, (attempt.judged_at - before.judged_at).total_seconds() - scoring_s)


def _word(right: bool) -> str:  # noqa: FBT001 - the label is the datum itself
    return "right" if right else "wrong"


_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


_OF_A_SCORE = frozenset({"seconds", "method", "score", "model", "spans"})
"""Fields that describe the score of a row whose signals stand in the row itself."""


class _RowSpan(SpanForm):
    model_config = ConfigDict(extra="ignore")


class _AnswerForm(BaseModel):
    """The fields of a row that are used."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    attempt: Annotated[int, Field(ge=1)] | None = None
    route: Annotated[str, Field(pattern="^(first|retry_retrieval|fallback_model:.+)$")] | None = None
    cost: _Seconds | None = None
    answer_s: _Seconds | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    error: str | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    seconds: _Seconds | None = None
    method: str = "recorded"
    score: float = 0.0
    model: str = ""
    spans: tuple[_RowSpan, ...] = ()

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

    def __init__(
        self,
        path: Path,
        *,
        grader: str = "contains",
        unscored: frozenset[str] = frozenset(),
        source: Path | None = None,
    ) -> None:
        """Look through the file for later answers.

        Args:
            path: the file.
            grader: how an answer without a label is compared with the accepted ones.
            unscored: routes whose answers the policy passes without judging them: they need no signals.
            source: the file that messages name, where `path` is a copy of it.

        Raises:
            DataFileError: a line cannot be used.
        """
        self.path, self._source = path, source or path
        self.labeller = Labeller(path=self._source, grader=grader)
        self.n_questions = 0
        self.n_unscored = 0
        """Rows that have nothing to judge them by: no signals, no confidence, and no error."""
        self.first_scored: tuple[int, Exchange, Score] | None = None
        """Line, exchange and score of the first answer that is judged by its signals."""
        self._unscored = unscored
        self._later: dict[str, list[_Place]] = {}
        for offset, row in read_placed_rows(path):
            form = self._form(row)
            self._count(row, form)
            if form.way == FIRST:
                self.n_questions += 1
                continue
            self._later.setdefault(self._key_of_later(row), []).append(_Place(form.attempt or 2, row.line, offset))
        if not self.n_questions:
            why = "holds no first answer"
            raise DataFileError(self._source, None, why, "give it rows without `attempt` and `route`")
        for places in self._later.values():
            places.sort()

    def _count(self, row: Row, form: _AnswerForm) -> None:
        """Note whether a row can be judged, and by what."""
        if form.confidence is not None or form.error is not None:
            return
        if not signals_of(row.fields):
            self.n_unscored += form.way not in self._unscored
        elif self.first_scored is None and form.way == FIRST and row.fingerprint is not None:
            score, _ = self._score(row, form)
            self.first_scored = None if score is None else (row.line, row.exchange, score)

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
                raise DataFileError(self._source, places[0].line, why, "add the row of its first answer (`attempt`: 1)")

    def _places(self, key: str | None, line: int, first_lines: dict[str, int]) -> list[_Place]:
        """Return where the later answers of a question stand."""
        if key is None or key not in self._later:
            return []
        if key in first_lines:
            why = f"is another first answer to the question of line {first_lines[key]}, which has later answers"
            raise DataFileError(
                self._source, line, why, "give each first answer and its later ones a `group` of their own"
            )
        first_lines[key] = line
        return self._later[key]

    def _later_answer(self, file: BinaryIO, place: _Place) -> RecordedAnswer:
        file.seek(place.offset)
        row = parse_row(file.readline(), self._source, place.line)
        return self._answer(row, self._form(row))

    def _form(self, row: Row) -> _AnswerForm:
        try:
            left_out = frozenset[str]() if scored_part(row.fields) is row.fields else _OF_A_SCORE
            form = _AnswerForm.model_validate(
                {k: v for k, v in row.fields.items() if v is not None and k not in left_out}
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            advice = "`route` is first, retry_retrieval or fallback_model:NAME, and times and costs are at least 0"
            raise DataFileError(self._source, row.line, f"`{where}`: {first['msg']}", advice) from error
        if form.attempt is not None and (form.attempt == 1) != (form.way == FIRST):
            why = f"says attempt {form.attempt} and route {form.way}"
            raise DataFileError(self._source, row.line, why, "attempt 1, and no other, has the route `first`")
        return form

    def _key_of_later(self, row: Row) -> str:
        key = _key(row)
        if key is None:
            why = "is a later answer, but names neither `question` nor `group`"
            raise DataFileError(self._source, row.line, why, "name the question, as in the row of its first answer")
        return key

    def _answer(self, row: Row, form: _AnswerForm) -> RecordedAnswer:
        score, scoring_s = self._score(row, form)
        if score is None and form.error is None and form.way not in self._unscored:
            advice = "run `semgrad-guard score` first, or give each row a `confidence`"
            raise DataFileError(self._source, row.line, "has neither signals nor a confidence", advice)
        return RecordedAnswer(
            exchange=replace(row.exchange, metadata=form.metadata, score=score),
            route=form.way,
            correct=self.labeller.correct(row),
            confidence=form.confidence,
            error=form.error,
            cost=form.cost,
            scoring_s=scoring_s,
            answer_s=form.answer_s,
        )

    def _score(self, row: Row, form: _AnswerForm) -> tuple[Score | None, float | None]:
        """Return the score of a row and the seconds that it took, each where it is known."""
        part = scored_part(row.fields)
        if part is row.fields:
            return _flat_score(row, form), form.seconds
        try:
            score = score_from_fields(part)
        except WireError as error:
            advice = "leave `score` as `semgrad-guard score` wrote it"
            raise DataFileError(self._source, row.line, f"`score`: {error.why}", advice) from error
        return score, score.seconds


def _key(row: Row) -> str | None:
    """Return the group of the answers to one question; `None` when the row does not give it."""
    question = " ".join(words(row.exchange.question or ""))
    return f"{row.group or ''}\n{question}" if question or row.group is not None else None


def _flat_score(row: Row, form: _AnswerForm) -> Score | None:
    """Return the score of a row that holds its signals itself, or only a confidence."""
    signals = signals_of(row.fields)
    if not signals and form.confidence is None:
        return None
    return Score(
        method=form.method,
        value=form.score,
        signals=signals,
        fingerprint=row.fingerprint or UNKNOWN,
        model=form.model,
        seconds=form.seconds or 0.0,
        spans=tuple(
            SpanScore(s.start, s.end, {k: v for k, v in s.signals.items() if v is not None}, s.confidence)
            for s in form.spans
        ),
    )
