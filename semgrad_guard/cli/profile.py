"""`semgrad-guard profile`: show profiles, check them for drift, find a model's position."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from semgrad_guard.cli.terminal import bar, examples, plain_table
from semgrad_guard.flow import utc_now

if TYPE_CHECKING:
    from rich.table import Table

    from semgrad_guard.calibration import DriftMonitor, Interval, Profile
    from semgrad_guard.evaluation.position.report import SpsReport

_MEANING = {
    "auroc": ("AUROC", "probability that a right answer ranks above a wrong one; 0.5 is chance"),
    "auprc": ("AUPRC", "precision of finding wrong answers"),
    "prr": ("PRR", "share of the possible gain from rejecting the least sure answers; 0 is chance, 1 perfect"),
    "aurc": ("AURC", "mean error rate among the surest answers; lower is better"),
    "ece": ("ECE", "mean gap between confidence and share of right answers; lower is better"),
    "brier": ("Brier", "mean squared gap; lower is better"),
    "log_loss": ("log-loss", "nats; lower is better"),
}
MAX_NAME = 18
"""Columns that the name of a data set may take before it is folded."""
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")
"""A digest, and the part of it that is shown."""
N_SIGNALS = 8
"""How many single signals are listed below the profile's own figures."""


def describe(profile: Profile) -> str:
    """Return a description of a profile, one fact per line."""
    if profile.label_free:
        basis = f"{profile.reference.n:,} scores, no labels: its values are percentiles, not probabilities"
    else:
        basis = f"{profile.n_labels:,} labelled answers, {profile.base_rate or 0:.0%} of them right"
    fit = profile.fingerprint
    lines = [
        *([f"{profile.basis}"] if profile.basis else []),
        f"profile {profile.name}: {profile.method}, {profile.curve.kind} curve, from {basis}",
        DIGEST.sub(r"\1", f"model {fit.model}, {fit.dtype}, template {fit.template}, {fit.settings}")
        + (", answers of another model (proxy)" if fit.proxy else ""),
        f"made {profile.created_at:%Y-%m-%d}"
        + (f", expires {profile.expires_at:%Y-%m-%d}" if profile.expires_at else ", no expiry date"),
        *profile.notes,
    ]
    return "\n".join(lines)


def evidence_table(profile: Profile) -> Table:
    """Return the table of out-of-sample figures, with the best single signals below them."""
    table = plain_table(title="How good it is, out-of-sample")
    table.add_column("figure")
    table.add_column("value (95 %)", justify="right", no_wrap=True)
    table.add_column("meaning")
    if profile.evidence is None:
        table.add_row("none", "", "no labels")
        return table
    for field, (title, meaning) in _MEANING.items():
        found: Interval = getattr(profile.evidence, field)
        table.add_row(title, found.text(), meaning)
    singles = sorted(profile.evidence.signals.items(), key=lambda item: -(item[1].value or 0.0))
    for i, (signal, found) in enumerate(singles[:N_SIGNALS]):
        if i == 0:
            table.add_section()
        table.add_row(signal, found.text(), "AUROC of this signal alone")
    return table


def left_out_tables(profile: Profile) -> list[Table]:
    """Return the tables of what the profile is worth on each data set when fitted on the others; none without sets."""
    found = profile.evidence.left_out if profile.evidence else {}
    if not found:
        return []
    first = next(iter(found.values()))
    ranking = plain_table(title="Each data set left out in turn: AUROC")
    honesty = plain_table(title="Each data set left out in turn: share right from a confidence on")
    columns = {
        ranking: ("n", "confidence", "question", "author", *first.baselines),
        honesty: ("right", *first.right_above, "ECE"),
    }
    for table, headings in columns.items():
        table.add_column("set", no_wrap=True)
        for heading in headings:
            table.add_column(heading, justify="right", overflow="fold")
    for set_name, one in found.items():
        name = fill(set_name, MAX_NAME)
        within = ["-" if v is None else f"{v:.2f}" for v in (one.auroc_same_question, one.auroc_same_author)]
        ranking.add_row(
            name, f"{one.n:,}", one.auroc.brief(), *within, *(each.brief() for each in one.baselines.values())
        )
        honesty.add_row(name, f"{one.right:.2f}", *(each.brief() for each in one.right_above.values()), one.ece.brief())
    ranking.caption = "question, author: over pairs of answers to the same question, of the same model"
    honesty.caption = "intervals 95 % by question or page; -: no answer has so much"
    return [ranking, honesty]


def more_evidence(profile: Profile) -> list[Table]:
    """Return the tables of data sets left out, and of answers that were made to look right, as far as there are any."""
    return [*left_out_tables(profile), *adversarial_tables(profile)]


