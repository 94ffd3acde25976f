"""The file of answered questions: no question is answered twice, and no two settings share a file."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.resumable import ADVICE, ResumableFile, digest
from semgrad_guard.evaluation.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Fingerprint


class AnswersFile(ResumableFile):
    """What `evaluate` has asked so far."""

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        """Read what an earlier run left.

        Args:
            path: the file.
            fingerprint: what the scores of this run depend on.

        Raises:
            DataFileError: the file holds something else, or answers of another model or setting.
        """
        self._fingerprint = asdict(fingerprint)
        super().__init__(path)

    @override
    def take(self, line: dict[str, Any], number: int) -> None:
        there = line.get("fingerprint")
        if there is not None and {**there, "proxy": False} != self._fingerprint:
            raise DataFileError(self.path, number, "was answered by another model or setting", ADVICE)

    def pending(self, data: Path, limit: int | None = None) -> Iterator[Row]:
        """Yield the first `limit` rows of a data file that are not in this file yet."""
        return (row for row in islice(read_rows(data), limit) if digest(row) not in self.done)
