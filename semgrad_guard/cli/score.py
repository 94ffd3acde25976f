"""`semgrad-guard score` and `signals`, and how the other commands score the rows that have no score."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.text import Text

from semgrad_guard.cli.terminal import bar, examples, plain_table
from semgrad_guard.cli.workers import GpusOption, RayOption, WorkersOption, workers_of, working
from semgrad_guard.signals import PROBES, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from semgrad_guard.evaluation.row_files import ScoredFile
    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.scoring import SemGradScorer

SIGNALS_EXAMPLES = examples(
    "semgrad-guard signals",
    "semgrad-guard signals --family gradient",
    more="""
Any of them that is a score may be the `method` of a policy; `fused` combines all signals that a profile was fitted on.
    """,
)
COSTS = {
    "free": "comes with the one backward pass",
    "text": "counts words: about a millisecond",
    "probe": "comes with that pass too; a profile fitted on 250 labels or more turns it into a number",
    "embedding": "sentence embeddings, if `scorer.embedding` is set or the chain has them; passages are cached",
    "forward": "another forward pass: only with `scorer.signals`",
}
"""What each kind of cost means."""


def signals(
    family: Annotated[
        str | None, typer.Option(help="Only one family: gradient, likelihood, text ...", show_default=False)
    ] = None,
) -> None:
    """List every raw signal with its meaning, unit, direction and cost."""
    families = dict.fromkeys(signal.family for signal in SIGNALS.values())
    if family is not None and family not in families:
        msg = f"{family!r} is none of {', '.join(families)}"
        raise typer.BadParameter(msg, param_hint="--family")
    console = Console()
    table = plain_table()
    table.add_column("signal", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for signal in SIGNALS.values():
        if family in {None, signal.family}:
            about = f"{signal.unit}; higher: {signal.higher}; cost: {signal.cost}"
            table.add_row(signal.name, Text.assemble(signal.meaning, "\n", (about, "dim")))
    console.print(table)
    for cost, meaning in COSTS.items():
        console.print(f"{cost}: {meaning}", markup=False, highlight=False)


EXAMPLES = examples(
    "semgrad-guard score answers.jsonl",
    "semgrad-guard score answers.jsonl --model Qwen/Qwen3-0.6B --own-answers",
    "semgrad-guard score answers.jsonl --profile my-profile.json",
    "semgrad-guard score answers.jsonl --granularity sentence --html page.html",
    "semgrad-guard score answers.jsonl --ray --workers 4",
    more="""
