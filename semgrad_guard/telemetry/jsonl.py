"""Record -> one line of a JSONL file, and back."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import DataFileError
from semgrad_guard.telemetry.append import AppendFile
from semgrad_guard.telemetry.fields import record_fields
from semgrad_guard.telemetry.replay import RecordFieldsError, record_from_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semgrad_guard.flow import Record

_log = logging.getLogger("semgrad_guard")

MAX_BYTES = 100_000_000
KEEP = 5


class JsonlSink:
    """Appends each record to a file as one line of JSON.

    Threads and processes may share the file. A record that cannot be written (full disk, no permission) is counted in
    `dropped`, and the first of a row of failures is logged; the answer is never affected.
    """

    def __init__(
        self, path: str | Path, *, log_text: bool = True, max_bytes: int = MAX_BYTES, keep: int = KEEP
    ) -> None:
        """Name the file; it is made at the first record, readable by its owner only.

        Args:
            path: the file.
            log_text: whether texts are written.
            max_bytes: size from which the file is moved to `<name>.1` and a new one begun.
            keep: how many moved files are kept.
        """
        self.log_text = log_text
        self.dropped = 0
        """Records that could not be written."""
        self._file = AppendFile(path=Path(path), max_bytes=max_bytes, keep=keep)
        self._failing = False
        self._counts = threading.Lock()

    def emit(self, record: Record) -> None:
        """Append one record."""
        try:
            fields = record_fields(record, log_text=self.log_text)
            self._file.append(json.dumps(fields, allow_nan=False).encode("ascii") + b"\n")
        except Exception as error:  # noqa: BLE001 - logging must not cost the caller the answer
            self._drop(error)
        else:
            self._failing = False

    def close(self) -> None:
        """Do nothing: every record is written when it is emitted."""

    def _drop(self, error: Exception) -> None:
        with self._counts:
            self.dropped += 1
            first, self._failing = not self._failing, True
        if first:
            _log.error(
                "records are not written to %s until this is mended: %s: %s",
                self._file.path,
                type(error).__name__,
                error,
            )


def read_records(path: str | Path, *, keep: int = KEEP) -> Iterator[Record]:
    """Yield the records of a file and of those rotated away from it, oldest first.

    A line that is not JSON is skipped: a process that was killed while it wrote leaves one.

    Args:
        path: the file that the sink writes to.
        keep: how many rotated files to look for.

    Raises:
        DataFileError: there is no such file, or a line is JSON but no record.
    """
    files = AppendFile(path=Path(path), max_bytes=MAX_BYTES, keep=keep).files()
    if not files:
        raise DataFileError(
            path, None, "there is no such file", "set `telemetry: {jsonl: FILE}` in the policy to log records"
        )
    for file in files:
        yield from _records_of(file)


def _records_of(file: Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            said = _parsed(line)
            if said is None:
                _log.warning("%s:%d is no JSON and was skipped", file, number)
                continue
            try:
                yield record_from_fields(said)
            except RecordFieldsError as error:
                raise DataFileError(
                    file, number, error.why, "remove the line, or read it with the release that wrote it"
                ) from error


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else {}
