"""Files that commands write row by row: an interrupted run is resumed, and no two settings are mixed in one file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from typing_extensions import override

from semgrad_guard.calibration.fitting_scores import differences as fingerprint_differences
from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.rows import read_rows, row_of, scored_part
from semgrad_guard.flow import Fingerprint
from semgrad_guard.wire import WireError, score_from_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from semgrad_guard.evaluation.rows import Row

ROW_KEY = "row_digest"
"""Key in an output line for the digest of its input line."""
ADVICE = "name another --out, or use --overwrite"


def digest(row: Row) -> str:
    """Return the digest of an input line, by which a resumed run recognises it."""
    return hashlib.sha256(json.dumps(row.fields, sort_keys=True).encode()).hexdigest()[:16]


def check_apart(data: Path, target: Path) -> None:
    """Refuse to read and write one file in a run.

    Raises:
        DataFileError: both are the same file.
    """
    if target.exists() and data.exists() and target.samefile(data):
        raise DataFileError(data, None, "is to be read and written in one run", "name another file to write")


class ResumableFile:
    """A file with an output line for each input line; an interrupted run can be resumed.

    No other run can write to the file while the object exists.
    """

    def __init__(self, path: Path, advice: str = ADVICE) -> None:
        """Remove an incomplete last line of an earlier run, and read which input lines are done.

        Args:
            path: the file; it need not exist yet.
            advice: what to do when the file cannot be continued.

        Raises:
            DataFileError: the file has other content, or another run is writing to it.
        """
        self.path, self.advice = path, advice
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            wait = "wait until it has ended, or name another file"
            raise DataFileError(path, None, "another run is writing to it", wait) from error
        self._places: dict[str, int] = {}
        _drop_partial_line(path)
        offset = 0
        for number, line, size in self._lines():
            self.take(line, number)
            self._places[line[ROW_KEY]] = offset
            offset += size

    @property
    def done(self) -> frozenset[str]:
        """The digests of the input lines that the file has."""
        return frozenset(self._places)

    def take(self, line: dict[str, Any], number: int) -> None:
        """Check a line of an earlier run; subclasses raise an error if the run cannot be resumed."""

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the lines with their numbers, from 1.

        Raises:
            DataFileError: a line was not written by such a run.
        """
        for number, fields, _ in self._lines():
            yield number, fields

    def _lines(self) -> Iterator[tuple[int, dict[str, Any], int]]:
        """Yield the lines with their numbers and sizes in bytes."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    fields = json.loads(line)
                    fields[ROW_KEY]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataFileError(self.path, number, "not a line that this command wrote", self.advice) from error
                yield number, fields, len(line)

    def append(self, found: dict[str, Any]) -> None:
        """Write one object as one line, on disk before the call returns."""
        line = json.dumps(found, ensure_ascii=True) + "\n"
        with self.path.open("a", encoding="ascii") as file:
            offset = file.tell()
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._places[found[ROW_KEY]] = offset

    def has(self, key: str) -> bool:
        """Return whether the file has an output line for the input line with this digest."""
        return key in self._places

    def line_of(self, row: Row) -> dict[str, Any] | None:
        """Return the output line of an input line; `None` when there is none yet."""
        offset = self._places.get(digest(row))
        if offset is None:
            return None
        with self.path.open("rb") as file:
            file.seek(offset)
            found: dict[str, Any] = json.loads(file.readline())
        return found


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


# --- settings ---------------------------------------------------------------------------------------------------------

_PART = re.compile(r"(?:^|, )(position|blocks|by|texts|embedder) ")
_WORDS = {"blocks": "layer band", "by": "granularity", "texts": "signals of texts"}
"""Words of a fingerprint's settings -> what users call them."""
AUTHOR = "answers by"
NONE = "none"
_N_DIGITS = 12
"""Digits of a digest that are shown."""


def settings_of(fingerprint: Mapping[str, Any], model: str = "") -> dict[str, str]:
    """Return what scores depend on by the names that users know: `position`, `layer band`, `embedder` and so on.

    Args:
        fingerprint: a fingerprint's fields.
        model: readable name of the model, to be shown beside its digest.
    """
    found = {name: str(fingerprint.get(name))[:_N_DIGITS] for name in ("model", "dtype", "template")}
    if model:
        found["model"] = f"{model} ({found['model']})"
    text = str(fingerprint.get("settings", ""))
    pieces = _PART.split(text)
    if pieces[0]:
        found["settings"] = pieces[0]
    found[AUTHOR] = "another model" if fingerprint.get("proxy") else "the scoring model"
    found |= {_WORDS.get(word, word): value for word, value in zip(pieces[1::2], pieces[2::2], strict=True)}
    return found


def differences(
    there: Mapping[str, str],
    wanted: Mapping[str, str],
    *,
    leave_out: frozenset[str] = frozenset(),
    old: str = "in the file",
    new: str = "in this run",
) -> list[str]:
    """Describe every setting in which scores differ from those that are wanted.

    Args:
        there: settings of the scores that are there, from `settings_of`.
        wanted: settings of the scores that are wanted.
        leave_out: names of settings that may differ.
        old: where the scores are.
        new: what wants others.
    """
    names = [name for name in {**wanted, **there} if name not in leave_out]
    pairs = [(name, there.get(name, NONE), wanted.get(name, NONE)) for name in names]
    return [f"{name} {a} {old}, {b} {new}" for name, a, b in pairs if not _same(name, a, b)]


