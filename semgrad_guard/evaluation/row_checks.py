"""Checks all rows of a file of labelled answers before any is scored, because scoring takes long."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.labelling import signals_of
from semgrad_guard.evaluation.row_files import AUTHOR, SCORE_AGAIN, differences, settings_of
from semgrad_guard.evaluation.rows import scored_part

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from semgrad_guard.evaluation.rows import Row

_AUTHORS = {True: "the scoring model itself", False: "another model"}


@dataclass(slots=True)
class RowChecks:
    """Checks the rows of a file of labelled answers in one pass, and counts them."""

    path: Path | str
    """The data file, for messages."""
    proxy: bool = False
    """Whether another model than the scoring one wrote all answers, whatever the rows say."""
    n_rows: int = 0
    n_unscored: int = 0
    """Rows without signals."""
    first_unscored: int | None = None
    """Line of the first of them."""
    _first_scored: Row | None = None
    _authors: dict[bool, int] = field(default_factory=dict[bool, int])
    """Whether the scoring model wrote an answer itself -> the first line where that is so."""

    def take(self, rows: Iterable[Row]) -> None:
        """Check the rows one by one.

        Raises:
            DataFileError: a row has neither label nor accepted answers; it was scored by another setting than an
                earlier one; who wrote its answer differs; or, with `proxy`, its question or answer is missing.
        """
        for row in rows:
            self.n_rows += 1
            if not signals_of(row.fields):
                self.n_unscored += 1
                self.first_unscored = self.first_unscored or row.line
                if row.fields.get("error"):
                    continue
                self._check_logged(row)
                self._check_author(row, own=not self.proxy and (row.is_own or not row.exchange.answer))
            elif row.fingerprint is not None:
                self._check_setting(row)
                self._check_author(row, own=not row.fingerprint.proxy)
            self._check_label(row)

    def _check_label(self, row: Row) -> None:
        if row.correct is None and row.answers is None:
            advice = f"say whether the answer is right, or list accepted answers; it has {', '.join(row.fields)}"
            raise DataFileError(self.path, row.line, "has neither `correct` nor `answers`", advice)

    def _check_logged(self, row: Row) -> None:
        """Check that a row has all that a model needs to read another model's answer."""
        exchange = row.exchange
        if self.proxy and not exchange.answer:
            raise DataFileError(self.path, row.line, "has no `answer`", "with --proxy every row needs the logged one")
        if not (exchange.question or exchange.prompt or (exchange.prompt_ids and not self.proxy)):
            advice = f'add "question" (with "passages"), "prompt" or "messages"; it has {", ".join(row.fields)}'
            raise DataFileError(self.path, row.line, "asks nothing", advice)

    def _check_setting(self, row: Row) -> None:
        first = self._first_scored
        if first is None or first.fingerprint is None or row.fingerprint is None:
            self._first_scored = row
            return
        names = [str(scored_part(one.fields).get("model", "")) for one in (row, first)]
        here, there = settings_of(asdict(row.fingerprint), names[0]), settings_of(asdict(first.fingerprint), names[1])
        if found := differences(here, there, leave_out=frozenset({AUTHOR}), old="here", new=f"in line {first.line}"):
            why = f"was scored by another setting than line {first.line}: {'; '.join(found)}"
            raise DataFileError(self.path, row.line, why, f"calibrate them apart, or {SCORE_AGAIN}")

    def _check_author(self, row: Row, *, own: bool) -> None:
        self._authors.setdefault(own, row.line)
        if self.proxy and own:
            why = f"was scored as an answer of {_AUTHORS[own]}, but --proxy takes all as another model's"
            raise DataFileError(self.path, row.line, why, f"leave --proxy out, or {SCORE_AGAIN}")
        if len(self._authors) > 1:
            why = f"is an answer of {_AUTHORS[own]}, line {self._authors[not own]} one of {_AUTHORS[not own]}"
            advice = "calibrate them apart, or take all as another model's with --proxy"
            raise DataFileError(self.path, row.line, why, advice)
