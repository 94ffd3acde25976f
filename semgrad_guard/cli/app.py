"""The `semgrad-guard` program: registers all commands and turns errors into a message and an exit code."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console

from semgrad_guard.cli import (
    bench,
    calibrate,
    demo,
    doctor,
    evaluate,
    models,
    policy,
    profile,
    score,
    serve,
    watch,
)
from semgrad_guard.cli.review.app import app as review_app
from semgrad_guard.cli.terminal import examples
from semgrad_guard.errors import SemGradGuardError

USER_ERROR = 2
"""Exit code for errors in the input or the settings."""
INTERRUPTED = 130

app = typer.Typer(
    name="semgrad-guard",
    help="Score how unsure a local model is of its answers, and route the doubtful ones.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=examples("semgrad-guard demo", "semgrad-guard doctor", more="Every command has examples under --help."),
)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(epilog=watch.EXAMPLES)(watch.watch)
app.command(epilog=score.EXAMPLES)(score.score)
app.command(epilog=score.SIGNALS_EXAMPLES)(score.signals)
app.command(epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.command(epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.add_typer(serve.keys_app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(policy.app, name="policy")
app.add_typer(profile.app, name="profile")
app.add_typer(review_app, name="review")


def _print_version(requested: bool) -> None:
    if requested:
        print(metadata.version("semgrad-guard"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Score how unsure a local model is of its answers, and route the doubtful ones."""


SILENT = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
"""Environment variables that silence the bars of transformers and its hub; set them to 0 to see the bars."""


def main() -> None:
    """Run the command line; an error that the user can fix becomes one line on stderr and exit code 2."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except (SemGradGuardError, OSError) as error:
        if os.environ.get("SEMGRAD_DEBUG"):
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", style="red", markup=False)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
