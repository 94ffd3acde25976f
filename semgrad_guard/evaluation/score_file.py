"""Scoring a file of prompts and answers, line by line, so that a run that was cut off goes on where it ended."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from semgrad_guard.errors import DataFileError, ScoringError
from semgrad_guard.evaluation.resumable import ADVICE, ROW_KEY, ResumableFile, digest
from semgrad_guard.evaluation.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Exchange, Score
    from semgrad_guard.ports import Calibrator, Scorer

    ScorerAt = Callable[[int | None], Scorer]
    """The scorer for a row's own position; `None` is the usual one."""

BATCH_ROWS = 16
"""Rows scored together; written before the next ones start."""


def score_rows(
    rows: Iterable[Row], scorer_at: ScorerAt, calibrator: Calibrator | None, *, chat: bool, own_answers: bool
) -> Iterator[dict[str, Any]]:
    """Yield one output object a row, in order: what the row said, its signals, and `confidence` where there is one.

    A row that cannot be scored gets `error` in place of signals; it does not end the run.

    Args:
        rows: what to score.
        scorer_at: gives the scorer for a position.
        calibrator: turns scores into confidences; `None` for none.
        chat: whether the scoring model has a chat template.
        own_answers: the scoring model wrote all answers; otherwise each row says so itself.
    """
    for position, batch in _batches(rows):
        scorer = scorer_at(position)
        exchanges = [row.asked(chat=chat, on_policy=own_answers or row.is_own) for row in batch]
        scores = scorer.score_batch(exchanges)
        for row, exchange, score in zip(batch, exchanges, scores, strict=True):
            yield {**row.said, **_found(exchange, score, calibrator), ROW_KEY: digest(row)}


def _found(exchange: Exchange, score: Score | ScoringError, calibrator: Calibrator | None) -> dict[str, Any]:
    if isinstance(score, ScoringError):
        return {"error": f"{type(score).__name__}: {score}"}
    confidence = calibrator.confidence(exchange, score).value if calibrator else None
    if calibrator and score.spans:
        score = calibrator.with_span_confidences(score)
    found: dict[str, Any] = {
        **score.signals,
        "method": score.method,
        "score": score.value,
        "model": score.model,
        "path": score.path,
        "seconds": round(score.seconds, 6),
        "fingerprint": asdict(score.fingerprint),
    }
    if confidence is not None:
        found["confidence"] = confidence
    if score.spans:
        found["spans"] = [asdict(span) for span in score.spans]
    return found


def _batches(rows: Iterable[Row]) -> Iterator[tuple[int | None, list[Row]]]:
    batch: list[Row] = []
    for row in rows:
        if batch and (row.position != batch[0].position or len(batch) == BATCH_ROWS):
            yield batch[0].position, batch
            batch = []
        batch.append(row)
    if batch:
        yield batch[0].position, batch


class ScoreFile(ResumableFile):
    """The output file of `score`."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], method: str) -> None:
        """Read what an earlier run left.

        Args:
            path: the file; it need not be there yet.
            fingerprint: what the scores of this run depend on.
            method: the signal that is the score.

        Raises:
            DataFileError: the file holds something else, or scores of another model or setting.
        """
        self.n_errors = 0
        self._fingerprint, self._method = fingerprint, method
        super().__init__(path)

    def pending(self, data: Path) -> Iterator[Row]:
        """Yield the rows of a data file that are not in this file yet."""
        return (row for row in read_rows(data) if digest(row) not in self.done)

    @override
    def append(self, found: dict[str, Any]) -> None:
        super().append(found)
        self.n_errors += "error" in found

    @override
    def take(self, line: dict[str, Any], number: int) -> None:
        if "error" in line:
            self.n_errors += 1
        elif _differs(line, self._fingerprint, self._method):
            raise DataFileError(self.path, number, "was scored by another model or setting", ADVICE)


def _differs(said: dict[str, Any], fingerprint: dict[str, Any], method: str) -> bool:
    """Return whether an earlier line cannot stand in one file with this run's; each row's own position may differ."""
    there: dict[str, Any] = said.get("fingerprint") or {}
    shared = {"model", "dtype", "template"}
    same_setting = said.get("position") is not None or there.get("settings") == fingerprint["settings"]
    return {k: there.get(k) for k in shared} != {k: fingerprint[k] for k in shared} or (
        not same_setting or said.get("method") != method
    )