def adversarial_tables(profile: Profile) -> list[Table]:
    """Return the table of answers that were made to look right; none where the fit had none."""
    from semgrad_guard.calibration.evidence import RIGHT_ACCEPTED  # loads numpy

    found = profile.evidence
    if found is None or not found.adversarial:
        return []
    table = plain_table(title="Attempts to talk it up")
    for heading in ("kind", "n", "mean", "accepted"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, one in found.adversarial.items():
        table.add_row(kind, f"{one.n:,}", f"{one.mean:.2f}", f"{one.accepted:.0%}")
    table.caption = (
        f"accepted at {found.adversarial_threshold:.2f}, which lets {RIGHT_ACCEPTED:.0%} of right answers through"
    )
    return [table]


EXAMPLES = examples(
    "semgrad-guard profile find smollm2-135m --plot sps.png",
    "semgrad-guard profile find Qwen/Qwen3-0.6B --out policy.yaml",
    "semgrad-guard profile find my-model/ --paraphrases mine.jsonl",
    "semgrad-guard profile find my-model/ --labels scored.jsonl --json sps.json",
    more="""
A line of --paraphrases: {"question": "...", "paraphrases": ["...", "..."]}; vary how they end, because a shared last
word makes the states of paraphrases similar whatever they mean. --labels is a file that `semgrad-guard score` wrote,
with `correct` or `answers` on each line.
    """,
)


def find(
    model: Annotated[str, typer.Argument(help="Model: name, Hugging Face id, folder or .gguf.")] = "smollm2-135m",
    paraphrases: Annotated[
        Path | None, typer.Option(help="JSONL file of questions and paraphrases; by default the built-in set.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="File of scored, labelled answers: adds AUROC by position.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Policy file to write, with the position and blocks found.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Heat map to write (.png, .svg, .pdf).", show_default=False)] = None,
    numbers: Annotated[
        Path | None, typer.Option("--json", help="Also write all numbers here.", show_default=False)
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=8, help="Use only the first QUESTIONS questions.", show_default=False)
    ] = None,
    positions: Annotated[int, typer.Option(min=1, max=64, help="How many of the last prompt positions to try.")] = 12,
    batch_size: Annotated[int, typer.Option(min=1, help="How many texts are read together.")] = 16,
    dtype: Annotated[str, typer.Option(help="Number type of the weights.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
) -> None:
    """Find the prompt position whose state carries the meaning of the question, for a model with any template."""
    from semgrad_guard.evaluation.position.choice import check_labels  # loads numpy
    from semgrad_guard.evaluation.position.find import find_position, read_paraphrases  # loads torch
    from semgrad_guard.models import load_model  # loads torch

    console = Console(stderr=True)
    paraphrased = read_paraphrases(paraphrases)[:questions]  # reports mistakes before a model is loaded
    check = check_labels(labels, seed=seed) if labels else None
    with console.status(f"Loading {model}"):
        local = load_model(model, dtype=dtype, device=device)
    with bar(console) as progress:
        task = progress.add_task("Reading paraphrases", total=sum(len(group.texts) for group in paraphrased))
        report = find_position(
            local,
            paraphrased,
            n_positions=positions,
            batch_size=batch_size,
            seed=seed,
            labels=check,
            advance=lambda n: progress.advance(task, n),
        )
    _print(report)
    if plot is not None:
        from semgrad_guard.evaluation.position.report import save_sps_plot  # only when asked for

        save_sps_plot(plot, report.sps, report.choice, report.tokens, title=f"What states of {local.name} carry")
        console.print(f"plot: {plot}", markup=False, soft_wrap=True)
    if numbers is not None:
        numbers.write_text(json.dumps(report.to_json(), indent=1, allow_nan=False), encoding="utf-8")
        console.print(f"numbers: {numbers}", markup=False, soft_wrap=True)
    if out is not None:
        out.write_text(report.policy_text(model, dtype), encoding="utf-8")
        console.print(
            f"policy: {out}; next: semgrad-guard calibrate labelled.jsonl --policy {out} --out profile.json",
            markup=False,
            soft_wrap=True,
        )


def _print(report: SpsReport) -> None:
    console = Console()
    console.print(report.table())
    console.print(report.map_table())
    console.print("\n".join(report.verdict()), markup=False, soft_wrap=True)


app = typer.Typer(
    name="profile",
    no_args_is_help=True,
    help="Show and check calibration profiles, and find where a model's states carry the meaning of the question.",
    epilog=examples("semgrad-guard profile show proxy", "semgrad-guard profile status my-profile.json"),
)
app.command(epilog=EXAMPLES)(find)

NOT_FIT = 1
"""Exit code of `status` if the profile expired or drifted."""

ProfileName = Annotated[str, typer.Argument(help="Name of a shipped profile, or a JSON file.")]


@app.command(epilog=examples("semgrad-guard profile show my-profile.json", "semgrad-guard profile show proxy"))
def show(profile: ProfileName) -> None:
    """Show what a profile was fitted on, how good it is, and which signals it uses."""
    from semgrad_guard.calibration import load_profile  # loads numpy

    console, loaded = Console(), load_profile(profile)
    console.print(describe(loaded), markup=False)
    for fit in sorted(loaded.fits(), key=lambda fit: fit is not loaded):
        if fit.max_words is not None:
            console.print(
                f"\nfor answers of at most {fit.max_words} words of their own: {fit.name}",
                soft_wrap=True,
                markup=False,
            )
        elif fit is not loaded:
            console.print(f"\nfor scores without signals that this needs: {fit.name}", soft_wrap=True, markup=False)
        console.print(_weights(fit))
        console.print(evidence_table(fit))
        for table in more_evidence(fit):
            console.print(table)


@app.command(
    epilog=examples(
        "semgrad-guard profile status proxy",
        "semgrad-guard profile status my-profile.json --records guard.jsonl",
    )
)
def status(
    profile: ProfileName,
    records: Annotated[
        Path | None, typer.Option(help="Records that a guard wrote (`telemetry: {jsonl: ...}`).", show_default=False)
    ] = None,
) -> None:
    """Check whether a profile is still valid: its expiry date, and drift of the recent scores in a guard's records.

    Exit code 0 if it is valid, 1 if it expired or drifted.
    """
    from semgrad_guard.calibration import load_profile  # loads numpy

    console, loaded = Console(), load_profile(profile)
    expired = loaded.is_expired(utc_now())
    until = f"until {loaded.expires_at:%Y-%m-%d %H:%M} UTC" if loaded.expires_at else "without expiry date"
    console.print(f"profile {loaded.name}: {'expired' if expired else 'valid'}, {until}", markup=False)
    drifted = records is not None and _print_drift(console, loaded, records)
    if expired or drifted:
        raise typer.Exit(NOT_FIT)


def _weights(profile: Profile) -> Table:
    """Return the table of signals and their weights, the heaviest first."""
    table = plain_table(title="Signals it uses")
    table.add_column("signal")
    table.add_column("weight", justify="right")
    table.add_column("average", justify="right")
    table.add_column("when missing")
    for column in sorted(profile.model.columns, key=lambda c: -abs(c.weight)):
        missing = "uncalibrated" if column.required else "the average"
        table.add_row(column.name, f"{column.weight:+.3f}", f"{column.average:.4g}", missing)
    table.caption = "weight: change of the log-odds of a right answer, before calibration, per standard deviation"
    return table


def _print_drift(console: Console, profile: Profile, records: Path) -> bool:
    """Print how the records' scores compare with the profile's reference; return whether they drifted."""
    monitor, n_fitting, n_other = _replayed(profile, records)
    console.print(f"{n_fitting:,} scores of this profile in {records}", soft_wrap=True, markup=False)
    if n_other:
        console.print(f"{n_other:,} other scores left out: other model or settings, or missing signals", style="dim")
    if not monitor.comparisons:
        console.print(f"too few to compare: detecting drift needs at least {monitor.window} scores", style="yellow")
        return False
    table = plain_table(title=f"Last {monitor.n_scores} scores")
    for heading in ("compared", "distance", "drift above", ""):
        table.add_column(heading, justify="right" if heading.startswith("d") else "left")
    for found in monitor.comparisons:
        verdict = "[red]drifted[/red]" if found.found else "as before"
        table.add_row(found.what, f"{found.distance:.3f}", f"{found.limit:.3f}", verdict)
    console.print(table)
    if monitor.drifted:
        console.print("profile drifted: label recent answers and calibrate again", style="red")
    return monitor.drifted


def _replayed(profile: Profile, records: Path) -> tuple[DriftMonitor, int, int]:
    """Return a monitor that has read the records' scores, and how many of them matched the profile or did not."""
    from semgrad_guard.calibration import DriftMonitor  # loads numpy
    from semgrad_guard.calibration.calibrator import refusal
    from semgrad_guard.telemetry.jsonl import read_records

    monitor, n_fitting, n_other = DriftMonitor(profile), 0, 0
    for record in read_records(records):
        for attempt in record.attempts:
            score = attempt.decision.score
            if score is None:
                continue
            if refusal(profile, score) is not None:
                n_other += 1
                continue
            n_fitting += 1
            signals = {score.method: score.value, **score.signals}
            monitor.observe(profile.margin(signals), signals)
    return monitor, n_fitting, n_other
