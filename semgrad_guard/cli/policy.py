"""`semgrad-guard policy`: check, explain and simulate policies, write an initial one, print the schema."""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from semgrad_guard.cli.score import Scoring, write_scored_copy
from semgrad_guard.cli.terminal import bar, examples, plain_table
from semgrad_guard.errors import DataFileError, PolicyError
from semgrad_guard.guard.assembly import profile_of
from semgrad_guard.guard.readiness import ready_policy
from semgrad_guard.guard.thresholds import promised
from semgrad_guard.policy import default_text, explain, load_policy, policy_schema
from semgrad_guard.policy.promises import promises

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from rich.table import Table

    from semgrad_guard.evaluation.simulate import RecordedQuestion, RouteFigures, Simulation, Simulator
    from semgrad_guard.policy import Policy

EXAMPLES = examples(
    "semgrad-guard policy simulate policy.yaml scored.jsonl",
    "semgrad-guard policy simulate policy.yaml scored.jsonl --plot policy.png",
    "semgrad-guard policy simulate policy.yaml scored.jsonl --json",
    "semgrad-guard policy simulate policy.yaml guard.jsonl --labels labels.jsonl",
    more="""
A line of the data is what `semgrad-guard score` wrote, with `correct` or accepted `answers`; a line that has neither a
score nor a `confidence` is scored by the policy's scorer (--rows keeps it). Later answers to the same `question` (and
`group`) are lines with `attempt` 2, 3, ... and the `route` that led to them: `retry_retrieval` or
`fallback_model:NAME`. `seconds`, `answer_s` and `cost` are used if present.

The data may also be the records of a guard (`telemetry: {jsonl: ...}`); then --labels names a file of lines such as
{"id": "...", "correct": true}, with the `id` of an attempt.
    """,
)