def _same(name: str, one: str, other: str) -> bool:
    """Return whether two values of a setting are equal.

    Models are told apart by digest and not by name, embedders by what they do to a few texts.
    """
    if name == "model":
        return one.rpartition("(")[2].rstrip(")") == other.rpartition("(")[2].rstrip(")")
    if name == "embedder" and NONE not in {one, other}:
        return not fingerprint_differences(_embedded(one), _embedded(other))
    return one == other


def _embedded(embedder: str) -> Fingerprint:
    """Return a fingerprint in which only the embedder is named."""
    return Fingerprint(model="", dtype="", template="", settings=f", embedder {embedder}")


SCORE_AGAIN = "score it again by `semgrad-guard score --rescore`"


def _check_form(row: Row, path: Path) -> None:
    try:
        score_from_fields(row.fields["score"])
    except WireError as error:
        raise DataFileError(path, row.line, f"`score`: {error.why}", SCORE_AGAIN) from error


def is_scored(row: Row) -> bool:
    """Return whether a row has the score of a known setting, as `score`, `calibrate` and `evaluate` write it."""
    return row.fingerprint is not None and scored_part(row.fields) is not row.fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the scores of a run depend on, apart from the rows."""

    fingerprint: Fingerprint
    model: str = ""
    """Readable name of the scoring model, for messages."""
    method: str | None = None
    """The signal used as the score; `None` where it does not matter."""
    proxy: bool = False
    """Whether another model wrote all answers; otherwise that may differ from row to row."""

    def values(self) -> dict[str, str]:
        """Return the settings by the names that users know."""
        found = settings_of({**asdict(self.fingerprint), "proxy": self.proxy}, self.model)
        return found if self.method is None else {**found, "method": self.method}


class ScoredFile(ResumableFile):
    """The rows that a run has scored so far, all by one model and setting."""

    def __init__(
        self,
        path: Path,
        setting: Setting,
        *,
        own_positions: bool = False,
        rescore: bool = False,
        advice: str = ADVICE,
    ) -> None:
        """Open the file and check the lines of an earlier run.

        Args:
            path: the file; it need not exist yet.
            setting: what the scores of this run depend on.
            own_positions: whether a row may name a position of its own, to be scored there.
            rescore: whether rows are scored again that have a score already.
            advice: what to do when the file has scores of another setting.

        Raises:
            DataFileError: the file has other content, or scores of another setting, which is named.
        """
        self._failed = set[str]()
        self._wanted = setting.values()
        self._may_differ = frozenset[str]() if setting.proxy else frozenset({AUTHOR})
        self._own_positions, self._rescore = own_positions, rescore
        super().__init__(path, advice)

    @property
    def n_errors(self) -> int:
        """The number of rows that could not be scored."""
        return len(self._failed)

    @override
    def append(self, found: dict[str, Any]) -> None:
        super().append(found)
        if "error" in found:
            self._failed.add(found[ROW_KEY])

    @override
    def take(self, line: dict[str, Any], number: int) -> None:
        part = scored_part(line)
        if "error" in line:
            self._failed.add(line[ROW_KEY])
        elif part.get("fingerprint") is not None:
            self._check(line, self.path, number, self.advice)

    def pending(self, data: Path, limit: int | None = None) -> Iterator[Row]:
        """Yield those of the first `limit` rows of a data file that are not in this file yet; of equal rows the first.

        Raises:
            DataFileError: a row cannot be used, or was scored by another setting, which is named.
        """
        check_apart(data, self.path)
        seen = set[str]()
        for row in islice(read_rows(data), limit):
            if is_scored(row) and not self._rescore:
                _check_form(row, data)
                self._check(row.fields, data, row.line, f"use the setting of the file, or {SCORE_AGAIN}")
            key = digest(row)
            if key not in seen and not self.has(key):
                seen.add(key)
                self._check_position(row, data)
                yield row

    def rows(self, data: Path, limit: int | None = None) -> Iterator[Row]:
        """Yield the first `limit` rows of a data file, as far as this file has them answered and scored."""
        for row in islice(read_rows(data), limit):
            found = self.line_of(row)
            yield row if found is None else row_of(found, data, row.line)

    def _check(self, fields: Mapping[str, Any], path: Path, number: int, advice: str) -> None:
        part = scored_part(fields)
        there = settings_of(part["fingerprint"], str(part.get("model", "")))
        if "method" in self._wanted:
            there["method"] = str(part.get("method"))
        own_position = self._own_positions and fields.get("position") is not None
        leave_out = self._may_differ | ({"position"} if own_position else set())
        found = differences(there, self._wanted, leave_out=leave_out)
        if found:
            raise DataFileError(path, number, f"was scored by another setting: {'; '.join(found)}", advice)

    def _check_position(self, row: Row, path: Path) -> None:
        position = self._wanted.get("position")
        if row.position is None or self._own_positions or position in {None, str(row.position)}:
            return
        why = f"names position {row.position}, but this run scores at {position}"
        raise DataFileError(
            path, row.line, why, "set scorer.position in the policy, or run `semgrad-guard score` first"
        )
