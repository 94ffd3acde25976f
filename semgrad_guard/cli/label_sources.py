"""Where `calibrate` takes its labels from: a data file, the verdicts of a review queue, or both."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, cast

import typer

from semgrad_guard.cli.terminal import bar
from semgrad_guard.errors import DataFileError
from semgrad_guard.evaluation.labelling import Labeller, ReviewedAnswers, signals_of
from semgrad_guard.evaluation.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from semgrad_guard.calibration import LabelledScore
    from semgrad_guard.scoring import SemGradScorer


class Sources:
    """The labels of one run of `calibrate`."""

    def __init__(self, data: Path | None, review_url: str | None, grader: str) -> None:
        """Keep where labels come from.

        Args:
            data: JSONL file of labelled answers.
            review_url: URL of a review queue.
            grader: how answers without a label are compared with the accepted ones.
        """
        if data is None and review_url is None:
            raise typer.BadParameter("name a file of labelled answers, or --from-review")
        self._data, self._review_url = data, review_url
        self._labeller = Labeller(path=data or "", grader=grader)
        self._reviewed = ReviewedAnswers()
        self._n_rows = self._n_verdicts = 0

    def prepare(self, model: str | None, policy: Path | None, console: Console) -> None:
        """Check every row, and load the model where one is named and a row needs it."""
        if self._data and self._data.exists() and not self._data.is_file():
            raise DataFileError(self._data, None, "is no file, and it is read twice", "write the rows to a file first")
        unscored = 0
        for row in read_rows(self._data) if self._data else ():
            self._n_rows += 1
            unscored += not signals_of(row.said)
        if unscored and (model is not None or policy is not None):
            self._load(model, policy, console)

    def labelled(self, console: Console) -> Iterator[LabelledScore]:
        """Yield all labelled scores, a progress bar beside them."""
        with bar(console) as progress:
            task = progress.add_task("Reading labelled answers", total=self._n_rows)
            for label in chain(self._from_file(), self._from_review()):
                progress.advance(task)
                yield label

    def report(self, console: Console) -> None:
        """Print how the labels were come by, and what was left out."""
        labeller = self._labeller
        if labeller.n_graded:
            share = labeller.n_graded_right / labeller.n_graded
            console.print(
                f"{labeller.n_graded:,} answers graded by `{labeller.grader}`: {share:.0%} right", markup=False
            )
        for reason, n in (labeller.left_out + self._reviewed.left_out).items():
            console.print(f"{n:,} left out: {reason}", style="yellow", markup=False)
        if self._n_verdicts:
            console.print(
                f"{self._n_verdicts:,} verdicts of people: they saw the answers that the guard doubted, so high "
                "confidences rest on the other labels",
                style="yellow",
            )

    def _from_file(self) -> Iterator[LabelledScore]:
        if self._data is None:
            return
        for label in self._labeller.label(read_rows(self._data)):
            self._reviewed.fingerprint = label.fingerprint
            yield label

    def _from_review(self) -> Iterator[LabelledScore]:
        if self._review_url is None:
            return
        from semgrad_guard.review import open_queue  # noqa: PLC0415 - loads the database library

        for label in self._reviewed.label(open_queue(self._review_url).labels()):
            self._n_verdicts += 1
            yield label

    def _load(self, model: str | None, policy: Path | None, console: Console) -> None:
        from semgrad_guard.guard.assembly import scorer_of  # noqa: PLC0415 - loads the policy's parser
        from semgrad_guard.models import load_model  # noqa: PLC0415 - loads torch
        from semgrad_guard.policy import load_policy  # noqa: PLC0415 - beside its use

        settings = load_policy(policy).scorer
        with console.status(f"Loading {model or settings.model}"):
            local = load_model(model or settings.model, dtype=settings.dtype, device=settings.device)
        self._labeller.model = local
        self._labeller.scorer = cast("SemGradScorer", scorer_of(settings, local).load())
