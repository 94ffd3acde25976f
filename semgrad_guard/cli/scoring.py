"""Scores the rows of a data file for the commands that need scores, and keeps them as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.cli.terminal import bar

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from semgrad_guard.evaluation.compare.answering import Asked
    from semgrad_guard.evaluation.row_files import ScoredFile
    from semgrad_guard.scoring import SemGradScorer


def score_pending(
    console: Console,
    file: ScoredFile,
    data: Path,
    scorer: SemGradScorer,
    asked: Asked,
    *,
    limit: int | None = None,
    title: str = "Scoring",
) -> None:
    """Answer and score the rows that the file has not yet, and show a progress bar; a kill loses one row at most.

    Args:
        console: where the bar is drawn.
        file: the rows that are done.
        data: the data file.
        scorer: scores the rows; its model writes missing answers.
        asked: what else to ask its model for.
        limit: rows to take from the data file, from the first; `None` for all.
        title: what is done, for the bar.
    """
    from semgrad_guard.evaluation.compare.answering import answer_rows  # loads torch

    n_pending = sum(1 for _ in file.pending(data, limit))  # reports mistakes before anything takes time
    with bar(console) as progress:
        task = progress.add_task(title, total=len(file.done) + n_pending, completed=len(file.done))
        for row in answer_rows(file.pending(data, limit), scorer, asked):
            file.append(row)
            progress.advance(task)