A line of the input: {"prompt": "...", "answer": "..."}. Instead of `prompt` it may have `messages`, `prompt_ids`, or
`question` with `passages`; instead of `answer`, `answer_ids`; `position` is optional. A line that has a score (from
`score`, `calibrate --rows` or `evaluate`) keeps it. An interrupted run continues where it stopped. The exit code is 1
if no row could be scored.
    """,
)


def score(
    data: Annotated[Path, typer.Argument(help="JSONL file of prompts and answers.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Output file; by default NAME.scored.jsonl.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="Scoring model: name, Hugging Face id, folder or .gguf.")] = "smollm2-135m",
    method: Annotated[str, typer.Option(help="Signal to use as the score.")] = "hybridgrad",
    position: Annotated[int | None, typer.Option(max=-1, help="t*, from the prompt's end.", show_default=False)] = None,
    granularity: Annotated[str, typer.Option(help="answer or sentence.")] = "answer",
    profile: Annotated[str | None, typer.Option(help="Profile: adds confidence.", show_default=False)] = None,
    embedding: Annotated[
        str | None, typer.Option(help="Sentence-transformers model, or minilm-l6-v2: adds signals of meaning.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Number type of the weights.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)] = None,
    own_answers: Annotated[bool, typer.Option("--own-answers", help="The scoring model wrote the answers.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write an HTML page of the answers.", show_default=False)
    ] = None,
    probes: Annotated[
        bool, typer.Option(help="Keep what probes read, for `calibrate`: a few thousand numbers a row.")
    ] = True,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score rows again that have a score.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again instead of continuing.")] = False,
    ray: RayOption = False,
    workers: WorkersOption = 1,
    gpus: GpusOption = 0.0,
) -> None:
    """Score a file of answers: all raw signals, and confidence if a profile fits."""
    from semgrad_guard.evaluation.row_files import ScoredFile, Setting, check_apart
    from semgrad_guard.evaluation.rows import read_rows  # loads numpy
    from semgrad_guard.evaluation.score_file import RowScoring, ScoringAsked, batches, calibrator_of

    console = Console(stderr=True)
    pool = workers_of(ray=ray, workers=workers, gpus=gpus)
    target = out or data.with_suffix(".scored.jsonl")
    check_apart(data, target)
    n_rows = sum(1 for _ in read_rows(data))  # reports mistakes before a model is loaded
    calibrator_of(profile)  # and so does this
    make = partial(
        RowScoring,
        ScoringAsked(
            model=model,
            method=method,
            position=position,
            granularity=granularity,
            profile=profile,
            embedding=embedding,
            dtype=dtype,
            device=device,
            own_answers=own_answers,
            probes=probes,
            rescore=rescore,
        ),
    )
    with console.status(f"Loading {model}"):
        work = working(make, pool, data)
    if overwrite:
        target.unlink(missing_ok=True)
    setting = Setting(fingerprint=work.fingerprint, model=work.name, method=method)
    file = ScoredFile(target, setting, own_positions=True, rescore=rescore)
    n_pending = sum(1 for _ in file.pending(data))
    with bar(console) as progress:
        task = progress.add_task("Scoring", total=n_rows, completed=n_rows - n_pending)
        for row in work.lines(batch for _, batch in batches(file.pending(data))):
            file.append(row)
            progress.advance(task)
    _report(file)
    if html is not None:
        from semgrad_guard.evaluation.score_file import write_answers  # only when asked for

        write_answers(target, html)
        typer.echo(f"page: {html}")
    if file.n_errors and file.n_errors == len(file.done):
        raise typer.Exit(1)


def _report(file: ScoredFile) -> None:
    """Print how many rows were scored and, where all failed, why the first one did."""
    n, n_errors = len(file.done), file.n_errors
    if not n_errors:
        typer.echo(f"{n:,} rows in {file.path}")
    elif n_errors < n:
        typer.echo(f"{n:,} rows in {file.path}, {n_errors:,} with an error")
    else:
        _, first = next(file.lines())
        typer.echo(
            f"error: none of the {n:,} rows in {file.path} could be scored; the first: {first['error']}", err=True
        )


# --- For the commands that need scores --------------------------------------------------------------------------------

UNNAMED = "scored.jsonl"
"""Name of the file of scored rows in the folder of a run that is not to keep them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How the rows without a score are scored."""

    model: str | None = None
    """The model in place of the policy's."""
    policy: Path | None = None
    """The policy whose scorer settings are used; `None` for the policy that ships."""
    rows: Path | None = None
    """File that keeps the scored rows; `None` for none."""
    proxy: bool = False
    """Whether another model than the scoring one wrote all answers."""
    by_profile: bool = False
    """Whether position, band and embedder are those of the policy's profile, as in a guard, where it names none."""

    @property
    def is_wanted(self) -> bool:
        """Whether an option says that rows may be scored."""
        return self.proxy or any(one is not None for one in (self.model, self.policy, self.rows))

    def carry_out(self, data: Path, folder: Path, console: Console) -> ScoredFile:
        """Score the rows of a data file and return the file that has them.

        Args:
            data: the data file.
            folder: keeps the rows during this run, where no file is named for them.
            console: for progress.

        Raises:
            DataFileError: a row cannot be used, or was scored by another setting, which is named.
        """
        from semgrad_guard.evaluation.compare.answering import ONLY_SCORES, answer_rows  # loads torch
        from semgrad_guard.evaluation.row_files import ScoredFile, Setting

        scorer = self._scorer(console)
        path = self.rows or folder / UNNAMED
        scored = ScoredFile(
            path,
            Setting(fingerprint=scorer.fingerprint(), model=scorer.name, proxy=self.proxy),
            advice=f"use the setting of the file, name another one with --rows, or delete {path}",
        )
        asked = replace(ONLY_SCORES, proxy=self.proxy)
        score_pending(console, scored, data, lambda rows: answer_rows(rows, scorer, asked))
        if self.rows is not None:
            console.print(f"scored rows: {self.rows}", markup=False, soft_wrap=True)
        return scored

    def _scorer(self, console: Console) -> SemGradScorer:
        """Load the scorer of the policy, with the named model."""
        from semgrad_guard.guard.assembly import profile_of, scorer_of  # loads the policy's parser
        from semgrad_guard.models import load_model  # loads torch
        from semgrad_guard.policy import load_policy

        policy = load_policy(self.policy)
        settings = policy.scorer
        with console.status(f"Loading {self.model or settings.model}"):
            local = load_model(self.model or settings.model, dtype=settings.dtype, device=settings.device)
            profile = profile_of(policy) if self.by_profile else None
            return cast("SemGradScorer", scorer_of(settings, local, profile, further=PROBES).load())


def score_pending(
    console: Console,
    file: ScoredFile,
    data: Path,
    answer: Callable[[Iterator[Row]], Iterator[dict[str, Any]]],
    *,
    limit: int | None = None,
    title: str = "Scoring",
) -> None:
    """Answer and score the rows that the file has not yet, and show a progress bar; a kill loses one row at most.

    Args:
        console: where the bar is drawn.
        file: the rows that are done.
        data: the data file.
        answer: answers and scores rows, in order.
        limit: rows to take from the data file, from the first; `None` for all.
        title: what is done, for the bar.
    """
    n_pending = sum(1 for _ in file.pending(data, limit))  # reports mistakes before anything takes time
    with bar(console) as progress:
        task = progress.add_task(title, total=len(file.done) + n_pending, completed=len(file.done))
        for row in answer(file.pending(data, limit)):
            file.append(row)
            progress.advance(task)


def write_scored_copy(scored: ScoredFile, data: Path, target: Path) -> None:
    """Write the rows of a data file with their scores, each in the line that it has there."""
    at = 1
    with target.open("w", encoding="ascii") as file:
        for row in scored.rows(data):
            file.write("\n" * (row.line - at) + json.dumps(row.fields) + "\n")
            at = row.line + 1
