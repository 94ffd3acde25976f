"""The keys that callers of the server need: a file of digests, read again whenever it changes."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.flow import utc_now
from semgrad_guard.review.access import PREFIX, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class KeyFileError(SemGradGuardError, ValueError):
    """A file of keys cannot be used."""

    def __init__(self, path: Path, why: str, advice: str) -> None:
        """Keep the file and what is wrong with it."""
        self.path, self.why = path, why
        super().__init__(f"{path}: {why}: {advice}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret."""

    name: str
    digest: str
    created_at: str


class KeyFile:
    """Keys by their digests, as in the review queue. It is safe to share between threads.

    Revoking a key, here or by deleting its entry, works at the next request and ends streams that it began.

    Example:
        >>> secret = KeyFile(Path("keys.json")).issue("rag-app")  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        """Keep the path; a file that does not exist holds no key."""
        self.path = path
        self._lock = threading.Lock()
        self._read: tuple[object, dict[str, str]] | None = None

    def find(self, secret: str) -> str | None:
        """Return the name of the key with this secret, `None` where there is none.

        Raises:
            KeyFileError: the file cannot be read.
        """
        return self._names().get(digest(secret))

    def all(self) -> tuple[Key, ...]:
        """Return the keys, oldest first.

        Raises:
            KeyFileError: the file cannot be read.
        """
        try:
            return tuple(_KEYS.validate_json(self.path.read_bytes()))
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            why = f"it is no file of keys ({type(error).__name__})"
            raise KeyFileError(self.path, why, "make a new one with `semgrad-guard keys add NAME`") from error

    def issue(self, name: str) -> str:
        """Add a key and return its secret, which cannot be read again.

        Raises:
            KeyFileError: there is already a key with this name.
        """
        keys = self.all()
        if any(key.name == name for key in keys):
            raise KeyFileError(self.path, f"there is already a key {name!r}", "revoke it first, or take another name")
        secret = PREFIX + secrets.token_urlsafe(32)
        self._write([*keys, Key(name, digest(secret), utc_now().isoformat(timespec="seconds"))])
        return secret

    def revoke(self, name: str) -> None:
        """End a key for good.

        Raises:
            KeyFileError: there is none with this name.
        """
        keys = self.all()
        if all(key.name != name for key in keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise KeyFileError(self.path, f"there is no key {name!r}", f"it holds {known}")
        self._write([key for key in keys if key.name != name])

    def _names(self) -> dict[str, str]:
        with self._lock:
            stamp = _stamp(self.path)
            if self._read is None or self._read[0] != stamp:
                self._read = (stamp, {key.digest: key.name for key in self.all()})
            return self._read[1]

    def _write(self, keys: Iterable[Key]) -> None:
        """Replace the file at once, readable by its owner alone."""
        text = json.dumps([asdict(key) for key in keys], indent=2) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(self.path)


_KEYS: TypeAdapter[Sequence[Key]] = TypeAdapter(list[Key])


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
