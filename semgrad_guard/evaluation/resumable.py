"""A JSONL file that survives being cut off: it only ever gains whole lines, and knows what it holds already."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from semgrad_guard.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from semgrad_guard.evaluation.rows import Row

ROW_KEY = "row_digest"
"""Key under which an output line names the input line it came from."""
ADVICE = "name another --out, or use --overwrite"


def digest(row: Row) -> str:
    """Return what tells an input line from all others."""
    return hashlib.sha256(json.dumps(row.said, sort_keys=True).encode()).hexdigest()[:16]


class ResumableFile:
    """Output lines, each for one input line; a run that was cut off goes on where it ended.

    While the object lives, or until its process ends, no other run can write to the file.
    """

    def __init__(self, path: Path) -> None:
        """Cut off the last line of an earlier run if it is not whole, and read which input lines are done.

        Args:
            path: the file; it need not be there yet.

        Raises:
            DataFileError: the file holds something else, or another run is writing to it.
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
        """Look at a line of an earlier run; raises what makes going on with it wrong."""

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the lines with their numbers, from 1.

        Raises:
            DataFileError: a line that no run wrote.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    said = json.loads(line)
                    said[ROW_KEY]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataFileError(self.path, number, "not a line that this command wrote", ADVICE) from error
                yield number, said

    def append(self, found: dict[str, Any]) -> None:
        """Write one object as one line, on disk before the call returns."""
        line = json.dumps(found, ensure_ascii=True) + "\n"
        with self.path.open("a", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.done.add(found[ROW_KEY])


def _drop_partial_line(path: Path) -> None:
    """Truncate a file behind its last line end, reading only its tail."""
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
