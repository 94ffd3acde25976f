"""Reads a policy from its file, and reloads it when the file changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from semgrad_guard.errors import PolicyFileError
from semgrad_guard.policy.model import SHIPPED, Policy
from semgrad_guard.policy.survey import survey
from semgrad_guard.policy.yaml_source import Document, Place, dotted, read_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BYTES = 1_000_000
"""Largest policy file that is read."""

_WRITE_ONE = "`semgrad-guard policy init` writes one to start from"


def default_text() -> str:
    """Return the shipped policy file, comments included."""
    return files("semgrad_guard.policy").joinpath("default.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class PolicyReading:
    """What was read of a policy file: the policy, and the mistakes of the file."""

    policy: Policy | None
    """What the file says, with stand-ins for what is wrong in it; `None` where nothing can be made of it."""
    source: str
    """A path or a description."""
    document: Document = field(default_factory=lambda: Document({}))
    mistakes: tuple[tuple[Place, PolicyFileError], ...] = ()
    """Each with its place."""

    def mistake(self, place: Place, why: str) -> PolicyFileError:
        """Return a mistake at a place, with its line."""
        return PolicyFileError(self.source, self.document.line_of(place), dotted(place), why)

    def sound(self) -> Policy:
        """Return the policy.

        Raises:
            PolicyFileError: there are mistakes; the error lists all.
        """
        if self.policy is None or self.mistakes:
            raise all_of([error for _, error in self.mistakes])
        return self.policy


def all_of(mistakes: Sequence[PolicyFileError]) -> PolicyFileError:
    """Return one error that lists all mistakes of a file, in the order of their lines."""
    first, *others = sorted(mistakes, key=lambda error: error.line or 0)
    return PolicyFileError(first.path, first.line, first.key, first.why, others) if others else first


def load_policy(path: Path | str | None = None, *, env: Mapping[str, str] | None = None) -> Policy:
    """Return the policy of a file.

    Args:
        path: the file; `None` is the shipped policy.
        env: where `${NAME}` values come from; `None` is the process's environment.

    Raises:
        PolicyFileError: the file is missing or has mistakes; the error names file, line and key of each.
    """
    return read_policy(path, env=env).sound()


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
        PolicyFileError: the text has mistakes; the error names line and key of each.
    """
    return _read(read_yaml(text, source), source, env, folder).sound()


def policy_from(given: Policy | Mapping[str, object] | Path | str, *, env: Mapping[str, str] | None = None) -> Policy:
    """Return the policy given as an object, a mapping or a file.

    Args:
        given: a policy, the content of a policy file as a mapping, or the path of a file.
        env: where `${NAME}` values come from; `None` is the process's environment.

    Raises:
        PolicyFileError: the policy has mistakes.
    """
    return read_policy(given, env=env).sound()


def read_policy(
    given: Policy | Mapping[str, object] | Path | str | None, *, env: Mapping[str, str] | None = None
) -> PolicyReading:
    """Return what a policy says and the mistakes in it; see `policy_from`.

    Raises:
        PolicyFileError: there is no such file, or its content is no policy at all.
    """
    if isinstance(given, Policy):
        return PolicyReading(given, given.source)
    if isinstance(given, Mapping):
        return _read(Document(dict(given)), "policy", env, None)
    if given is None:
        return _read(read_yaml(default_text(), SHIPPED), SHIPPED, env, None)
    source = str(given)
    return _read(read_yaml(read_file(given), source), source, env, Path(given).absolute().parent)


def _read(document: Document, source: str, env: Mapping[str, str] | None, folder: Path | None) -> PolicyReading:
    if not isinstance(document.data, dict):
        if document.mistakes:
            raise all_of([error for _, error in document.mistakes])
        line = document.line_of(())
        raise PolicyFileError(source, line, "", f"must be `key: value` lines such as `accept: 0.7`: {_WRITE_ONE}")
    policy, found = survey(document, os.environ if env is None else env)
    reading = PolicyReading(policy and policy.from_source(source, folder or Path()), source, document)
    order = {place: number for number, place in enumerate(document.lines)}
    # of one line, misspelt keys come first: they explain the most
    found.sort(key=lambda mistake: (not mistake.misspelt, order.get(mistake.place, len(order))))
    named = [(mistake.place, reading.mistake(mistake.place, mistake.why)) for mistake in found]
    return replace(reading, mistakes=(*document.mistakes, *named))


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
