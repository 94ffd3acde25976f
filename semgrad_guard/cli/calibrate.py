"""`semgrad-guard calibrate`: labelled answers in, a profile out, with what it is worth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from semgrad_guard.cli.profile_tables import describe, evidence_table

if TYPE_CHECKING:
    from semgrad_guard.calibration import Profile

EXAMPLES = """[bold]Examples[/bold]

  semgrad-guard calibrate scored.jsonl --out my-profile.json

  semgrad-guard calibrate questions.jsonl --out my-profile.json --model smollm2-135m --plot reliability.png

  semgrad-guard calibrate answers.jsonl --out my-profile.json --policy policy.yaml --error-rate 0.1

  semgrad-guard calibrate scored.jsonl --from-review sqlite:///review.db --out my-profile.json

A line of the input is what `semgrad-guard score` wrote, or {"question": "...", "passages": ["..."], "answer": "..."},
with `correct` (true or false) or `answers` (accepted answers, to grade by). A line without an answer is answered by the
model. Lines of one `group`, or of one question, are never split between fitting and testing.
"""


def calibrate(
    data: Annotated[Path | None, typer.Argument(help="JSONL file of labelled answers.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Profile to write.")] = Path("profile.json"),
    from_review: Annotated[
        str | None, typer.Option(help="Review queue (URL) whose verdicts are labels too.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the profile; the file's name when left out.")] = None,
    method: Annotated[str, typer.Option(help="fused, or the name of one signal.")] = "fused",
    calibrator: Annotated[
        Literal["auto", "platt", "beta", "isotonic", "venn_abers"], typer.Option(help="Calibration curve.")
    ] = "auto",
    model: Annotated[
        str | None, typer.Option(help="Scores rows without signals: name, Hugging Face id, folder or .gguf.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy whose scorer settings are used.")] = None,
    grader: Annotated[
        Literal["contains", "exact", "f1"], typer.Option(help="Compares answers with accepted ones.")
    ] = "contains",
    error_rate: Annotated[
        float | None, typer.Option(help="Also show the threshold that keeps this share of wrong answers.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Probability with which that promise may fail.")] = 0.05,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of questions kept from the fit, for the strictest promise.")
    ] = 0.0,
    expires_days: Annotated[int | None, typer.Option(min=1, help="Days after which the profile is void.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Reliability plot to write (.png, .svg, .pdf).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds and intervals.")] = 0,
) -> None:
    """Turn raw scores into honest probabilities: fit a profile on labelled answers and print what it is worth."""
    from semgrad_guard.calibration import fit_profile  # noqa: PLC0415 - loads numpy
    from semgrad_guard.cli.label_sources import Sources  # noqa: PLC0415 - loads numpy

    console = Console()
    sources = Sources(data, from_review, grader)
    sources.prepare(model, policy, console)
    profile = fit_profile(
        sources.labelled(console),
        name=name or out.stem,
        method=method,
        calibrator=calibrator,
        expires=datetime.now(UTC) + timedelta(days=expires_days) if expires_days else None,
        held_out=held_out,
        seed=seed,
    )
    profile.save(out)
    sources.report(console)
    _report(console, profile)
    if error_rate is not None:
        _print_threshold(console, profile, error_rate, delta)
    if plot is not None:
        _save_plot(profile, plot)
        console.print(f"reliability plot: {plot}", soft_wrap=True)
    console.print(f"profile: {out}; use it as `scorer: {{profile: {out}}}` in the policy", soft_wrap=True, markup=False)


def _report(console: Console, profile: Profile) -> None:
    """Print what was fitted, what it is worth and what it does not promise."""
    console.print(describe(profile), soft_wrap=True, markup=False)
    console.print(evidence_table(profile))
    console.print(
        "Figures are out-of-sample, intervals 95 % by question. They say nothing about other questions, prompts "
        "or passages; a score whose model, template or settings differ stays uncalibrated.",
        style="dim",
    )


def _print_threshold(console: Console, profile: Profile, error_rate: float, delta: float) -> None:
    """Print the risk-controlled threshold, or why there is none."""
    from semgrad_guard.calibration import risk_threshold  # noqa: PLC0415 - loads numpy
    from semgrad_guard.errors import RiskNotControllableError  # noqa: PLC0415 - beside its use

    try:
        threshold = risk_threshold(profile, error_rate, delta)
    except RiskNotControllableError as error:
        console.print(f"{error}", style="yellow", markup=False, soft_wrap=True)
        return
    console.print(threshold.text, markup=False, soft_wrap=True)
    console.print(f"{threshold.method}. {threshold.caveats}", style="dim", markup=False, soft_wrap=True)


def _save_plot(profile: Profile, path: Path) -> None:
    """Write the reliability plot of out-of-sample confidences."""
    from semgrad_guard.evaluation.reliability import save_reliability_plot  # noqa: PLC0415 - loads numpy

    confidence, correct, _ = profile.pairs.arrays()
    save_reliability_plot(path, confidence, correct, title=f"Reliability of {profile.name}")
