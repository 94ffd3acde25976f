"""Reads a policy from its file, and reloads it when the file changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from threading import Lock

from pydantic import ValidationError

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.policy.mistakes import complain
from semgrad_guard.policy.model import Policy
from semgrad_guard.policy.yaml_source import Document, read_yaml

SHIPPED = "the shipped policy"
"""`source` of the policy that comes with the package."""

MAX_BYTES = 1_000_000
"""Largest policy file that is read."""

_WRITE_ONE = "`semgrad-guard policy init` writes one to start from"


def default_text() -> str:
    """Return the shipped policy file, comments included."""
    return files("semgrad_guard.policy").joinpath("default.yaml").read_text(encoding="utf-8")


def load_policy(path: Path | str | None = None, *, env: Mapping[str, str] | None = None) -> Policy:
    """Return the policy of a file.

    Args:
        path: the file; `None` is the shipped policy.
        env: where `${NAME}` values come from; `None` is the process's environment.

    Raises:
        PolicyFileError: the file is missing or has a mistake; the error names file, line and key.
    """
    if path is None:
        return parse_policy(default_text(), source=SHIPPED, env=env)
    return parse_policy(read_file(path), source=str(path), env=env, folder=Path(path).absolute().parent)


def read_file(path: Path | str) -> str:
    """Return the text of a policy file.

    Raises:
        PolicyFileError: the file is missing, unreadable, too large or not UTF-8 text.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise PolicyFileError(path, None, "", f"no such file: {_WRITE_ONE}") from error
    except (OSError, ValueError) as error:
        raise PolicyFileError(path, None, "", f"cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise PolicyFileError(path, None, "", f"{len(content):,} bytes are too many for a policy (limit {MAX_BYTES:,})")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PolicyFileError(path, line, "", "not UTF-8 text: save the file as UTF-8") from error


def parse_policy(
    text: str, *, source: str = "policy", env: Mapping[str, str] | None = None, folder: Path | None = None
) -> Policy:
    """Return the policy that a YAML text describes.

    Args:
        text: the content of a policy file.
        source: name of the policy in errors and records.
        env: where `${NAME}` values come from; `None` is the process's environment.
        folder: where relative profile paths start; `None` is the working directory.

    Raises:
        PolicyFileError: the text has a mistake; the error names line and key.
    """
    return _validated(read_yaml(text, source), source, env, folder)


def policy_from(given: Policy | Mapping[str, object] | Path | str, *, env: Mapping[str, str] | None = None) -> Policy:
    """Return the policy given as an object, a mapping or a file.

    Args:
        given: a policy, the content of a policy file as a mapping, or the path of a file.
        env: where `${NAME}` values come from; `None` is the process's environment.

    Raises:
        PolicyFileError: the policy has a mistake.
    """
    if isinstance(given, Policy):
        return given
    if isinstance(given, Mapping):
        return _validated(Document(dict(given)), "policy", env, None)
    return load_policy(given, env=env)


def _validated(document: Document, source: str, env: Mapping[str, str] | None, folder: Path | None) -> Policy:
    if not isinstance(document.data, dict):
        line = document.line_of(())
        raise PolicyFileError(source, line, "", f"must be `key: value` lines such as `accept: 0.7`: {_WRITE_ONE}")
    context = {"env": os.environ if env is None else env}
    try:
        policy = Policy.model_validate(document.data, context=context)
    except ValidationError as error:
        raise complain(error, document, source) from None
    return policy.from_source(source, folder or Path())


_log = logging.getLogger("semgrad_guard")

Stamp = tuple[int, ...] | None
"""Times, size and inode of a file, by which a change is noticed without reading it; `None` if the file is missing."""


class PolicyWatcher:
    """Keeps a policy up to date with its file while the program runs. It is safe to share between threads."""

    def __init__(self, path: Path | str, *, env: Mapping[str, str] | None = None) -> None:
        """Read the file for the first time.

        Args:
            path: the policy file.
            env: where `${NAME}` values come from; `None` is the process's environment.

        Raises:
            PolicyFileError: the file has a mistake, and there is no earlier policy to fall back on.
        """
        self._path, self._env = Path(path), env
        self._lock = Lock()
        self._stamp = self._look()
        self._text = read_file(path)
        self._policy = self._parsed(self._text)
        self._problem: PolicyFileError | None = None

    @property
    def problem(self) -> PolicyFileError | None:
        """The file's present mistake; `None` when the file's policy is in force."""
        return self._problem

    def current(self) -> Policy:
        """Return the policy in force: the file's, or the last valid one while the file is broken or missing.

        The same object is returned until the file's content changes. A broken file is logged once per change.
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
                _log.warning("the changed policy has a mistake; the last good one stays in force: %s", error)
            self._problem = error
            return
        if self._problem is not None or policy != self._policy:
            _log.info("policy %s reloaded, digest %s", self._path, policy.digest)
        if policy != self._policy:
            self._policy = policy
        self._text, self._problem = text, None

    def _parsed(self, text: str) -> Policy:
        return parse_policy(text, source=str(self._path), env=self._env, folder=self._path.absolute().parent)
