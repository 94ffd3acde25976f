"""`semgrad-guard profile find`: where t* is, by the Semantics Preserving Score on paraphrases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from semgrad_guard.cli.terminal import bar

if TYPE_CHECKING:
    from semgrad_guard.evaluation.sps_report import SpsReport

EXAMPLES = """[bold]Examples[/bold]

  semgrad-guard profile find smollm2-135m --plot sps.png

  semgrad-guard profile find Qwen/Qwen3-0.6B --out policy.yaml

  semgrad-guard profile find my-model/ --paraphrases mine.jsonl --labels scored.jsonl --json sps.json

A line of --paraphrases: {"question": "...", "paraphrases": ["...", "..."]}; vary how they end, because a last word that
paraphrases share makes their states similar without any meaning. --labels is a file that `semgrad-guard score` wrote,
with `correct` or `answers` on each line.
"""


def find(
    model: Annotated[str, typer.Argument(help="Model: name, Hugging Face id, folder or .gguf.")] = "smollm2-135m",
    paraphrases: Annotated[
        Path | None, typer.Option(help="JSONL file of questions and paraphrases; the built-in set when left out.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Scored and labelled answers: adds AUROC by position.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Policy file to write, with position and band.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Heat map to write (.png, .svg, .pdf).", show_default=False)] = None,
    numbers: Annotated[
        Path | None, typer.Option("--json", help="Also write all numbers here.", show_default=False)
    ] = None,
    questions: Annotated[int | None, typer.Option(min=8, help="Only the first questions.", show_default=False)] = None,
    positions: Annotated[int, typer.Option(min=1, max=64, help="Last prompt positions to look at.")] = 12,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts read together.")] = 16,
    dtype: Annotated[str, typer.Option(help="Number type of the weights.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of draws and halvings.")] = 0,
) -> None:
    """Find the prompt position whose state carries the meaning of the question, for a model of any template."""
    from semgrad_guard.evaluation.paraphrases import read_paraphrases  # noqa: PLC0415 - beside its use
    from semgrad_guard.evaluation.sps_labels import check_labels  # noqa: PLC0415 - loads numpy
    from semgrad_guard.evaluation.sps_run import find_position  # noqa: PLC0415 - loads torch
    from semgrad_guard.models import load_model  # noqa: PLC0415 - loads torch

    console = Console(stderr=True)
    paraphrased = read_paraphrases(paraphrases)[:questions]  # mistakes are named before a model is loaded
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
        from semgrad_guard.evaluation.sps_plot import save_sps_plot  # noqa: PLC0415 - only when asked for

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
