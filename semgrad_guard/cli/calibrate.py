"""`semgrad-guard calibrate`: fit a profile on labelled answers and report how good it is."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from semgrad_guard.calibration.labels import MIN_LABELS
from semgrad_guard.cli.profile import describe, evidence_table, more_evidence
from semgrad_guard.cli.score import Scoring
from semgrad_guard.cli.terminal import bar, examples
from semgrad_guard.errors import DataFileError, RiskNotControllableError, TooFewLabelsError
from semgrad_guard.evaluation.labelling import HOW_TO_SCORE, Labeller, ReviewedAnswers, contradictions, signals_of
from semgrad_guard.evaluation.row_checks import RowChecks
from semgrad_guard.evaluation.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semgrad_guard.calibration import LabelledScore, Profile
    from semgrad_guard.evaluation.row_files import ScoredFile
    from semgrad_guard.evaluation.rows import Row


class Sources:
    """The labels of one run of `calibrate`."""

    def __init__(self, data: Path | None, review_url: str | None, grader: str) -> None:
        """Keep the sources of the labels.

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
        self._scored: ScoredFile | None = None
        self._adversarial: tuple[Path, ScoredFile] | None = None
        self._n_rows = self._n_verdicts = 0

    def prepare(self, scoring: Scoring, folder: Path, console: Console) -> None:
        """Check every row, score those without signals, and find labels that contradict each other.

        Args:
            scoring: how to score them.
            folder: keeps them during this run, where no file is named for them.
            console: for progress and warnings.
        """
        if self._data is None:
            return
        if self._data.exists() and not self._data.is_file():
            why = "is not a regular file, but it must be read twice"
            raise DataFileError(self._data, None, why, "write the rows to a file first")
        found = RowChecks(path=self._data, proxy=scoring.proxy)
        found.take(read_rows(self._data))
        self._n_rows = found.n_rows
        if found.first_unscored is not None and not scoring.is_wanted:
            self._check_failed(self._data)
        if found.n_rows < MIN_LABELS and self._review_url is None:
            raise TooFewLabelsError(found.n_rows, MIN_LABELS, f"rows of {self._data}")
        clashes = contradictions(self._rows(), self._data, self._labeller.label_of)
        if found.n_unscored and scoring.is_wanted:
            self._scored = scoring.carry_out(self._data, folder, console)
            clashes = contradictions(self._rows(), self._data, self._labeller.label_of)  # with the answers written now
        self._labeller.contradicting = clashes.all_lines()
        if clashes.lines:
            console.print(f"{clashes.in_words()}; they are left out", style="yellow", markup=False, soft_wrap=True)

    def add_adversarial(self, scoring: Scoring, folder: Path, console: Console, *, seed: int) -> None:
        """Make answers that must lose from the labelled rows, and score them as these.

        Args:
            scoring: as for `prepare`; without a model there are none.
            folder: as for `prepare`.
            console: for progress, and to say why there are none.
            seed: which answers are made.
        """
        from semgrad_guard.evaluation.adversarial import Honest, write_adversarial  # loads torch

        if self._data is None or not scoring.is_wanted:
            console.print("no answers that must lose are added: no model is named to score them", style="dim")
            return
        honest = [
            Honest(row.exchange, label, row.answers or (), {**row.fields, "on_policy": row.is_own})
            for row in self._rows()
            if not row.fields.get("adversarial") and (label := self._labeller.label_of(row)) is not None
        ]
        data = folder / ADVERSARIAL
        n_made = write_adversarial(honest, data, seed=seed)
        if not n_made:
            console.print("no answers that must lose are added: no row has passages", style="dim")
            return
        (folder / "made").mkdir()
        kept = scoring.rows and scoring.rows.with_suffix(f".{ADVERSARIAL}")
        self._adversarial = data, replace(scoring, rows=kept).carry_out(data, folder / "made", console)
        self._n_rows += n_made

    def labelled(self, console: Console) -> Iterator[LabelledScore]:
        """Yield all labelled scores and show a progress bar."""
        with bar(console) as progress:
            task = progress.add_task("Reading labelled answers", total=self._n_rows)
            for label in chain(self._from_file(), self._from_review()):
                progress.advance(task)
                yield label

    def report(self, console: Console) -> None:
        """Print where the labels come from, and what was left out."""
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
                f"{self._n_verdicts:,} labels are reviewers' verdicts; reviewers see only answers that the guard "
                "doubted, so high confidences rest on the other labels",
                style="yellow",
            )

    def _rows(self) -> Iterator[Row]:
        """Return the rows of the file, as far as possible scored."""
        if self._data is None:
            return iter(())
        return read_rows(self._data) if self._scored is None else self._scored.rows(self._data)

    def _from_file(self) -> Iterator[LabelledScore]:
        for label in self._labeller.label(self._rows()):
            self._reviewed.fingerprint = label.fingerprint
            yield label
        if self._adversarial is not None:
            data, scored = self._adversarial
            yield from Labeller(path=data).label(scored.rows(data))

    def _from_review(self) -> Iterator[LabelledScore]:
        if self._review_url is None:
            return
        from semgrad_guard.review import open_queue  # loads the database library

        for label in self._reviewed.label(open_queue(self._review_url).labels()):
            self._n_verdicts += 1
            yield label

    def _check_failed(self, data: Path) -> None:
        """Refuse rows without signals, except those that could not be scored."""
        for row in read_rows(data):
            if not signals_of(row.fields) and not row.fields.get("error"):
                raise DataFileError(data, row.line, "has no signals", HOW_TO_SCORE)


ADVERSARIAL = "adversarial.jsonl"
"""Name of the rows that are made; behind the name of the file of scored rows, where one is kept."""

