"""`semgrad-guard bench`: compare the cost of scoring with that of generating the answer, on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from semgrad_guard.cli.terminal import bar, examples

EXAMPLES = examples(
    "semgrad-guard bench --quick",
    "semgrad-guard bench --json cost.json",
    "semgrad-guard bench --model Qwen/Qwen3-0.6B --context 512 --answer 32",
    "semgrad-guard bench --shape llama-8b --device cuda --dtype bfloat16",
    more="""
The command compares: the plain definition (full autograd and the whole head gradient, as in the method's published
code); scoring that reads the prompt again (cold); scoring from the KV cache of the answer (single pass, with every
signal that needs no further pass; and SemGrad alone, without the gradients of the output head's weight); and
generating five more answers, as sampling methods do. Two forward passes, one of the answer after the cached prompt
and one of the whole text, show the least that any exact method can cost. --shape builds a model of a known shape with
random weights, so that nothing is downloaded: what scoring costs depends on the shape alone.
    """,
)


def bench(
    model: Annotated[str, typer.Option(help="Model: name, Hugging Face id, folder or .gguf.")] = "smollm2-135m",
    context: Annotated[list[int] | None, typer.Option(min=8, help="Prompt tokens; may be repeated.")] = None,
    answer: Annotated[list[int] | None, typer.Option(min=1, help="Answer tokens; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only 512 + 32 tokens.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each short measurement; the best counts.")] = 3,
    shape: Annotated[
        str | None,
        typer.Option(help="smollm2, llama-8b or qwen-32b: random weights instead of --model.", show_default=False),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=2, help="With --shape: build only so many blocks.", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option(help="Number type of the weights.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.", show_default=False)] = None,
) -> None:
    """Measure what scoring costs compared with generating the answer, for every way of scoring."""
    from semgrad_guard.evaluation.cost import (  # loads torch
        ANSWERS,
        CONTEXTS,
        LONG_CONTEXT,
        is_accelerator,
        measure_cost,
        n_steps,
    )
    from semgrad_guard.evaluation.shapes import random_model
    from semgrad_guard.models import load_model  # loads torch

    console = Console(stderr=True)
    with console.status(f"Loading {shape or model}"):
        if shape is None:
            local = load_model(model, dtype=dtype, device=device)
        else:
            local = random_model(shape, device=device or "cpu", dtype=dtype, n_layers=layers)
    usual = (*CONTEXTS, LONG_CONTEXT) if is_accelerator(local.device) else CONTEXTS
    contexts = tuple(context or ((512,) if quick else usual))
    answers = tuple(answer or ((32,) if quick else ANSWERS))
    with bar(console) as progress:
        task = progress.add_task("measuring", total=n_steps(contexts, answers))
        report = measure_cost(
            local,
            contexts,
            answers,
            repeats=repeats,
            advance=lambda what: progress.update(task, advance=1, description=what),
        )
    Console().print(report.table())
    Console().print(report.targets_table())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report.to_json(), indent=2), encoding="utf-8")
        console.print(f"numbers: {out}", markup=False)
