"""Scores the rows of a data file for the commands that need scores, and keeps them as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from semgrad_guard.cli.terminal import bar
from semgrad_guard.signals import PROBES

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from semgrad_guard.evaluation.compare.answering import Asked
    from semgrad_guard.evaluation.row_files import ScoredFile
    from semgrad_guard.scoring import SemGradScorer

UNNAMED = "scored.jsonl"
"""Name of the file of scored rows in the folder of a run that is not to keep them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How the rows without a score are scored."""

    model: str | None = None
    """The model in place of the policy's."""
    policy: Path | None = None
    """The policy whose scorer settings are used; `None` for the policy that ships."""
    rows: Path | None = None
    """File that keeps the scored rows; `None` for none."""
    proxy: bool = False
    """Whether another model than the scoring one wrote all answers."""
    by_profile: bool = False
    """Whether position, band and embedder are those of the policy's profile, as in a guard, where it names none."""

    @property
    def is_wanted(self) -> bool:
        """Whether an option says that rows may be scored."""
        return self.proxy or any(one is not None for one in (self.model, self.policy, self.rows))

    def carry_out(self, data: Path, folder: Path, console: Console) -> ScoredFile:
        """Score the rows of a data file and return the file that has them.

        Args:
            data: the data file.
            folder: keeps the rows during this run, where no file is named for them.
            console: for progress.

        Raises:
            DataFileError: a row cannot be used, or was scored by another setting, which is named.
        """
        from semgrad_guard.evaluation.compare.answering import ONLY_SCORES  # loads torch
        from semgrad_guard.evaluation.row_files import ScoredFile, Setting

        scorer = self._scorer(console)
        path = self.rows or folder / UNNAMED
        scored = ScoredFile(
            path,
            Setting(fingerprint=scorer.fingerprint(), model=scorer.name, proxy=self.proxy),
            advice=f"use the setting of the file, name another one with --rows, or delete {path}",
        )
        score_pending(console, scored, data, scorer, replace(ONLY_SCORES, proxy=self.proxy))
        if self.rows is not None:
            console.print(f"scored rows: {self.rows}", markup=False, soft_wrap=True)
        return scored

    def _scorer(self, console: Console) -> SemGradScorer:
        """Load the scorer of the policy, with the named model."""
        from semgrad_guard.guard.assembly import profile_of, scorer_of  # loads the policy's parser
        from semgrad_guard.models import load_model  # loads torch
        from semgrad_guard.policy import load_policy

        policy = load_policy(self.policy)
        settings = policy.scorer
        with console.status(f"Loading {self.model or settings.model}"):
            local = load_model(self.model or settings.model, dtype=settings.dtype, device=settings.device)
            profile = profile_of(policy) if self.by_profile else None
            return cast("SemGradScorer", scorer_of(settings, local, profile, further=PROBES).load())


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


def write_scored_copy(scored: ScoredFile, data: Path, target: Path) -> None:
    """Write the rows of a data file with their scores, each in the line that it has there."""
    at = 1
    with target.open("w", encoding="ascii") as file:
        for row in scored.rows(data):
            file.write("\n" * (row.line - at) + json.dumps(row.fields) + "\n")
            at = row.line + 1
