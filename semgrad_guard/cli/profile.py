"""`semgrad-guard profile`: look at calibration profiles, and find a model's position for a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from semgrad_guard.cli import profile_find
from semgrad_guard.cli.profile_tables import describe, evidence_table
from semgrad_guard.flow import utc_now

if TYPE_CHECKING:
    from semgrad_guard.calibration import DriftMonitor, Profile

app = typer.Typer(
    name="profile",
    no_args_is_help=True,
    help="Look at calibration profiles, and `find MODEL`: where a model's states carry the meaning of the question.",
)
app.command(epilog=profile_find.EXAMPLES)(profile_find.find)

NOT_FIT = 1
"""Exit code of `status` when the profile expired or drifted."""

ProfileName = Annotated[str, typer.Argument(help="Profile: a shipped one's name, or a JSON file.")]


@app.command()
def show(profile: ProfileName) -> None:
    """Say what a profile is, what it is worth, and which signals it reads.

    Examples:
        semgrad-guard profile show my-profile.json
    """
    from semgrad_guard.calibration import load_profile  # noqa: PLC0415 - loads numpy

    console, loaded = Console(), load_profile(profile)
    console.print(describe(loaded), soft_wrap=True, markup=False)
    console.print(_weights(loaded))
    console.print(evidence_table(loaded))


@app.command()
def status(
    profile: ProfileName,
    records: Annotated[
        Path | None, typer.Option(help="Records that a guard wrote (`telemetry: {jsonl: ...}`).", show_default=False)
    ] = None,
) -> None:
    """Say whether a profile still fits: expiry date, and drift of the recent scores in a guard's records.

    Exit code 0 when it fits, 1 when it expired or drifted.

    Examples:
        semgrad-guard profile status my-profile.json --records guard.jsonl
    """
    from semgrad_guard.calibration import load_profile  # noqa: PLC0415 - loads numpy

    console, loaded = Console(), load_profile(profile)
    expired = loaded.is_expired(utc_now())
    until = f"until {loaded.expires_at:%Y-%m-%d %H:%M} UTC" if loaded.expires_at else "without expiry date"
    console.print(f"profile {loaded.name}: {'expired' if expired else 'valid'}, {until}", markup=False)
    drifted = records is not None and _print_drift(console, loaded, records)
    if expired or drifted:
        raise typer.Exit(NOT_FIT)


def _weights(profile: Profile) -> Table:
    """Return the table of signals and their weights, the heaviest first."""
    table = Table(title="Signals it reads", title_justify="left")
    table.add_column("signal")
    table.add_column("weight", justify="right")
    table.add_column("average", justify="right")
    table.add_column("when missing")
    for column in sorted(profile.model.columns, key=lambda c: -abs(c.weight)):
        missing = "uncalibrated" if column.required else "the average"
        table.add_row(column.name, f"{column.weight:+.3f}", f"{column.average:.4g}", missing)
    table.caption = "change of the log-odds of being right, before calibration, for one standard deviation"
    return table


def _print_drift(console: Console, profile: Profile, records: Path) -> bool:
    """Print how the records' scores compare with the profile's reference; return whether they drifted."""
    monitor, n_fitting, n_other = _replayed(profile, records)
    console.print(f"{n_fitting:,} scores of this profile in {records}", soft_wrap=True, markup=False)
    if n_other:
        console.print(f"{n_other:,} other scores left out: another model, setting or missing signals", style="dim")
    if not monitor.comparisons:
        console.print(f"too few to compare: drift is looked for from {monitor.window} scores", style="yellow")
        return False
    table = Table(
        "compared", "distance", "drift above", "", title=f"Last {monitor.n_scores} scores", title_justify="left"
    )
    for found in monitor.comparisons:
        verdict = "[red]drifted[/red]" if found.found else "as before"
        table.add_row(found.what, f"{found.distance:.3f}", f"{found.limit:.3f}", verdict)
    console.print(table)
    if monitor.drifted:
        console.print("profile drifted: label recent answers and calibrate again", style="red")
    return monitor.drifted


def _replayed(profile: Profile, records: Path) -> tuple[DriftMonitor, int, int]:
    """Return a monitor that has seen the records' scores, and how many fitted the profile and how many did not."""
    from semgrad_guard.calibration import DriftMonitor  # noqa: PLC0415 - loads numpy
    from semgrad_guard.telemetry.jsonl import read_records  # noqa: PLC0415 - beside its use

    monitor, n_fitting, n_other = DriftMonitor(profile), 0, 0
    for record in read_records(records):
        for attempt in record.attempts:
            score = attempt.decision.score
            if score is None:
                continue
            signals = {score.method: score.value, **score.signals}
            if score.fingerprint != profile.fingerprint or profile.model.missing(signals):
                n_other += 1
                continue
            n_fitting += 1
            monitor.observe(profile.margin(signals), signals)
    return monitor, n_fitting, n_other
