"""Following a policy file: changes take effect, broken ones do not."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.policy.loading import parse_policy, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.policy.model import Policy

_log = logging.getLogger("semgrad_guard")

Stamp = tuple[int, ...] | None
"""What tells that a file may have changed without reading it; `None` when it is not there."""


class PolicyWatcher:
    """The policy of a file that may change while the program runs; many threads may share one watcher."""

    def __init__(self, path: Path | str, *, env: Mapping[str, str] | None = None) -> None:
        """Read the file for the first time.

        Args:
            path: the policy file.
            env: where `${NAME}` values come from; `None` is the process's environment.

        Raises:
            PolicyFileError: the file has a mistake, and there is no good policy to go on with yet.
        """
        self._path, self._env = Path(path), env
        self._lock = Lock()
        self._stamp = self._look()
        self._text = read_file(path)
        self._policy = self._parsed(self._text)
        self._problem: PolicyFileError | None = None

    @property
    def problem(self) -> PolicyFileError | None:
        """What is wrong with the file now; `None` when the policy in force is the file's."""
        return self._problem

    def current(self) -> Policy:
        """Return the policy in force: the file's, or its last good one while the file is broken or gone.

        The same object comes back as long as the file says the same. A broken file is warned about once a change.
        """
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._read()
            return self._policy

    def _look(self) -> Stamp:
        try:
            seen = self._path.stat()
        except (OSError, ValueError):
            return None
        return (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino)

    def _read(self) -> None:
        try:
            text = read_file(self._path)
            if text == self._text and self._problem is None:
                return
            policy = self._parsed(text)
        except PolicyFileError as error:
            if str(error) != str(self._problem):
                _log.warning("the policy changed and is broken; the last good one stays in force: %s", error)
            self._problem = error
            return
        if self._problem is not None or policy != self._policy:
            _log.info("policy %s reloaded, digest %s", self._path, policy.digest)
        if policy != self._policy:
            self._policy = policy
        self._text, self._problem = text, None

    def _parsed(self, text: str) -> Policy:
        return parse_policy(text, source=str(self._path), env=self._env, folder=self._path.absolute().parent)
