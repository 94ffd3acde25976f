"""A file that many threads and processes append whole lines to, and that is rotated by size."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

if sys.platform != "win32":
    import fcntl

LOCK_TRIES = 200
"""How often a held lock is asked for before the line is written without it."""

LOCK_PAUSE_S = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendFile:
    """Appends lines so that each is there whole or not at all.

    Writers exclude each other by `flock` on the file itself, so no second file is needed and an outside log rotation is
    noticed. The system drops the lock of a killed process. Who cannot get it for `LOCK_TRIES` tries (a stopped process
    holds it) appends without: one `O_APPEND` write is still in one piece. Without `flock` (Windows) nothing is rotated.
    """

    path: Path
    max_bytes: int
    """Size from which the file is moved to `<name>.1`, `<name>.1` to `<name>.2` and so on."""
    keep: int
    """How many moved files are kept."""
    pause: Callable[[float], None] = time.sleep

    def append(self, line: bytes) -> None:
        """Append one line, which ends with a newline.

        Raises:
            OSError: it could not be written; nothing of it is left in the file.
        """
        with self._opened() as (fd, locked):
            if stat.S_ISREG(os.fstat(fd).st_mode):
                _append(fd, line, repair=locked)
            else:
                _write(fd, line)

    def files(self) -> list[Path]:
        """Return the files there are, oldest first."""
        moved = [self._moved(n) for n in range(self.keep, 0, -1)]
        return [p for p in (*moved, self.path) if p.exists()]

    @contextmanager
    def _opened(self) -> Generator[tuple[int, bool]]:
        """Yield the open file, rotated if it is full, and whether it is locked."""
        fd, locked = self._open_present()
        try:
            yield fd, locked
        finally:
            os.close(fd)

    def _open_present(self) -> tuple[int, bool]:
        """Return a descriptor of the file that the path names now: another writer may move it before it is locked."""
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
        """Move the file away if it is full; the lock on it makes this process the only one that does."""
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
    """Write a line to a file; with `repair` a torn line before it is ended and a half-written one taken back."""
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
