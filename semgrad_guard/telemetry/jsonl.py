"""Write records to a file of JSON lines, which several processes may share, and read them back."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import DataFileError
from semgrad_guard.wire import RecordFieldsError, record_fields, record_from_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from semgrad_guard.flow import Record

if sys.platform != "win32":
    import fcntl

LOCK_TRIES = 200
"""How often the lock is tried before the line is written without it."""

LOCK_PAUSE_S = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendFile:
    """Appends lines so that each is written whole or not at all.

    Writers take turns by `flock` on the file itself, so no second file is needed and an external log rotation is
    noticed. The system releases the lock of a killed process. A writer that fails to get the lock after `LOCK_TRIES`
    tries (a stopped process holds it) appends without it; one `O_APPEND` write still stays in one piece. Without
    `flock` (Windows) files are not rotated.
    """

    path: Path
    max_bytes: int
    """Size in bytes at which the file is rotated: to `<name>.1`, `<name>.1` to `<name>.2` and so on."""
    keep: int
    """How many rotated files are kept."""
    pause: Callable[[float], None] = time.sleep

    def append(self, line: bytes) -> None:
        """Append one line, which must end with a newline.

        Raises:
            OSError: the line could not be written; no part of it is left in the file.
        """
        with self._opened() as (fd, locked):
            if stat.S_ISREG(os.fstat(fd).st_mode):
                _append(fd, line, repair=locked)
            else:
                _write(fd, line)

    def files(self) -> list[Path]:
        """Return the existing files, oldest first."""
        moved = [self._moved(n) for n in range(self.keep, 0, -1)]
        return [p for p in (*moved, self.path) if p.exists()]

    @contextmanager
    def _opened(self) -> Generator[tuple[int, bool]]:
        """Yield the open file, after rotating a full one, and whether it is locked."""
        fd, locked = self._open_present()
        try:
            yield fd, locked
        finally:
            os.close(fd)

    def _open_present(self) -> tuple[int, bool]:
        """Open the file that the path names now, since another writer may rotate it before it is locked."""
        while True:
            fd = self._open()
            try:
                locked = self._lock(fd)
                if not locked or (self._is_present(fd) and not self._rotated(fd)):
                    return fd, locked
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            return os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, flags, 0o600)

    def _lock(self, fd: int) -> bool:
        if sys.platform == "win32":
            return False
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    return False
                self.pause(LOCK_PAUSE_S)
            else:
                return True
        return False

    def _is_present(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _rotated(self, fd: int) -> bool:
        """Rotate the file if it is full; the lock ensures that no other process does so too."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size < self.max_bytes:
            return False
        for n in range(self.keep - 1, 0, -1):
            if self._moved(n).exists():
                self._moved(n).replace(self._moved(n + 1))
        if self.keep:
            self.path.replace(self._moved(1))
        else:
            self.path.unlink()
        return True

    def _moved(self, n: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{n}")


def _append(fd: int, line: bytes, *, repair: bool) -> None:
    """Write a line to a file; `repair` ends an incomplete line before it, and removes this one if writing fails."""
    size = os.fstat(fd).st_size
    if repair and size:
        os.lseek(fd, -1, os.SEEK_END)
        if os.read(fd, 1) != b"\n":
            line = b"\n" + line
    try:
        _write(fd, line)
    except OSError:
        if repair:
            os.ftruncate(fd, size)
        raise


def _write(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(fd, rest) :]


_log = logging.getLogger("semgrad_guard")

MAX_BYTES = 100_000_000
KEEP = 5


class JsonlSink:
    """Appends each record to a file as one line of JSON.

    Threads and processes may share the file. A record that cannot be written (full disk, no permission) is counted in
    `dropped`, and the first of consecutive failures is logged; the answer is never affected.
    """

    def __init__(
        self, path: str | Path, *, log_text: bool = True, max_bytes: int = MAX_BYTES, keep: int = KEEP
    ) -> None:
        """Choose the file; the first record creates it, readable by its owner only.

        Args:
            path: the file.
            log_text: whether texts are written.
            max_bytes: size at which the file is moved to `<name>.1` and a new one is started.
            keep: how many rotated files are kept.
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
        """Do nothing; every record was written when it was emitted."""

    def _drop(self, error: Exception) -> None:
        with self._counts:
            self.dropped += 1
            first, self._failing = not self._failing, True
        if first:
            _log.error(
                "records cannot be written to %s until this is fixed: %s: %s",
                self._file.path,
                type(error).__name__,
                error,
            )


def read_records(path: str | Path, *, keep: int = KEEP) -> Iterator[Record]:
    """Yield the records of a file and of its rotated files, oldest first.

    A line that is not JSON is skipped; a process that is killed while writing leaves one.

    Args:
        path: the file that the sink writes to.
        keep: how many rotated files to look for.

    Raises:
        DataFileError: there is no such file, or a line is JSON but not a record.
    """
    files = AppendFile(path=Path(path), max_bytes=MAX_BYTES, keep=keep).files()
    if not files:
        raise no_records(path)
    for file in files:
        yield from _records_of(file)


class RecordReader:
    """Reads the records that are added to a file, through rotations of it."""

    def __init__(self, path: str | Path) -> None:
        """Choose the file; its first lines are read at the first `new`."""
        self._path = Path(path)
        self._place: tuple[int, int] | None = None
        """Device and inode of the file that was read last."""
        self._offset = 0

    def new(self) -> list[Record]:
        """Return the records that were added since the last call; a line that is still being written waits.

        Raises:
            DataFileError: there was never such a file, or a line is JSON but not a record.
        """
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                place = (found.st_dev, found.st_ino)
                if place != self._place or found.st_size < self._offset:
                    self._place, self._offset = place, 0
                file.seek(self._offset)
                whole, _, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            if self._place is not None:
                return []  # it is being rotated
            raise no_records(self._path) from None
        self._offset += len(whole) + 1 if whole else 0
        return list(_records_in(self._path, whole.splitlines()))


def no_records(path: str | Path) -> DataFileError:
    """Return the error for a file that does not exist."""
    advice = "set `telemetry: {jsonl: FILE}` in the policy to log records"
    return DataFileError(path, None, "there is no such file", advice)


def _records_of(file: Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        yield from _records_in(file, lines)


def _records_in(file: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        fields = _parsed(line)
        if fields is None:
            _log.warning("%s:%d is not JSON and was skipped", file, number)
            continue
        try:
            yield record_from_fields(fields)
        except RecordFieldsError as error:
            raise DataFileError(
                file, number, error.why, "remove the line, or read it with the release that wrote it"
            ) from error


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else {}
