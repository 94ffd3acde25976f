"""`semgrad-guard demo`: a real RAG chain on a real local model, guarded, offline."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from semgrad_guard.cli.terminal import bar, examples
from semgrad_guard.extras import require
from semgrad_guard.policy import load_policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.policy import Policy

N_QUESTIONS = 12
PROFILE = "smollm2-135m-demo"
"""The shipped profile for the demo model's own answers about chemical elements."""
EXAMPLES = examples(
    "semgrad-guard demo",
    "semgrad-guard demo --questions 30 --policy policy.yaml",
)

MAX_SHOWN = 90
"""How many characters of an answer are shown."""

_COLUMNS: dict[str, Any] = {
    "question": {"ratio": 4, "overflow": "fold"},
    "answer": {"ratio": 5, "overflow": "fold"},
    "right": {"justify": "center", "no_wrap": True},
    "conf.": {"justify": "right", "no_wrap": True},
    "decision": {"min_width": 11},
}
_STYLES = {"answered": "green", "reviewed": "green", "warned": "yellow", "pending": "cyan", "abstained": "magenta"}


def demo(
    questions: Annotated[int, typer.Option(min=1, help="How many questions to ask.")] = N_QUESTIONS,
    policy: Annotated[Path | None, typer.Option(help="Policy file; by default the shipped policy.")] = None,
    training_data: Annotated[
        Path | None,
        typer.Option(help="Only write answers to training questions here, as rows for `calibrate`."),
    ] = None,
) -> None:
    """Guard a RAG chain on a local model, offline, and show its answers, confidences and the policy's decisions."""
    console = Console()
    if training_data is not None:
        _write_training_data(console, questions, training_data)
        return
    rows = _run(questions, policy)
    _print_summary(console, rows)
    console.print(_table(rows))
    _print_next_steps(console)


def _policy(path: Path | None) -> Policy:
    """Return the policy of the demo: the user's, or the shipped one with the profile for the demo model's answers."""
    policy = load_policy(path)
    if path is not None:
        return policy
    return policy.model_copy(update={"scorer": policy.scorer.model_copy(update={"profile": PROFILE})})


def _run(n_questions: int, policy: Path | None) -> list[Any]:
    logging.getLogger("semgrad_guard").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # the user of the demo can do nothing about the libraries' own warnings
    with bar(Console(stderr=True)) as progress:
        loading = progress.add_task("Loading the libraries", total=3)
        adapter = require("langchain_semgrad", extra="demo")
        demo_chain = require("semgrad_guard.cli.demo_chain", extra="demo")
        elements = require("semgrad_guard.evaluation.elements", extra="demo")
        progress.update(loading, advance=1, description="Embedding the passages about 118 elements")
        parts = demo_chain.build_chain()
        progress.update(loading, advance=1, description="Loading the language model (the first time takes longer)")
        guard = adapter.SemGradGuard(parts.llm, policy=_policy(policy), output="result")
        progress.update(loading, advance=1, description="Model, passages and guard are ready")
        questions = elements.questions("demo")[:n_questions]
        return list(progress.track(demo_chain.run(parts, guard, questions), len(questions), description="Asking"))


def _write_training_data(console: Console, n_questions: int, path: Path) -> None:
    demo_chain = require("semgrad_guard.cli.demo_chain", extra="demo")
    elements = require("semgrad_guard.evaluation.elements", extra="demo")
    questions = elements.questions("train")[:n_questions]
    parts = demo_chain.build_chain()
    n_rows = 2 * len(questions)
    with bar(Console(stderr=True)) as progress, path.open("w", encoding="utf-8") as file:
        for row in progress.track(demo_chain.training_rows(parts, questions), n_rows, description="Answering"):
            file.write(json.dumps(row) + "\n")
    console.print(f"{n_rows:,} answers in {path}; next: semgrad-guard calibrate {path}", highlight=False)


def _table(rows: Sequence[Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, options in _COLUMNS.items():
        table.add_column(name, **options)
    for row in rows:
        outcome = row.guarded.outcome
        status, value = outcome.status.value, outcome.confidence
        tries = f" after {len(outcome.attempts)}" if len(outcome.attempts) > 1 else ""
        table.add_row(
            row.question.question,
            shorten(outcome.exchange.answer, MAX_SHOWN, placeholder=" ..."),
            "yes" if row.best_is_right else "no",
            "-" if value is None else f"{value:.2f}",
            f"[{_STYLES.get(status, 'white')}]{status}[/]{tries}",
        )
    return table


def _print_summary(console: Console, rows: Sequence[Any]) -> None:
    n = len(rows)
    given = [row for row in rows if not row.guarded.withheld]
    before, after = sum(row.was_right for row in rows), sum(row.is_right for row in given)
    console.print(f"[bold]Before the guard[/bold]: {n} answers given, {before} right, {n - before} wrong.")
    console.print(
        f"[bold]After the guard[/bold]:  {len(given)} answers given, {after} right, {len(given) - after} wrong; "
        f"{n - len(given)} held back."
    )
    generation, scoring = sum(row.generation_s for row in rows), sum(row.scoring_s for row in rows)
    console.print(f"Scoring took {scoring / generation:.0%} of the time that generating the answers took.")


def _print_next_steps(console: Console) -> None:
    console.print("[bold]Next[/bold]")
    for command, what in (
        ("semgrad-guard policy init policy.yaml", "write a policy to edit"),
        ("semgrad-guard policy check policy.yaml", "explain it in words"),
        ("semgrad-guard demo --policy policy.yaml", "run the demo with your policy"),
    ):
        console.print(f"  {command:<42} [dim]{what}[/dim]", highlight=False)