def simulate(
    policy: Annotated[Path, typer.Argument(help="Policy file.", show_default=False)],
    data: Annotated[Path, typer.Argument(help="JSONL of labelled answers, or a guard's records.", show_default=False)],
    labels: Annotated[
        Path | None, typer.Option(help="JSONL of labels for a guard's records.", show_default=False)
    ] = None,
    grader: Annotated[
        Literal["contains", "exact", "f1"], typer.Option(help="How answers are compared with accepted ones.")
    ] = "contains",
    rows: Annotated[
        Path | None, typer.Option(help="File that keeps rows scored now, for the next run.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot to write (.png, .svg, .pdf).", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Replay labelled answers under a policy: how many are returned, held back or wrong by route, and what it costs.

    The whole policy is measured, including retries, fallbacks and review. Use
    answers that the policy's profile was not fitted on.
    """
    from semgrad_guard.evaluation.simulate import Simulator, save_simulation_plot  # loads numpy
    from semgrad_guard.evaluation.simulate import simulate as run

    loaded = load_policy(policy)
    simulator, console = Simulator(loaded), Console(stderr=True)
    scoring = Scoring(policy=policy, rows=rows, by_profile=True)
    with tempfile.TemporaryDirectory() as folder:
        questions, total = _recorded(simulator, data, labels, grader, scoring, Path(folder))
        with bar(console) as progress, _quiet():
            found = run(simulator, progress.track(questions, total=total, description="Replaying questions"))
    _report(found, loaded, as_json=as_json)
    if plot is not None:
        save_simulation_plot(plot, found)
        console.print(f"plot: {plot}", soft_wrap=True, markup=False)


def _recorded(
    simulator: Simulator, data: Path, labels: Path | None, grader: str, scoring: Scoring, folder: Path
) -> tuple[Iterable[RecordedQuestion], int | None]:
    """Return the recorded questions, and their number if it is known beforehand; rows without a score are scored."""
    from semgrad_guard.evaluation.simulate import (  # loads numpy
        RecordedLog,
        RecordedRows,
        is_log,
        read_labels,
        unscored_routes,
    )

    if labels is not None:
        return RecordedLog(data, read_labels(labels, grader=grader)), None
    if is_log(data):
        why = "contains a guard's records, which do not say which answers are right"
        raise DataFileError(data, None, why, "name a file of labels with --labels")
    unscored = unscored_routes(simulator.policy)
    rows = RecordedRows(data, grader=grader, unscored=unscored)
    simulator.check_setting(rows, data)
    if rows.n_unscored:
        console = Console(stderr=True)
        console.print(f"{rows.n_unscored:,} rows have no score: the policy's scorer scores them", markup=False)
        copy = folder / "copy.jsonl"
        write_scored_copy(scoring.carry_out(data, folder, console), data, copy)
        rows = RecordedRows(copy, grader=grader, unscored=unscored, source=data)
    return rows, rows.n_questions


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Hide the guard's warnings about single answers; the report counts them."""
    log = logging.getLogger("semgrad_guard")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _report(found: Simulation, policy: Policy, *, as_json: bool) -> None:
    """Print the figures, and what they do not show."""
    from semgrad_guard.evaluation.simulate.report import LIMITS, cautions, summary  # loads numpy

    notes = cautions(found, policy)
    if as_json:
        print(json.dumps({**found.to_json(), "cautions": notes, "limits": list(LIMITS[1:])}, indent=2))
        return
    console = Console()
    for line in summary(found):
        console.print(line, markup=False)
    console.print(_table(found))
    needed = ", ".join(f"`{rule}` {value:.3f}" for rule, value in found.thresholds.items())
    legend = f"Intervals 95 %; cost and seconds (s) are means of a question. Confidence needed: {needed}."
    console.print(legend, style="dim", markup=False)
    for line in notes:
        console.print(line, style="yellow", markup=False)
    for line in LIMITS:
        console.print(line, style="dim", markup=False)


def _table(found: Simulation) -> Table:
    """Return the table of routes, with the total in the last row; it fits 80 columns."""
    table = plain_table(title="How questions end")
    table.add_column("route", no_wrap=True)
    for name in ("n", "share", "wrong of given", "right of held", "cost", "s"):
        table.add_column(name, justify="right", no_wrap=" " not in name)
    for figures in found.routes:
        table.add_row(*_cells(figures))
    table.add_section()
    table.add_row(*_cells(found.total))
    return table


def _cells(figures: RouteFigures) -> tuple[str, ...]:
    from semgrad_guard.evaluation.simulate.report import percent  # loads numpy

    held = f"{figures.n_right_withheld:,} of {figures.n_withheld_labelled:,}" if figures.n_withheld_labelled else ""
    return (
        figures.route,
        f"{figures.n:,}",
        f"{figures.n / max(1, figures.n_all):.1%}",
        percent(figures.error_rate) if figures.n_answered else "",
        held,
        f"{figures.mean_cost:.2f}",
        "" if figures.mean_seconds is None else f"{figures.mean_seconds:.2f}",
    )


app = typer.Typer(
    name="policy",
    no_args_is_help=True,
    help="Write, check, explain and simulate policy files.",
    epilog=examples("semgrad-guard policy init policy.yaml", "semgrad-guard policy check policy.yaml"),
)
app.command(epilog=EXAMPLES)(simulate)

DEFAULT_PATH = Path("policy.yaml")


@app.command(epilog=examples("semgrad-guard policy check policy.yaml", "semgrad-guard policy check"))
def check(
    file: Annotated[
        Path | None, typer.Argument(help="Policy file; by default the policy that ships with the package.")
    ] = None,
) -> None:
    """Explain in words what a policy file does, needs and promises, or list all its mistakes.

    Exit code 0 if the file can be used here; 2 if not: a mistake, a model that is
    missing or not installed, a profile that is missing or another model's, an
    error rate that cannot be kept.
    """
    policy = ready_policy(file, listed=True)
    typer.echo("\n".join(explain(policy)))
    if not promises(policy):
        return
    lines, broken = promised(policy, profile_of(policy))
    typer.echo("\n".join(["", *lines]))
    if broken is not None:
        raise broken


@app.command(
    epilog=examples(
        "semgrad-guard policy schema",
        "semgrad-guard policy schema --out policy.schema.json",
        more="""
        Then make this the first line of the policy:

        # yaml-language-server: $schema=policy.schema.json
        """,
    )
)
def schema(
    out: Annotated[Path | None, typer.Option(help="File to write; by default standard output.")] = None,
) -> None:
    """Print the JSON schema of policy files, which editors use to complete and check them."""
    text = json.dumps(policy_schema(), indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    _write(out, text + "\n")
    typer.echo(f"wrote {out}")


@app.command(epilog=examples("semgrad-guard policy init", "semgrad-guard policy init config/policy.yaml --force"))
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = DEFAULT_PATH,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write the shipped policy, with every key explained, as a starting point."""
    if path.exists() and not force:
        msg = f"{path} already exists: name another file, or overwrite it with --force"
        raise PolicyError(msg)
    _write(path, default_text())
    typer.echo(f"wrote {path}: change it, then run `semgrad-guard policy check {path}`")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {path}: {error}; name a file in an existing folder that you may write to"
        raise PolicyError(msg) from error