EXAMPLES = examples(
    "semgrad-guard calibrate scored.jsonl --out my-profile.json",
    "semgrad-guard calibrate answers.jsonl --model smollm2-135m --plot bins.png",
    "semgrad-guard calibrate answers.jsonl --policy policy.yaml --error-rate 0.1",
    "semgrad-guard calibrate logs.jsonl --proxy --rows scored.jsonl",
    "semgrad-guard calibrate --from-review sqlite:///review.db",
    more="""
A line of the input is what `semgrad-guard score` wrote, or {"question": "...", "passages": ["..."], "answer": "..."},
with `correct` (true or false) or `answers` (accepted answers to grade with). If a line has no answer, the model answers
it. With --proxy every line has one, which another model wrote, and the scoring model only reads it. Lines with the same
`group`, or the same question, are never split between fitting and testing. `set` names the data set of a line and
`generator` the model that wrote its answer: of three sets or more, each is left out in turn as evidence.

--rows keeps what was scored, row by row: an interrupted run continues where it stopped, the next run scores nothing
again, and `score`, `evaluate` and `policy simulate` read the file.
    """,
)


def calibrate(
    data: Annotated[Path | None, typer.Argument(help="JSONL file of labelled answers.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Profile to write.")] = Path("profile.json"),
    from_review: Annotated[
        str | None, typer.Option(help="URL of a review queue whose verdicts are used as labels.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the profile; by default the file's name.")] = None,
    basis: Annotated[
        str, typer.Option(help="What the answers are, in a few words; shown with every confidence of a proxy.")
    ] = "",
    method: Annotated[str, typer.Option(help="fused, or the name of one signal.")] = "fused",
    calibrator: Annotated[
        Literal["auto", "platt", "beta", "isotonic", "venn_abers"], typer.Option(help="Calibration curve.")
    ] = "auto",
    model: Annotated[
        str | None, typer.Option(help="Model for rows without signals: name, Hugging Face id, folder or .gguf.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy whose scorer settings are used.")] = None,
    proxy: Annotated[
        bool, typer.Option("--proxy", help="Another model, such as an API model, wrote all answers.")
    ] = False,
    adversarial: Annotated[
        bool,
        typer.Option(
            help="Also teach it answers that are made to look right: by copied passages, changed numbers and names, "
            "denials, orders in passages."
        ),
    ] = True,
    rows: Annotated[
        Path | None, typer.Option(help="File that keeps the scored rows, for the next run.", show_default=False)
    ] = None,
    grader: Annotated[
        Literal["contains", "exact", "f1"], typer.Option(help="How answers are compared with accepted ones.")
    ] = "contains",
    error_rate: Annotated[
        float | None, typer.Option(help="Also show the threshold that keeps the share of wrong answers this low.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Probability with which that promise may fail.")] = 0.05,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of questions kept out of the fit, for the strictest promise.")
    ] = 0.0,
    expires_days: Annotated[int | None, typer.Option(min=1, help="Days after which the profile expires.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Reliability plot to write (.png, .svg, .pdf).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds and intervals.")] = 0,
) -> None:
    """Turn raw scores into honest probabilities: fit a profile on labelled answers and print how good it is."""
    from semgrad_guard.calibration import fit_profile  # loads numpy

    console, progress = Console(), Console(stderr=True)
    sources = Sources(data, from_review, grader)
    with tempfile.TemporaryDirectory() as folder:
        scoring = Scoring(model=model, policy=policy, rows=rows, proxy=proxy)
        sources.prepare(scoring, Path(folder), progress)
        if adversarial and method == "fused":
            sources.add_adversarial(scoring, Path(folder), progress, seed=seed)
        try:
            profile = fit_profile(
                sources.labelled(progress),
                name=name or out.stem,
                method=method,
                calibrator=calibrator,
                expires=datetime.now(UTC) + timedelta(days=expires_days) if expires_days else None,
                held_out=held_out,
                simpler=proxy,
                seed=seed,
            )
        finally:
            sources.report(progress)  # also why rows were left out, where too few remain
    profile = profile.model_copy(update={"basis": basis})
    profile.save(out)
    _report(console, profile)
    if error_rate is not None:
        _print_threshold(console, profile, error_rate, delta)
    if plot is not None:
        _save_plot(profile, plot)
        console.print(f"reliability plot: {plot}", soft_wrap=True)
    console.print(f"profile: {out}; use it as `scorer: {{profile: {out}}}` in the policy", soft_wrap=True, markup=False)


def _report(console: Console, profile: Profile) -> None:
    """Print what was fitted, how good it is and what it does not promise."""
    console.print(describe(profile), markup=False)
    console.print(evidence_table(profile))
    for table in more_evidence(profile):
        console.print(table)
    console.print(
        "Figures are out-of-sample, intervals 95 % by question. They say nothing about other questions, prompts "
        "or passages; a score whose model, template or settings differ stays uncalibrated.",
        style="dim",
    )


def _print_threshold(console: Console, profile: Profile, error_rate: float, delta: float) -> None:
    """Print the risk-controlled threshold, or why there is none."""
    from semgrad_guard.calibration import risk_threshold  # loads numpy

    try:
        threshold = risk_threshold(profile, error_rate, delta)
    except RiskNotControllableError as error:
        console.print(f"{error}", style="yellow", markup=False)
        return
    console.print(threshold.text, markup=False)
    console.print(f"{threshold.method}. {threshold.caveats}", style="dim", markup=False)


def _save_plot(profile: Profile, path: Path) -> None:
    """Write the reliability plot of out-of-sample confidences."""
    from semgrad_guard.evaluation.reliability import save_reliability_plot  # loads numpy

    confidence, correct, _ = profile.pairs.arrays()
    save_reliability_plot(path, confidence, correct, title=f"Reliability of {profile.name}")
